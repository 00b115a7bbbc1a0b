"""Each command that the guide shows for clusters is run by a test, in some form."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "guide" / "clusters.md"
PROGRAMS = ("dff", "ray", "kubectl", "docker", "curl")

_THREE_USES = "test_nodes.py::test_synthesis_training_and_service_meet_in_a_bucket"
_SUBMITTED = "test_nodes.py::test_a_dataset_made_by_a_submitted_job_is_the_one_made_at_home"
TESTS = {
    "dff synthesize": _THREE_USES,
    "dff train": _THREE_USES,
    "dff train --gpu": "../../trainer/test_train.py::test_a_gpu_trains_as_the_cpu_does",
    "dff serve": _THREE_USES,
    "curl": _THREE_USES,
    "dff submit": "test_nodes.py::test_a_job_uses_both_nodes_and_its_log_is_followed",
    "dff submit synthesize": _SUBMITTED,
    "dff submit train": _THREE_USES,
    "dff jobs": _SUBMITTED,
    "dff status": _SUBMITTED,
    "ray start": _THREE_USES,
    "ray up": "test_cluster_files.py::test_ray_accepts_the_machines",
    "kubectl apply": "test_cluster_files.py::test_image_bucket_and_sizes_are_said_once",
}
"""Test of the commands that begin so; the longest beginning counts.

Without a cloud and without Docker, the files of ``ray up``, Kubernetes and Compose are validated,
and the commands in them are parsed by the program.
"""


def list_commands(text: str) -> list[str]:
    """The commands of code blocks and between backticks."""
    programs = "|".join(PROGRAMS)
    text = text.replace("\\\n", " ")
    found = re.findall(rf"^(?:\$ )?((?:{programs}) .*)$", text, re.M)
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    found += [" ".join(span.split()) for span in spans if span.split()[0] in PROGRAMS]
    return [command for command in found if " " in command]


def find_test(command: str) -> str:
    matching = [start for start in TESTS if f"{command} ".startswith(f"{start} ")]
    assert matching, f"no test is named for: {command}"
    return max(matching, key=len)


def test_each_command_of_the_guide_has_its_test() -> None:
    used = {find_test(command) for command in list_commands(PAGE.read_text("utf-8"))}
    assert used == set(TESTS), "tests are named for commands that are gone"
    for name in TESTS.values():
        module, _, function = name.partition("::")
        tree = ast.parse((ROOT / "tests" / "infra" / "clusters" / module).read_text("utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not function or function in defined, name
