"""A missing optional library is one clear error."""

from __future__ import annotations

import pickle
from importlib import import_module

import pytest

from dff.face.errors import DffError, MissingExtra
from dff.face.extras import require_extra


def test_a_missing_library_is_named_with_its_install_command() -> None:
    with pytest.raises(MissingExtra) as caught, require_extra("serve"):
        import_module("a_library_that_nobody_has.part")
    assert str(caught.value) == (
        "a_library_that_nobody_has is not installed; "
        "install it with: pip install 'deep-face-feature[serve]'"
    )
    assert (caught.value.library, caught.value.extra) == ("a_library_that_nobody_has", "serve")
    assert isinstance(caught.value, DffError)
    assert isinstance(caught.value, ImportError)
    assert not isinstance(caught.value, ModuleNotFoundError)


def test_the_outer_block_names_the_extra() -> None:
    with pytest.raises(MissingExtra, match=r"a_library_that_nobody_has.*\[all\]"):  # noqa: SIM117
        with require_extra("all"), require_extra("serve"):
            import_module("a_library_that_nobody_has")


def test_a_missing_module_of_this_package_is_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError), require_extra("serve"):
        import_module("dff.face.a_module_that_nobody_wrote")


def test_an_installed_library_is_imported() -> None:
    with require_extra("serve"):
        numpy = import_module("numpy")
    assert numpy.pi > 3


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), require_extra("serve"):
        raise KeyError("unrelated")


def test_the_error_survives_a_process_boundary() -> None:
    copied = pickle.loads(pickle.dumps(MissingExtra("fastapi", "serve")))
    assert (str(copied), copied.extra) == (str(MissingExtra("fastapi", "serve")), "serve")
