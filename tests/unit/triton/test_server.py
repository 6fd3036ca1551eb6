"""A real Triton server with two tiny models: started, used, ended in every way."""

import queue
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from tandem.deployment import Deployment, to_json
from tandem.errors import TandemError
from tandem.triton import server as server_module
from tandem.triton.processes import find_processes, shared_memory_prefix
from tandem.triton.server import TritonServer

OWNER = """
import sys, time
from pathlib import Path
from tandem.deployment import load_deployment
from tandem.triton.server import TritonServer
with TritonServer(load_deployment(Path(sys.argv[1])), templates=Path(sys.argv[2])) as server:
    print((server.run_directory / "run_id").read_text(), flush=True)
    time.sleep(600)
"""


def stream_words(server: TritonServer, model: str, text: str) -> list[str]:
    """What the model answers to ``text``, one string per response."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    tensor = triton.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=object))
    words: list[str] = []
    with triton.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(model, [tensor], enable_empty_final_response=True)
        while True:
            result, error = answers.get(timeout=60)
            assert error is None, error
            if result.get_response().parameters["triton_final_response"].bool_param:
                return words
            words.append(result.as_numpy("word")[0].decode())


def run_id_of(server: TritonServer) -> str:
    return (server.run_directory / "run_id").read_text()


def shared_memory(run_id: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{shared_memory_prefix(run_id)}*"))


def await_true(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_strings_stream_through_each_worker_and_nothing_is_left(deployment: Deployment, templates: Path) -> None:
    said: list[str] = []
    with TritonServer(deployment, templates=templates, progress=said.append) as server:
        run_id, log = run_id_of(server), server.log_file
        words = ["Grüße", "aus", "🚂", "東京"]
        assert stream_words(server, "prefill_0", " ".join(words)) == [f"prefill_0:{word}" for word in words]
        assert stream_words(server, "decode_0", "x" * 100_000) == ["decode_0:" + "x" * 100_000]
        assert {p.name() for p in find_processes(run_id)} >= {"tritonserver", "sleep"}
        assert shared_memory(run_id)
        with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
            assert b"nv_inference_request_success" in answer.read()
        models = server.run_directory / "models"
    assert said[0].endswith("waiting for prefill_0, decode_0")
    assert find_processes(run_id) == []
    assert shared_memory(run_id) == []
    assert not models.exists()
    assert "Started HTTPService" in log.read_text()


def test_model_that_does_not_load_is_named_with_its_error(
    deployment: Deployment, templates: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(templates, tmp_path / "templates")
    code = "class TritonPythonModel:\n  def initialize(self, args): raise ValueError('the weights are short')\n"
    (broken / "decode" / "1" / "model.py").write_text(code)
    server = TritonServer(deployment, templates=broken)
    with pytest.raises(TandemError, match=r"model 'decode_0' does not load: .*the weights are short") as caught:
        server.start()
    assert caught.value.code == "engine_failed"
    assert find_processes(run_id_of(server)) == []


def test_model_whose_process_dies_while_loading_does_not_hang(
    deployment: Deployment, templates: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(templates, tmp_path / "templates")
    code = "import os\nclass TritonPythonModel:\n  def initialize(self, args): os._exit(3)\n"
    (broken / "prefill" / "1" / "model.py").write_text(code)
    with pytest.raises(TandemError, match="model 'prefill_0' does not load"):
        TritonServer(deployment, templates=broken).start()


def test_server_that_is_never_ready_meets_the_deadline(
    deployment: Deployment, templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "STOP_GRACE_S", 0.5)
    slow = shutil.copytree(templates, tmp_path / "templates")
    code = "import time\nclass TritonPythonModel:\n  def initialize(self, args): time.sleep(600)\n"
    (slow / "prefill" / "1" / "model.py").write_text(code)
    server = TritonServer(deployment, templates=slow, ready_timeout_s=2.0)
    with pytest.raises(TandemError, match=r"not ready after 2 s; .*waiting for .*prefill_0") as caught:
        server.start()
    assert caught.value.code == "deadline_exceeded"
    assert find_processes(run_id_of(server)) == []


def test_frozen_server_is_killed(deployment: Deployment, templates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STOP_GRACE_S", 0.5)
    with TritonServer(deployment, templates=templates) as server:
        run_id = run_id_of(server)
        psutil.Process(server.pid).send_signal(signal.SIGSTOP)
    assert find_processes(run_id) == []
    assert shared_memory(run_id) == []


def test_wait_returns_when_the_server_is_killed(deployment: Deployment, templates: Path) -> None:
    with TritonServer(deployment, templates=templates) as server:
        run_id = run_id_of(server)
        psutil.Process(server.pid).kill()
        assert server.wait() == -9
    assert find_processes(run_id) == []


def test_nothing_outlives_an_owner_that_is_killed(deployment: Deployment, templates: Path, tmp_path: Path) -> None:
    file = tmp_path / "deployment.json"
    file.write_bytes(to_json(deployment))
    command = [sys.executable, "-c", OWNER, str(file), str(templates)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        run_id = owner.stdout.readline().strip()
        assert len(find_processes(run_id)) >= 5, "server, two stubs, two children of theirs"
        owner.kill()
    await_true(lambda: not find_processes(run_id), "processes of a dead owner still live")
    await_true(lambda: not shared_memory(run_id), "shared memory of a dead owner is still there")
