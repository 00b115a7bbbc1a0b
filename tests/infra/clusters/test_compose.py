"""The cluster on one machine of infra/compose.yaml: valid, shut to others, and of real commands."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import click
import pytest
import yaml
from compose_spec import PyCompose
from ray.scripts.scripts import cli as ray_commands

from tests.infra.clusters.test_cluster_files import ROOT, check_command

FILE = ROOT / "infra" / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load(FILE.read_text())["services"])


def test_the_file_follows_the_compose_specification() -> None:
    content = yaml.safe_load(FILE.read_text())
    PyCompose.from_json(json.dumps(content)).validate()
    content["services"]["head"]["comand"] = "ray"
    with pytest.raises(ValueError, match="comand"):
        PyCompose.from_json(json.dumps(content))


def test_it_has_a_part_for_each_need(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == {"s3", "bucket", "head", "worker-1", "worker-2", "mlflow", "aligner"}
    for service in services.values():
        if "build" in service:
            context = FILE.parent / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in yaml.safe_load(FILE.read_text())["volumes"]


def test_ports_are_open_to_this_machine_only(services: dict[str, dict[str, Any]]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in ports)


def parse(command: click.Command, arguments: list[str]) -> dict[str, Any]:
    return command.make_context(str(command.name), arguments).params


def test_every_command_is_one_of_its_program(services: dict[str, dict[str, Any]]) -> None:
    from mlflow.cli import server  # a second and a half of imports

    seen = set()
    for name, service in services.items():
        command = service["command"]
        if isinstance(command, list):
            assert command[:2] == ["python", "-c"]
            compile(command[2], name, "exec")
            continue
        words = shlex.split(command.replace("${WEIGHTS:-dff-open}", "dff-open"))
        if words[0] == "dff":
            check_command(shlex.join(words))
        elif words[0] == "ray":
            assert isinstance(ray_commands, click.Group)
            told = parse(ray_commands.commands[words[1]], words[2:])
            assert told["head"] or told["address"] == "head:6379"
        elif words[:2] == ["mlflow", "server"]:
            assert parse(server, words[2:])["port"] == 5000
        else:
            continue  # the S3 server is not ours
        seen.add(words[0])
    assert seen == {"dff", "ray", "mlflow"}
    test = shlex.split(services["head"]["healthcheck"]["test"])
    assert isinstance(ray_commands, click.Group)
    assert parse(ray_commands.commands[test[1]], test[2:])["address"] == "head:6379"


def test_commands_of_the_instructions_are_commands_of_the_program() -> None:
    told = FILE.read_text().partition("\nname:")[0].replace("#", "").replace("\\\n", " ")
    commands = [line.strip() for line in told.splitlines() if line.strip().startswith("dff ")]
    assert len(commands) == 2
    for command in commands:
        check_command(command)


def test_secrets_are_given_and_never_written(services: dict[str, dict[str, Any]]) -> None:
    variables = [(k, v) for one in services.values() for k, v in one.get("environment", {}).items()]
    secret = [(k, v) for k, v in variables if re.search("TOKEN|SECRET", k)]
    assert len(secret) >= 12
    for _, value in secret:
        assert re.match(r"\$\{\w+:\?", value)
