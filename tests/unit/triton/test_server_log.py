"""Reading what a Triton server printed."""

from pathlib import Path

import pytest

from tandem.triton.server_log import ServerLog

START = """\
E1124 02:17:55.195730 8908 server.cc:241] "CudaDriverHelper has not been initialized."
I1124 02:16:20.871013 7749 model_lifecycle.cc:472] "loading: decode_0:1"
"""


@pytest.fixture
def log(tmp_path: Path) -> ServerLog:
    return ServerLog(tmp_path / "triton.log")


def test_progress_names_the_models_still_awaited(log: ServerLog) -> None:
    assert log.progress(["a", "b"]) == "0 of 2 models loaded, waiting for a, b"
    log.path.write_text(START + "I1124 02:16:21.239 7749 model_lifecycle.cc:839] \"successfully loaded 'b'\"\n")
    assert log.progress(["a", "b"]) == "1 of 2 models loaded, waiting for a"
    assert log.progress(["b"]) == "all models loaded, opening ports"


def test_failed_model_is_named_with_its_reason_once(log: ServerLog) -> None:
    log.path.write_text(START)
    assert log.failed_models() is None
    places = "At:\\n  model.py(3): initialize\\n  other.py(1): f"
    line = f"failed to load 'p_0' version 1: Internal: ValueError: no weights\\n\\n{places}"
    log.path.write_text(START + f'E1124 02:16:21.2 7749 model_lifecycle.cc:641] "{line}"\n' * 2)
    failed = log.failed_models()
    assert failed is not None
    assert failed.startswith("model 'p_0' does not load: ValueError: no weights (model.py(3): initialize)\n")
    assert failed.count("ValueError") == 1
    assert failed.endswith(f"The whole log: {log.path}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "tritonserver: error while loading shared libraries: libX.so: cannot open",
            "shared libraries: libX.so: cannot open",
        ),
        (
            "failed to start HTTP service: Unavailable - Socket '127.0.0.1:80' already in use ",
            "127.0.0.1:80' already in use",
        ),
        (
            "E1124 02:17:55.1 8908 x.cc:14] \"Poll failed for model directory 'p'\"",
            "  Poll failed for model directory 'p'\n",
        ),
        ('[libprotobuf ERROR /tmp/x.cc:337] Error parsing: no field "bakend".', 'no field "bakend".'),
        ("something nobody foresaw", "its last words:\n  E1124"),
    ],
)
def test_why_ended_quotes_the_reason(log: ServerLog, text: str, reason: str) -> None:
    log.path.write_text(START + text + "\n")
    said = log.why_ended(1)
    assert said.startswith("the Triton server ended with status 1:")
    assert reason in said
    assert str(log.path) in said


def test_why_ended_without_a_log_names_the_signal(log: ServerLog) -> None:
    assert log.why_ended(-9).startswith("the Triton server was killed by signal 9:")
