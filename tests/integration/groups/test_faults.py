"""Ranks killed or stopped under 32 running requests: every request ends, with the cause, and the group is back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import msgspec
import psutil
import pytest

from tandem.deployment import Deployment, Health, Kv, Limits, Model, Parallel, Worker
from tandem.triton.processes import find_processes
from tandem.triton.server import TritonServer
from tests.checkpoints import make_random_model
from tests.integration.clients import Answer, ask_now
from tests.integration.test_cancellation import assert_nothing_left
from tests.integration.test_faults import (
    LONG,
    assert_answers_again,
    assert_new_epoch,
    epoch_of,
    streams_until,
)

REQUESTS = 32
FATES = {
    signal.SIGKILL: "was killed by SIGKILL",
    signal.SIGSTOP: "has been silent for 3 s: it is stopped",
}
HANG_TIMEOUT_S = 3.0


@pytest.fixture(scope="module")
def server(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Two ranks for prefill, two for decode. Supervision itself is tested with both kinds of MPI."""
    directory = tmp_path_factory.mktemp("model")
    model = make_random_model("llama", directory, max_position_embeddings=4096)
    common = {"tensor_parallel_size": 2, "threads": 1, "kv_memory": "64MiB", "max_batch_size": REQUESTS}
    with TritonServer(
        msgspec.structs.replace(
            deployment,
            name="groups",
            model=Model(path=str(model), dtype="float32"),
            worker=[
                Worker(name="prefill_0", stage="prefill", **common),
                Worker(name="decode_0", stage="decode", **common),
            ],
            kv=Kv(lease_s=5.0, transfer_timeout_s=5.0),
            limits=Limits(max_migrations=0),  # so that clients hear of the cause
            health=Health(silence_s=30.0),
            parallel=Parallel(mpi="mpich", hang_timeout_s=HANG_TIMEOUT_S),
        )
    ) as running:
        yield running


def find_rank(server: TritonServer, worker: str, rank: int) -> psutil.Process:
    """The process of one rank: the last of three, after the one that mpiexec knows and the guard."""
    run_id = (server.run_directory / "run_id").read_text()
    found = []
    for process in find_processes(run_id):
        command, environment = process.cmdline(), process.environ()
        numbers = environment.get("PMI_RANK"), environment.get("OMPI_COMM_WORLD_RANK")
        if "tandem.parallel.rank" in command and worker in command and str(rank) in numbers:
            found.append(process)
    assert len(found) == 3, f"rank {rank} of {worker}: {found}"
    return max(found, key=lambda process: len(process.parents()))


def assert_told(answers: list[Answer], worker: str, rank: int, fate: str) -> None:
    """Every request ended, in good order or with an error: the cause, from the group that had it. A pull under way says
    what it saw, and who was about to come that nobody is there."""
    assert len(answers) == REQUESTS
    failed = [answer.error for answer in answers if answer.error is not None]
    assert failed
    for error in failed:
        assert worker in error
        if "[transfer_failed]" in error:
            continue
        assert "[worker_lost]" in error
        if f"worker {worker} is not ready: worker {worker} has lost its engine or restarted" not in error:
            assert f"rank {rank} " in error
            assert fate in error


@pytest.mark.parametrize(
    ("worker", "rank", "number"),
    [
        ("decode_0", 0, signal.SIGKILL),
        ("decode_0", 0, signal.SIGSTOP),
        ("decode_0", 1, signal.SIGSTOP),
        ("prefill_0", 1, signal.SIGKILL),
    ],
)
def test_a_lost_rank(server: TritonServer, worker: str, rank: int, number: signal.Signals) -> None:
    fate = FATES[number]
    old, process = epoch_of(server, worker), find_rank(server, worker, rank)
    prompt = "word " * 200 if worker == "prefill_0" else "Tell me a very long story."
    inputs = [LONG | {"text_input": f"{n} {prompt}", "max_tokens": 1000} for n in range(REQUESTS)]
    wanted = 1 if worker == "prefill_0" else REQUESTS
    answers = asyncio.run(
        streams_until(server, inputs, lambda begun: begun >= wanted, lambda: process.send_signal(number))
    )
    assert_told(answers, worker, rank, fate)
    assert_answers_again(server)
    assert_new_epoch(server, worker, old)
    assert_nothing_left(server)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_handle_does_not_outlive_the_group_that_gave_it(server: TritonServer) -> None:
    prompt = list(range(50, 90))
    first = ask_now(server.grpc_url, "prefill_0", {"input_ids": prompt, "max_tokens": 8})
    assert first.error is None
    old = epoch_of(server, "prefill_0")
    find_rank(server, "prefill_0", 1).kill()
    assert_new_epoch(server, "prefill_0", old)
    assert_answers_again(server)  # the workers have met
    redeemed = {"input_ids": prompt, "output_ids": first.output_ids, "kv_handle": first.facts["kv_handle"]}
    answer = ask_now(server.grpc_url, "decode_0", redeemed | {"max_tokens": 8})
    assert answer.error is not None
    assert "[handle_stale_epoch]" in answer.error
    assert_nothing_left(server)
