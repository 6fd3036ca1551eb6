"""docker-compose.yml and the image's Dockerfile agree with the code and with each other. Neither needs Docker here."""

import fnmatch
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tandem.deployment import Server, load_deployment, override
from tandem.triton import command, processes, server
from tandem.triton.layout import lay_out

ROOT = Path(__file__).parents[3]
IMAGE_ROOT = Path("/opt/tandem")
"""The checkout inside the image."""


def interpolate(text: str) -> str:
    """Put the defaults in the place of ``${VARIABLE:-default}``, as Compose does where nobody sets the variable."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.fixture
def services() -> dict[str, Any]:
    compose = yaml.safe_load(interpolate((ROOT / "docker-compose.yml").read_text()))
    found: dict[str, Any] = compose["services"]
    return found


@pytest.fixture
def servers(services: dict[str, Any]) -> dict[str, Any]:
    """The services that call ``tandem serve``."""
    return {name: service for name, service in services.items() if "serve" in service.get("command", [])}


@pytest.fixture
def dockerfile() -> list[list[str]]:
    """The instructions, each split into words."""
    text = (ROOT / "build/docker/cpu.Dockerfile").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def mounted(service: dict[str, Any]) -> dict[Path, str]:
    """Target → source of what the service mounts."""
    pairs = [
        (volume["target"], volume["source"]) if isinstance(volume, dict) else volume.split(":")[1::-1]
        for volume in service["volumes"]
    ]
    return {Path(target): source for target, source in pairs}


def test_only_this_machine_reaches_the_gateway_and_nobody_the_workers(services: dict[str, Any]) -> None:
    usual = Server()
    expected = [f"127.0.0.1:{port}:{port}" for port in (usual.http_port, usual.grpc_port)]
    assert services["gateway"]["ports"] == expected
    assert [name for name, one in services.items() if "ports" in one] == ["gateway", "grafana"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert compose["networks"]["default"] == {"internal": True}


def test_every_part_of_the_deployment_is_served_by_the_service_of_its_name(servers: dict[str, Any]) -> None:
    deployment = load_deployment(ROOT / "deployments" / "compose.toml")
    assert {option(one["command"], "--only") for one in servers.values()} == {
        "gateway",
        *(w.name for w in deployment.worker),
    }
    assert all(option(one["command"], "--only") == name for name, one in servers.items())
    assert [worker.addresses for worker in deployment.worker] == [[f"{w.name}:8001"] for w in deployment.worker]
    assert deployment.find_worker("group").hosts == ["group", "rank"]


def test_docker_waits_until_a_server_that_does_not_go_is_killed(servers: dict[str, Any]) -> None:
    deployment = load_deployment(ROOT / "deployments" / "compose.toml")
    drain, stop = max(server._DRAIN_TIMEOUT_S, deployment.limits.drain_s + server._REAP_S), server.STOP_GRACE_S
    kill = processes._ORPHAN_WAIT_S + processes._KILL_WAIT_S + 2 * server._REAP_S
    for service in servers.values():
        assert float(service["stop_grace_period"].removesuffix("s")) > drain + stop + kill


def test_deployment_that_is_served_finds_its_model_in_the_image(
    servers: dict[str, Any], dockerfile: list[list[str]]
) -> None:
    """A deployment's paths are relative to itself: mounted elsewhere it would name another model."""
    for service in servers.values():
        served = IMAGE_ROOT / service["command"][2]
        source = ROOT / mounted(service)[served]
        model = Path(load_deployment(source).model.path).relative_to(source.resolve().parent.parent)
        assert served.parent.parent == IMAGE_ROOT
        copied = [words[-1].rstrip("/") for words in dockerfile if words[0] == "COPY" and "--from=build" in words]
        assert any(model.is_relative_to(place) for place in copied)


def test_secrets_are_made_where_each_role_finds_its_own(services: dict[str, Any], servers: dict[str, Any]) -> None:
    tls = load_deployment(ROOT / "deployments" / "compose.toml").tls
    assert tls is not None
    for name in (*servers, "rank", "prometheus"):
        role = {"gateway": "gateway", "prometheus": "watch"}.get(name, "worker")
        assert mounted(services[name])[Path("/run/tandem")] == f"./.tandem/secrets/{role}"
        assert (
            name == "prometheus" or services[name]["environment"]["TANDEM_HANDLE_KEY_FILE"] == "/run/tandem/handle_key"
        )
    assert {Path(path).parent for path in (tls.ca, tls.certificate, tls.key)} == {Path("/run/tandem")}


def test_read_only_server_may_write_where_it_has_to(servers: dict[str, Any], dockerfile: list[list[str]]) -> None:
    useradd = next(words for words in dockerfile if words[:2] == ["RUN", "useradd"])
    environment = dict(word.split("=", 1) for words in dockerfile if words[0] == "ENV" for word in words[1:])
    for service in servers.values():
        assert service["read_only"] is True
        assert IMAGE_ROOT / ".tandem/run" in mounted(service)
        place, _, options = service["tmpfs"][0].partition(":")
        assert ["USER", useradd[useradd.index("&&") - 1]] in dockerfile
        assert f"uid={option(useradd, '--uid')}" in options.split(",")
        for variable in ("HOME", "NUMBA_CACHE_DIR"):
            assert Path(environment[variable]).is_relative_to(place)


def test_shared_memory_suffices(servers: dict[str, Any], tmp_path: Path) -> None:
    for name, service in servers.items():
        deployment = override(load_deployment(ROOT / "deployments" / "compose.toml"), only=[name])
        models = lay_out(deployment, ROOT / "model_repository", tmp_path / name, tmp_path / "deployment.json")
        gibibytes = int(service["shm_size"].removesuffix("g"))
        assert gibibytes * 2**30 >= 2 * len(models) * command._SHM_BYTES  # they grow by as much again


@pytest.mark.parametrize("name", ["gpu", "hosts"])
def test_overrides_are_for_services_that_are_there(services: dict[str, Any], name: str) -> None:
    extra = yaml.safe_load(interpolate((ROOT / f"docker-compose.{name}.yml").read_text()))["services"]
    assert set(extra) == {"prefill", "decode", "group", "rank"} <= set(services)


def test_what_watches_is_there(services: dict[str, Any]) -> None:
    sources = [volume.partition(":")[0] for name in ("prometheus", "grafana") for volume in services[name]["volumes"]]
    assert [source for source in sources if source.startswith("./") and not (ROOT / source).exists()] == [
        "./.tandem/secrets/watch"
    ]


def test_whatever_the_image_is_made_of_exists_and_reaches_the_builder(dockerfile: list[list[str]]) -> None:
    sources = [
        word.rstrip("/")
        for words in dockerfile
        if words[0] == "COPY" and not words[1].startswith("--from")
        for word in words[1:-1]
    ]
    assert sources
    missing = [source for source in sources if not (ROOT / source).exists()]
    ignored = [source for source in sources if is_ignored(source)]
    assert (missing, ignored) == ([], [])
    assert is_ignored(".venv/bin/python")
    assert is_ignored(".tandem/models/model.safetensors")
    assert is_ignored("python_backends/tandem/__pycache__/drain.pyc")


def is_ignored(path: str) -> bool:
    """What .dockerignore says about a path: of the patterns that match it or a folder above it, the last one counts."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if not pattern or pattern.startswith("#"):
            continue
        parts = Path(path).parts
        above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)] + (list(parts) if "**/" in line else [])
        if any(fnmatch.fnmatchcase(place, pattern) for place in above):
            ignored = not line.startswith("!")
    return ignored
