"""The converted directory: whole or not there, made once, and named by its fingerprint."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from conversion.convert import convert
from tandem.errors import TandemError
from tests.checkpoints import make_random_checkpoint

BUILD = Path(__file__).resolve().parents[3] / "build"

STOPS_MIDWAY = """
import signal, sys, time
from pathlib import Path
from conversion.convert import convert
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have it ignored
def progress(done, total):
    if done > total / 2:
        print("midway", flush=True)
        time.sleep(600)
convert(Path(sys.argv[1]), Path(sys.argv[2]), progress)
"""


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


class Progress:
    """Counts, and interrupts after so many tensors."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.calls: list[tuple[int, int]] = []
        self._interrupt_after = interrupt_after

    def __call__(self, done: int, total: int) -> None:
        """Take one step."""
        self.calls.append((done, total))
        if len(self.calls) == self._interrupt_after:
            raise Interrupted


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_random_checkpoint("llama", tmp_path / "source")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "models" / "tiny"


def test_progress_goes_from_none_to_all(source: Path, out: Path) -> None:
    progress = Progress()
    convert(source, out, progress)
    done = [done for done, _ in progress.calls]
    assert done == sorted(done)
    totals = {total for _, total in progress.calls}
    assert totals == {done[-1]} == {sum(weights.nbytes for weights in load_file(out / "model.safetensors").values())}


def test_second_run_does_nothing(source: Path, out: Path) -> None:
    first = convert(source, out, Progress())
    before = _state(out)
    progress = Progress()
    assert convert(source, out, progress) == first
    assert progress.calls == []
    assert _state(out) == before


def _touch(source: Path, _out: Path) -> None:
    os.utime(source / "config.json", ns=(1, 1))


def _lose_file(_source: Path, out: Path) -> None:
    (out / "tokenizer.json").unlink()


def _lose_bytes(_source: Path, out: Path) -> None:
    os.truncate(out / "model.safetensors", 1000)


def _break_note(_source: Path, out: Path) -> None:
    (out / "tandem.json").write_text('{"format": 1}')


def _age(_source: Path, out: Path) -> None:
    note = json.loads((out / "tandem.json").read_text())
    (out / "tandem.json").write_text(json.dumps(note | {"format": 0}))


@pytest.mark.parametrize("spoil", [_touch, _lose_file, _lose_bytes, _break_note, _age])
def test_converts_anew_when_it_must(source: Path, out: Path, spoil: Callable[[Path, Path], None]) -> None:
    first = convert(source, out, Progress())
    whole = (out / "model.safetensors").read_bytes()
    spoil(source, out)
    progress = Progress()
    assert convert(source, out, progress) == first, "the model is the same one"
    assert progress.calls != []
    assert (out / "model.safetensors").read_bytes() == whole
    assert _rest(out) == []


def test_fingerprint_is_of_configuration_and_weights(source: Path, out: Path, tmp_path: Path) -> None:
    fingerprints = [convert(source, out, Progress())]

    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    _edit(copy / "config.json", transformers_version="1", _name_or_path="elsewhere")
    assert convert(copy, tmp_path / "copied", Progress()) == fingerprints[0], "a copy is the same model"

    _edit(copy / "config.json", rms_norm_eps=1e-3)
    fingerprints.append(convert(copy, tmp_path / "copied", Progress()))

    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][5] += 1e-3
    save_file(weights, copy / "model.safetensors")
    fingerprints.append(convert(copy, tmp_path / "copied", Progress()))

    q, k = (f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1))
    weights[q], weights[k] = weights[k], weights[q]
    save_file(weights, copy / "model.safetensors")
    fingerprints.append(convert(copy, tmp_path / "copied", Progress()))
    assert len(set(fingerprints)) == 4
    assert {len(fingerprint) for fingerprint in fingerprints} == {64}


@pytest.mark.parametrize("after", [1, 10, 20])
def test_interrupted_leaves_nothing(source: Path, out: Path, after: int) -> None:
    with pytest.raises(Interrupted):
        convert(source, out, Progress(interrupt_after=after))
    assert not out.exists()
    assert _rest(out) == []
    convert(source, out, Progress())
    assert (out / "tandem.json").is_file()


def test_interrupted_keeps_the_earlier_result(source: Path, out: Path) -> None:
    convert(source, out, Progress())
    before = _state(out)
    os.utime(source / "config.json", ns=(1, 1))
    with pytest.raises(Interrupted):
        convert(source, out, Progress(interrupt_after=3))
    assert _state(out) == before
    assert _rest(out) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_midway(source: Path, out: Path, stop: signal.Signals) -> None:
    command = [sys.executable, "-c", STOPS_MIDWAY, str(source), str(out)]
    with subprocess.Popen(command, cwd=BUILD, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "midway\n"
            process.send_signal(stop)
            process.wait(timeout=60)
        finally:
            process.kill()
    assert not out.exists()

    convert(source, out, Progress())
    assert load_file(out / "model.safetensors").keys() == load_file(source / "model.safetensors").keys()
    assert _rest(out) == [], "what the killed run left is gone"


def test_two_at_once_convert_once(source: Path, out: Path) -> None:
    progress = [Progress(), Progress()]
    with ThreadPoolExecutor(2) as pool:
        fingerprints = list(pool.map(lambda p: convert(source, out, p), progress))
    assert fingerprints[0] == fingerprints[1]
    assert sorted(bool(p.calls) for p in progress) == [False, True]


def test_does_not_touch_what_is_not_its_own(source: Path, out: Path) -> None:
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("the only copy")
    with pytest.raises(TandemError, match="something else is there") as caught:
        convert(source, out, Progress())
    assert caught.value.code == "environment"
    assert (out / "thesis.txt").read_text() == "the only copy"


def test_takes_an_empty_directory(source: Path, out: Path) -> None:
    out.mkdir(parents=True)
    convert(source, out, Progress())
    assert (out / "tandem.json").is_file()


def _state(out: Path) -> dict[str, tuple[int, int, int]]:
    stats = {path.name: path.stat() for path in out.iterdir()}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _rest(out: Path) -> list[Path]:
    return [path for path in out.parent.iterdir() if path not in (out, out.parent / f".{out.name}.lock")]


def _edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
