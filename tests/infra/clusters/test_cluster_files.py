"""The cluster files: valid where a schema exists, and true to the project where none does."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from dff.aligner.service.allocator import ENVIRONMENT
from dff.aligner.service.http.limits import LARGE, LIMITS
from dff.aligner.service.ray_serve import (
    PROXY_CALLBACK,
    PROXY_HEALTH,
    REQUEST_TIMEOUT,
    local_environment,
    parse_replicas,
)
from dff.aligner.service.serve_imports import PRELOAD
from dff.aligner.service.server_config import ServerConfig
from dff.commands.app import app
from dff.face.render.gl import PACKAGES, PYRENDER

ROOT = Path(__file__).parents[3]
MACHINES = ROOT / "ray_cluster.yaml"
K8S = ROOT / "infra" / "k8s"
MANIFESTS = sorted(path for path in K8S.rglob("*.yaml") if path.name != "kustomization.yaml")
IMAGE = "dff"  # in the manifests; infra/k8s/settings says which image that is
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"


def machines() -> dict[str, Any]:
    return dict(yaml.safe_load(MACHINES.read_text()))


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [(path.name, one) for path in MANIFESTS for one in yaml.safe_load_all(path.read_text())]


RAY_KINDS = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    for key in RAY_KINDS[document["kind"]]:
        spec = spec[key]
    return dict(spec)


RAY = [
    pytest.param(document, id=f"{name}-{document['kind']}")
    for name, document in documents()
    if document["kind"] in RAY_KINDS
]


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster_spec(document)
    return [
        group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]


def check_command(command: str) -> None:
    """The options of ``dff ...`` exist: click parses them, and nothing runs."""
    name, subcommand, *arguments = shlex.split(command)
    assert name == "dff"
    group = typer.main.get_command(app)
    group.commands[subcommand].make_context(subcommand, arguments)  # type: ignore[attr-defined]


def test_ray_accepts_the_machines() -> None:
    config = prepare_config(machines())
    validate_config(config)
    types = config["available_node_types"]
    assert sum(kind["max_workers"] for kind in types.values()) >= config["max_workers"] > 0


def test_ray_refuses_a_misspelt_key() -> None:
    """The schema is a real check: keys of old cluster files no longer pass."""
    with pytest.raises(Exception, match="target_utilization_fraction"):
        validate_config(prepare_config(machines() | {"target_utilization_fraction": 0.8}))


def test_machines_are_shared_as_meant() -> None:
    types = machines()["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    spot = [name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]]
    assert spot == [
        name for name, kind in types.items() if kind["labels"]["ray.io/market-type"] == "spot"
    ]
    assert spot == ["synthesis-spot"]
    assert types["synthesis-spot"]["priority"] > types["synthesis-on-demand"]["priority"]
    assert types["training-gpu"]["resources"]["GPU"] == 1
    for kind in types.values():
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_machines_are_shut_to_strangers() -> None:
    config = machines()
    assert config["provider"]["use_internal_ips"] is True
    assert any("/.ray/auth_token" in there for there in config["file_mounts"])
    starts = [
        c
        for key in ("head", "worker")
        for c in config[f"{key}_start_ray_commands"]
        if "ray start" in c
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in MACHINES.read_text()
    assert not re.search(r"AKIA|secret_?access_?key", MACHINES.read_text(), re.IGNORECASE)


@pytest.mark.parametrize("document", RAY)
def test_manifests_say_what_the_operator_needs(document: dict[str, Any]) -> None:
    assert document["apiVersion"] == "ray.io/v1"
    spec = cluster_spec(document)
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for pod in pods(document):
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


def test_every_node_of_every_cluster_runs_one_image() -> None:
    images = {
        container["image"]
        for one in RAY
        for pod in pods(one.values[0])
        for container in pod["containers"]
    }
    assert images == {IMAGE}
    (image,) = settings()["images"]
    assert image["name"] == IMAGE
    assert f"{image['newName']}:{image['newTag']}" == machines()["docker"]["image"]


def test_there_is_a_group_for_each_room() -> None:
    gpu = {
        group["groupName"]: "nvidia.com/gpu"
        in group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for one in RAY
        for group in cluster_spec(one.values[0])["workerGroupSpecs"]
    }
    assert gpu == {"synthesis": False, "training": True, "serving": False}


def test_commands_in_the_files_are_commands_of_the_program() -> None:
    commands = [
        document["spec"]["entrypoint"]
        for _, document in documents()
        if document["kind"] == "RayJob"
    ]
    assert {shlex.split(command)[1] for command in commands} == {"synthesize", "train"}
    for command in commands:
        check_command(command)
    with pytest.raises(Exception, match="no-such-option"):
        check_command("dff synthesize in out --no-such-option")


def test_serve_accepts_its_part_and_finds_the_application() -> None:
    (service,) = [document for _, document in documents() if document["kind"] == "RayService"]
    schema = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = schema.applications
    module, name = str(application.import_path).split(":")
    build = getattr(importlib.import_module(module), name)
    config = importlib.import_module(module).ServiceConfig.model_validate(application.args)
    # as Serve builds it, from text
    built = call_user_app_builder_with_args_if_necessary(build, application.args)
    assert built._bound_deployment.init_args == (config,)
    serving = cluster_spec(service)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert int(serving["resources"]["limits"]["cpu"]) >= config.cpus


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [
        one for _, one in documents() if one["kind"] == kind and one["metadata"]["name"] == name
    ]
    return found


def test_the_service_listens_and_limits_as_the_program_does() -> None:
    service = named("RayService", "dff-aligner")
    http = yaml.safe_load(service["spec"]["serveConfigV2"])["http_options"]
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    (port,) = [option.default for option in serve.params if option.name == "port"]
    assert http["port"] == port
    assert (
        http["host"] == "0.0.0.0"
    )  # of the pod: 127.0.0.1 would take no connection from other pods
    assert http["request_timeout_s"] == REQUEST_TIMEOUT
    local = local_environment(ServerConfig())
    for pod in pods(service):
        ports = {one["name"]: one["containerPort"] for one in pod["containers"][0]["ports"]}
        assert ports["serve"] == port
        variables = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
        for name in (*ENVIRONMENT, PRELOAD, PROXY_CALLBACK, PROXY_HEALTH):
            assert variables[name] == local[name]
    (told,) = re.findall(r"limit of (\d+) MB", (K8S / "base" / "aligner_service.yaml").read_text())
    assert int(told) << 20 == max(LARGE, LIMITS.body)


def test_pods_know_the_ports_of_ray() -> None:
    for one in RAY:
        ports = {
            p["name"]: p["containerPort"] for p in pods(one.values[0])[0]["containers"][0]["ports"]
        }
        assert (ports["gcs"], ports["dashboard"]) == (6379, 8265)
    assert "--port=6379" in " ".join(machines()["head_start_ray_commands"])


def test_weights_are_written_where_they_are_read_from() -> None:
    service, training = named("RayService", "dff-aligner"), named("RayJob", "dff-training")
    words = shlex.split(training["spec"]["entrypoint"])
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["weights"] == words[words.index("--out") + 1]


def test_the_service_grows_with_its_requests() -> None:
    """Serve asks for replicas, the operator starts nodes for them, and neither waits in vain."""
    service = named("RayService", "dff-aligner")
    spec = cluster_spec(service)
    assert spec["enableInTreeAutoscaling"] is True
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    fewest, most = parse_replicas(application["args"]["replicas"])
    (group,) = spec["workerGroupSpecs"]
    cores = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert fewest <= cores * group["minReplicas"]
    assert most == cores * group["maxReplicas"]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", [])
    )


def test_policies_and_budgets_are_of_pods_that_there_are() -> None:
    labels = [
        group["template"]["metadata"]["labels"]
        for one in RAY
        for spec in [cluster_spec(one.values[0])]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]
    labels += [
        one["spec"]["template"]["metadata"]["labels"]
        for _, one in documents()
        if one["kind"] == "Deployment"
    ]
    chosen = {
        (one["kind"], one["metadata"]["name"]): sum(
            selects(one["spec"].get("podSelector") or one["spec"]["selector"], found)
            for found in labels
        )
        for _, one in documents()
        if one["kind"] in ("NetworkPolicy", "PodDisruptionBudget")
    }
    assert chosen == {
        ("NetworkPolicy", "dff"): 3,
        ("NetworkPolicy", "dff-synthesis"): 2,
        ("NetworkPolicy", "dff-training"): 2,
        ("NetworkPolicy", "dff-stores"): 2,
        ("NetworkPolicy", "dff-aligner"): 2,
        ("PodDisruptionBudget", "dff-aligner"): 1,
    }
    assert all(found["app.kubernetes.io/part-of"] == "dff" for found in labels)


@pytest.mark.parametrize("document", RAY)
def test_pods_of_ray_hear_their_cluster_its_operator_and_who_submits(
    document: dict[str, Any],
) -> None:
    """By policies of Kubernetes, since the operator's own ones are behind a feature gate."""
    spec, name = cluster_spec(document), document["metadata"]["name"]
    assert "networkPolicy" not in spec
    rules = named("NetworkPolicy", name)["spec"]["ingress"]
    peers = [peer for rule in rules for peer in rule.get("from", [])]
    heard = [peer["podSelector"] for peer in peers if "namespaceSelector" not in peer]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert any(selects(one, group["template"]["metadata"]["labels"]) for one in heard)
    operators = [peer["podSelector"] for peer in peers if "namespaceSelector" in peer]
    assert operators == [{"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}]
    submitter = {"batch.kubernetes.io/job-name": name}
    assert any(selects(one, submitter) for one in heard) == (document["kind"] == "RayJob")


@pytest.mark.parametrize("document", RAY)
def test_only_heads_that_scale_their_cluster_may_ask_kubernetes(document: dict[str, Any]) -> None:
    """Ray's autoscaler reads the token of the head's service account, which gives none unasked."""
    assert named("ServiceAccount", "dff")["automountServiceAccountToken"] is False
    head, *workers = (pod.get("automountServiceAccountToken") for pod in pods(document))
    assert head == (True if cluster_spec(document).get("enableInTreeAutoscaling") else None)
    assert not any(workers)


def test_names_in_the_manifests_are_of_things_that_there_are() -> None:
    text = "\n".join(path.read_text() for path in MANIFESTS)
    services = {one["metadata"]["name"]: one for _, one in documents() if one["kind"] == "Service"}
    for host, port in re.findall(r"(?:http://|redisAddress: )([a-z-]+):(\d+)", text):
        (exposed,) = services[host]["spec"]["ports"]
        assert exposed["port"] == int(port)
    claims = {
        one["metadata"]["name"] for _, one in documents() if one["kind"] == "PersistentVolumeClaim"
    }
    assert set(re.findall(r"claimName: ([\w-]+)", text)) == claims
    assert set(re.findall(r"serviceAccountName: (\w+)", text)) == {
        named("ServiceAccount", "dff")["metadata"]["name"]
    }
    told = (K8S / "base" / "kustomization.yaml").read_text()
    secrets = set(re.findall(r"secret(?:Key)?Ref: \{name: ([\w-]+)", text))
    assert secrets == set(re.findall(r"create secret generic ([\w-]+)", told))


def settings() -> dict[str, Any]:
    return dict(yaml.safe_load((K8S / "settings" / "kustomization.yaml").read_text()))


@pytest.mark.parametrize("part", ["base", "jobs/synthesis", "jobs/training"])
def test_image_bucket_and_sizes_are_said_once(part: str, tmp_path: Path) -> None:
    """In infra/k8s/settings: kustomize takes them from there to every place."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, which has kustomize")
    shutil.copytree(K8S, tmp_path / "k8s")
    told = tmp_path / "k8s" / "settings" / "kustomization.yaml"
    text = told.read_text()
    for old, new in {
        "newName: registry.example.com/dff": "newName: my.registry/ours",
        "newTag: 0.1.0": "newTag: 7.7.7",
        "bucket=faces": "bucket=our-own",
        "synthesis=16": "synthesis=99",
        "serving=8": "serving=77",
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    told.write_text(text)
    made = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path / "k8s" / part)],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    ).stdout
    rendered = list(yaml.safe_load_all(made))
    assert len(rendered) > 1
    assert set(re.findall(r"s3://([\w-]+)", made)) == {"our-own"}
    assert set(re.findall(r"image: (\S+)", made)) - {"redis:7.4-bookworm"} == {
        "my.registry/ours:7.7.7"
    }
    most = {
        group["groupName"]: group["maxReplicas"]
        for one in rendered
        if one["kind"] in RAY_KINDS and one["metadata"]["name"] != "dff-training"
        for group in cluster_spec(one)["workerGroupSpecs"]
    }
    wanted = {"synthesis": 99, "serving": 77}
    assert all(most[name] == wanted[name] for name in most if name in wanted)


def test_a_job_asks_for_no_more_than_its_cluster_has() -> None:
    workers = {"dff-synthesis": "cpu", "dff-training": "nvidia.com/gpu"}
    for name, what in workers.items():
        job = named("RayJob", name)
        words = shlex.split(job["spec"]["entrypoint"])
        (group,) = cluster_spec(job)["workerGroupSpecs"]
        each = int(group["template"]["spec"]["containers"][0]["resources"]["limits"][what])
        assert int(words[words.index("--workers") + 1]) <= each * group["maxReplicas"]


def test_image_and_makefile_install_the_same() -> None:
    dockerfile, makefile = DOCKERFILE.read_text(), (ROOT / "Makefile").read_text()
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    pyrender = r"pip install (?:--quiet )?--no-deps pyrender==([\d.]+)"
    assert re.findall(pyrender, dockerfile) == re.findall(pyrender, makefile)
    assert re.findall(r"torch==([\d.]+)", makefile) == [pins["torch"]]
    assert re.findall(r"pyrender==([\d.]+)", PYRENDER) == re.findall(pyrender, makefile)
    (version,) = set(re.findall(r"^FROM python:([\d.]+)-", dockerfile, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    served = [name.rpartition(" ")[2] for name in project["classifiers"] if ":: 3." in name]
    (tried,) = re.findall(r"foreach v,([\d. ]+),", makefile)
    assert version in served
    assert tried.split() == served[::-1]  # make takes the newest
    for command in re.findall(r"^RUN (dff \w+)", dockerfile, re.MULTILINE):
        check_command(command)
    # what is copied or run is there, and what .dockerignore leaves out is not asked for
    ignored = (ROOT / ".dockerignore").read_text().split()
    kernels = r"python (?:/build/)?(\S+compile_kernels\.py)$"
    for text in (dockerfile, makefile):
        (script,) = re.findall(kernels, text, re.MULTILINE)
        assert (ROOT / script).is_file()
    assert not {"scripts", "samples"} & {*ignored}
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists()
            assert source not in ignored


def test_the_image_has_what_rendering_needs_and_no_root() -> None:
    text = DOCKERFILE.read_text()
    assert " ".join(PACKAGES) in text
    assert re.search(r"^USER ray$", text, re.MULTILINE)
    assert "-c constraints.txt" in text
    assert all(
        f"COPY {room} {room}" in text
        for room in ("face", "infra", "pipeline", "trainer", "aligner", "dff")
    )
    assert re.search(r"^FROM python:3\.11-slim-bookworm AS program$", text, re.MULTILINE)
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", text, re.MULTILINE)
    assert stages[-2:] == [("program", "cuda"), ("program", "")]
