"""Workers listen at the address of their node, whatever the name of the machine stands for."""

from __future__ import annotations

import pytest
import ray.util

from dff.trainer import process_group
from dff.trainer.process_group import INTERFACE, NodeTorchConfig, find_interface


def test_interfaces_are_found_by_their_address() -> None:
    assert find_interface("127.0.0.1") == "lo"
    assert find_interface("203.0.113.7") is None


@pytest.mark.parametrize(
    ("address", "before", "after"),
    [("127.0.0.1", None, "lo"), ("127.0.0.1", "eth7", "eth7"), ("203.0.113.7", None, None)],
)
def test_the_users_choice_goes_first(
    address: str, before: str | None, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INTERFACE, before or "")
    if before is None:
        monkeypatch.delenv(INTERFACE)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    process_group._use_interface_of_node()
    assert process_group.os.environ.get(INTERFACE) == after


def test_the_interface_is_chosen_before_the_group_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Group:
        def execute(self, function: object) -> None:
            order.append(getattr(function, "__name__", ""))

    config = NodeTorchConfig()
    above = config.backend_cls.__mro__[1]
    monkeypatch.setattr(above, "on_start", lambda self, group, config: order.append("made"))
    config.backend_cls().on_start(Group(), config)
    assert order == ["_use_interface_of_node", "made"]
