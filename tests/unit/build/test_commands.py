"""The scripts as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.checkpoints import make_random_checkpoint, make_random_model

BUILD = Path(__file__).resolve().parents[3] / "build"


def test_convert(tmp_path: Path) -> None:
    source = make_random_checkpoint("qwen3", tmp_path / "source")
    done = _run("convert.py", source, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"Model ready: {tmp_path / 'out'} (fingerprint " in done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_convert_says_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("no")
    done = _run("convert.py", tmp_path / "model.gguf", tmp_path / "out")
    assert done.returncode == 1
    assert f"Error: {tmp_path / 'model.gguf'}: not a whole GGUF file" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_model_refuses_a_directory_in_use(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = _run("demo_model.py", tmp_path)
    assert done.returncode == 1
    assert f"Error: {tmp_path}: something else is there" in done.stderr


def test_shard(tmp_path: Path) -> None:
    model = make_random_model("qwen3", tmp_path)
    done = _run("shard.py", model, Path("--tensor-parallel-size=2"))
    assert done.returncode == 0, done.stderr
    assert f"Ready: {model}/shards/tp2-pp1 (2 ranks)" in done.stderr
    assert sorted(path.name for path in (model / "shards/tp2-pp1").glob("*.safetensors")) == [
        "rank-0.safetensors",
        "rank-1.safetensors",
    ]
    refused = _run("shard.py", model, Path("--tensor-parallel-size=3"))
    assert refused.returncode == 1
    assert "Error: worker.tensor_parallel_size: 3 does not divide this model" in refused.stderr


def _run(script: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BUILD / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd="/")
