"""Builds with stand-ins for TensorRT-LLM's tools: done once, taken up where they stopped, told of when they fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tandem.errors import TandemError
from tandem.recipes.plan import EXAMPLES_VARIABLE, Plan, make_plan
from tandem.recipes.run import run_plan
from tests.unit.recipes.support import ROOT, recipe

TOOL = f"""#!{sys.executable}
import os, sys, time
from pathlib import Path
with open(os.environ["CALLS"], "a") as calls:
    calls.write(Path(sys.argv[0]).name + "\\n")
out = Path(sys.argv[sys.argv.index("--output_dir") + 1])
out.joinpath("config.json").write_text("half")
if (tale := os.environ.get("TALE")) and Path(sys.argv[0]).name == "trtllm-build":
    print(tale, flush=True)
    time.sleep(60 if tale == "slow" else 0)
    sys.exit(3)
out.joinpath("config.json").write_text("whole")
"""
CONVERT = "models/core/llama/convert_checkpoint.py"
DEADLINE_S = 30.0


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A build of one GPU's engines, whose tools note in ``calls`` that they were called."""
    programs, examples = tmp_path / "bin", tmp_path / "examples"
    for path in (programs / "trtllm-build", examples / CONVERT):
        path.parent.mkdir(parents=True)
        path.write_text(TOOL)
        path.chmod(0o755)
    (programs / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv(EXAMPLES_VARIABLE, str(examples))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return make_plan(recipe("llama-3.1-8b"), tmp_path / "out")


def calls(directory: Path) -> list[str]:
    path = directory / "calls"
    return path.read_text().split() if path.exists() else []


def test_a_build_is_done_once(tmp_path: Path, plan: Plan) -> None:
    said: list[str] = []
    run_plan(plan, said.append)
    assert calls(tmp_path) == ["convert_checkpoint.py", "trtllm-build", "trtllm-build"]
    assert said[0] == "1 of 3: prefill: convert Llama-3.1-8B-Instruct"
    assert all((step.output / "config.json").read_text() == "whole" for step in plan.steps)
    assert f'engine_dir = "{plan.steps[-1].output}"' in plan.worker_file.read_text()
    run_plan(plan, said.append)
    assert len(said) == len(calls(tmp_path)) == 3


def test_a_failed_step_says_why_and_is_taken_up_again(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALE", "out of memory")
    with pytest.raises(TandemError) as caught:
        run_plan(plan, lambda _: None)
    assert caught.value.code == "engine_failed"
    assert "prefill: build the engine: exit status 3" in caught.value.message
    assert caught.value.message.endswith("out of memory")
    assert [path.name for path in plan.directory.glob("*.partial")] == []
    monkeypatch.delenv("TALE")
    run_plan(plan, lambda _: None)
    assert calls(tmp_path) == ["convert_checkpoint.py", *["trtllm-build"] * 3]


def test_an_interrupted_build_ends_its_tools_and_leaves_nothing_half(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second build is refused meanwhile."""
    monkeypatch.setenv("TALE", "slow")
    program = Path(sys.executable).parent / "tandem"
    command = [str(program), "build", str(ROOT / "build/recipes/llama-3.1-8b.toml"), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + DEADLINE_S
        while "trtllm-build" not in calls(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(TandemError, match="another build is at work"):
            run_plan(plan, lambda _: None)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
    assert [path.name for path in plan.directory.glob("*.partial")] == []
    assert plan.steps[0].output.is_dir()
    assert not plan.steps[1].output.exists()


def test_a_machine_without_the_tools_is_told_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXAMPLES_VARIABLE, str(tmp_path))
    with pytest.raises(TandemError, match=r"convert_checkpoint\.py is missing: NVIDIA's container"):
        run_plan(make_plan(recipe("llama-3.1-8b"), tmp_path / "out"), lambda _: None)


def test_a_checkpoint_that_is_loaded_as_it_is_needs_no_tools(tmp_path: Path) -> None:
    plan = make_plan(recipe("qwen3-32b"), tmp_path)
    run_plan(plan, lambda _: None)
    assert "[worker.tensorrt_llm]" in plan.worker_file.read_text()
