"""The image on NVIDIA's container agrees with the code: what it is made of, what it installs, and what a dry run says
of it. It cannot be built here; what the container holds is taken from Triton's compatibility matrix."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tandem.triton import outline
from tests.unit.build.test_docker import ROOT, is_ignored

CONTAINERS = {f"nvcr.io/nvidia/tritonserver:26.{month}-trtllm-python-py3" for month in ("04", "05", "06", "07")}
"""Those with TensorRT-LLM 1.2.1: docs/introduction/compatibility.md of triton-inference-server/server at e1db8a603."""
LEFT_OUT = ("torch", "nixl_cu13", "mpi4py", "gguf", "transformers", "matplotlib")
"""Not installed: the torch engine's, and the container's own."""
IMPORTS = """
import sys, types
for name in {left_out!r}:
    sys.modules[name] = None  # importing it raises
sys.modules["triton_python_backend_utils"] = types.ModuleType("pb_utils")
import tandem.cli
import tandem.engines.server, tandem.engines.tensorrt_llm.engine
import tandem.orchestrator.model, tandem.preprocess.model, tandem.stage.model
import tandem.parallel.llmapi_leader, tandem.parallel.llmapi_rank, tandem.parallel.supervisor
tops = {{name.partition(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}}
print(*sorted(tops & set({packages!r})))
"""
MODULES = {
    "jinja2": "jinja2",
    "msgspec": "msgspec",
    "numba": "numba",
    "numpy": "numpy",
    "prometheus-client": "prometheus_client",
    "psutil": "psutil",
    "pyzmq": "zmq",
    "rich": "rich",
    "tokenizers": "tokenizers",
    "typer": "typer",
    "tritonclient[grpc]": "tritonclient",
}
"""What pip calls a package, and what Python does."""


@pytest.fixture(scope="module")
def dockerfile() -> list[list[str]]:
    """The instructions, each split into words."""
    text = (ROOT / "build/docker/tensorrt_llm.Dockerfile").read_text()
    joined = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if line]


def installed(dockerfile: list[list[str]]) -> list[str]:
    words = next(words for words in dockerfile if "install" in words)
    start = words.index("/tmp/constraints.txt", words.index("--constraint"))
    return words[start + 1 : words.index("&&", start)]


def test_only_known_instructions_in_their_order(dockerfile: list[list[str]]) -> None:
    names = [words[0] for words in dockerfile]
    assert set(names) <= {"ARG", "FROM", "WORKDIR", "RUN", "COPY", "ENV", "EXPOSE", "CMD"}
    assert names[:2] == ["ARG", "FROM"]
    assert names[-1] == "CMD"
    assert names.count("CMD") == 1


def test_it_is_made_of_a_container_with_1_2(dockerfile: list[list[str]]) -> None:
    assert dockerfile[0][1].removeprefix("BASE=") in CONTAINERS
    assert dockerfile[1] == ["FROM", "${BASE}"]


def test_whatever_it_is_made_of_exists_and_reaches_the_builder(dockerfile: list[list[str]]) -> None:
    sources = [word.rstrip("/") for words in dockerfile if words[0] == "COPY" for word in words[1:-1]]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if is_ignored(source)] == []
    assert os.access(ROOT / "build/docker/container-ssh", os.X_OK)


def test_what_serves_needs_no_more_than_is_installed(dockerfile: list[list[str]]) -> None:
    """And all that is installed is known to the project."""
    packages = installed(dockerfile)
    assert set(packages) == set(MODULES)
    known = (ROOT / "pyproject.toml").read_text()
    assert [name for name in packages if not re.search(rf'"{re.escape(name.partition("[")[0])}[\[=>]', known)] == []
    code = IMPORTS.format(left_out=LEFT_OUT, packages=list(MODULES.values()))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(MODULES.values())


def test_a_dry_run_speaks_of_this_image(dockerfile: list[list[str]]) -> None:
    machine = outline.the_image()
    assert ["WORKDIR", str(outline.IMAGE_ROOT)] in dockerfile
    assert ["ENV", f"PYTHONPATH={machine.environment['PYTHONPATH']}"] in dockerfile
    assert machine.home.parent == outline.IMAGE_ROOT


def test_a_command_reaches_another_hosts_container(tmp_path: Path) -> None:
    """Through two shells, as sshd and docker have it; options of ssh stay ssh's."""
    for name, text in {
        "ssh": 'echo "ssh $1 $2 $3 $4"; shift 4; exec sh -c "$*"',
        "docker": 'echo "docker $1 $2 $3"; shift 3; exec "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    command = [
        str(ROOT / "build/docker/container-ssh"),
        "-x",
        "-p",
        "22",
        "10.0.0.2",
        'A="x  y" ;',
        "echo 'it'\"s $A\"",
    ]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TANDEM_CONTAINER": "engine"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines() == ["ssh -x -p 22 10.0.0.2", "docker exec --interactive engine", "its x  y"]
