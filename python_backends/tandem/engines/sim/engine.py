"""The engine ``sim``: a simulated worker by the real clock, with handles, leases and pulls of the real kind.

Its KV blocks are real memory of a few bytes each, moved by NIXL as a real engine's are; the bytes that it reports are
these. What it does not exercise: a model, KV of full size, and groups of ranks: it is one process, whatever number of
GPUs its profile stands for.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from tandem.deployment import Deployment, Worker
from tandem.engines.base import Engine, EventSink, LoadingSink
from tandem.engines.identity import make_worker_id
from tandem.engines.sim.contents import NAME_BYTES, BlockContents
from tandem.engines.sim.profiles import Profile, find_profile
from tandem.engines.sim.timing import Timing
from tandem.engines.sim.worker import SimulatedWorker
from tandem.engines.torch.handover import HandOver
from tandem.engines.torch.leader import Leader
from tandem.engines.torch.pace import Pace
from tandem.engines.torch.scheduler import Scheduler
from tandem.errors import TandemError
from tandem.keys import load_keys
from tandem.kv.handle import require_compatible
from tandem.kv.leases import LeaseTable
from tandem.kv.prefix_cache import PrefixCache
from tandem.kv.transfer import KvTransfer
from tandem.messages import AnyWork, KvFormat, Load, Partition, WorkerInfo
from tandem.parallel.group import RankGroup

IDLE_S = 0.1
"""How long an idle engine sleeps before it looks for leases that have run out."""
HUNGRY_S = 0.002
"""The same while something waits for blocks: a lease may end, and free some, at any moment."""
LOADING_REPORT_S = 0.5
STOP_TIMEOUT_S = 30.0


def create(deployment: Deployment, worker: Worker, epoch: int, loading: LoadingSink) -> Engine:
    """Build the engine of one worker (an ``EngineFactory``), after as long as its profile says that this takes.

    Raises:
        TandemError: what in deployment, environment or model directory is wrong.
    """
    keys = load_keys()
    profile = find_profile(worker.profile or "")
    timing = msgspec.structs.replace(profile.timing, **worker.timing)
    vocab_size = read_vocab_size(Path(deployment.model.path))
    num_blocks = count_blocks(worker, timing, deployment.kv.block_size)
    pool = PrefixCache(num_blocks, enabled=deployment.kv.prefix_cache)
    kv = make_kv_format(profile, deployment.model.dtype, deployment.kv.block_size)
    contents = BlockContents(num_blocks, kv.num_layers * kv.num_kv_heads * kv.slice_bytes)
    leases = LeaseTable(pool, deployment.kv.lease_s, words=contents.lease_words)
    _pretend_to_load(timing.start_s, loading)
    transfer = _start_transfer(
        f"{make_worker_id(worker)}-{epoch:x}", leases, contents, kv, num_blocks, deployment.kv.transfer_timeout_s
    )
    info = WorkerInfo(
        worker_id=make_worker_id(worker),
        epoch=epoch,
        stage=worker.stage,
        engine="sim",
        kv=kv,
        vocab_size=vocab_size,
        max_model_len=deployment.model.max_model_len or profile.context,
        max_batch_size=worker.max_batch_size,
        transfers=[transfer.info],
    )
    pace = Pace(1e-3 * deployment.limits.max_inter_token_ms)
    scheduler = Scheduler(pool, worker.max_batch_size, worker.max_batch_tokens, pace)
    handover = HandOver(info, leases, transfer, Leader(RankGroup.current()), keys)
    inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    simulated = SimulatedWorker(
        info,
        timing,
        scheduler,
        leases,
        handover,
        transfer,
        contents=contents,
        faults=worker.faults,
        on_pulled=lambda: inbox.put(lambda: None),
    )
    return SimEngine(simulated, transfer, inbox)


def make_kv_format(profile: Profile, dtype: str, block_size: int, *, as_modelled: bool = False) -> KvFormat:
    """Layers and heads are the model's, so that what would not fit does not fit. A slice is as small as can be, or with
    ``as_modelled`` as large as the model's."""
    slices = profile.num_layers * profile.num_kv_heads
    modelled = int(profile.timing.kv_bytes_per_token * block_size / slices)
    return KvFormat(
        fingerprint=f"sim {profile.model}",
        dtype=dtype,
        layout="sim",
        block_size=block_size,
        num_layers=profile.num_layers,
        num_kv_heads=profile.num_kv_heads,
        slice_bytes=modelled if as_modelled else max(1, NAME_BYTES // slices),
    )


def count_blocks(worker: Worker, timing: Timing, block_size: int) -> int:
    """How many blocks of the modelled size fit into ``kv_memory``.

    Raises:
        TandemError: ``invalid_request``: not even one.
    """
    block_bytes = timing.kv_bytes_per_token * block_size
    if (count := int(worker.kv_bytes // block_bytes)) < 1:
        raise TandemError(
            "invalid_request",
            f"worker.kv_memory: {worker.kv_memory} holds no KV block of {int(block_bytes)} bytes "
            f"(profile {worker.profile!r})",
        )
    return count


def read_vocab_size(model_dir: Path) -> int:
    """Token ids are below this: all that is read of a model.

    Raises:
        TandemError: ``invalid_request``, naming the file.
    """
    path = model_dir / "config.json"
    try:
        return int(json.loads(path.read_bytes())["vocab_size"])
    except (OSError, ValueError, KeyError) as error:
        raise TandemError("invalid_request", f"cannot read the field vocab_size of {path}: {error!r}") from error


def _pretend_to_load(seconds: float, loading: LoadingSink) -> None:
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        loading("simulated weights", passed / seconds)
        time.sleep(min(LOADING_REPORT_S, seconds - passed))
    loading("transfer", 0.0)


def _start_transfer(
    name: str, leases: LeaseTable, contents: BlockContents, kv: KvFormat, num_blocks: int, timeout_s: float
) -> KvTransfer:
    transfer = KvTransfer(
        leases=leases,
        agent_name=name,
        address=contents.address,
        shared=contents.shared,
        block_bytes=kv.num_layers * kv.num_kv_heads * kv.slice_bytes,
        num_blocks=num_blocks,
        memory="DRAM",
        device_id=0,
        timeout_s=timeout_s,
        kv=kv,
        partition=Partition(),
    )
    transfer.start()
    return transfer


class SimEngine:
    """A thread that drives a simulated worker by the real clock (an ``Engine``)."""

    def __init__(
        self, worker: SimulatedWorker, transfer: KvTransfer, inbox: queue.SimpleQueue[Callable[[], None]]
    ) -> None:
        """``inbox`` is where others put what the thread has to do; ``transfer`` has been started."""
        self._worker, self._transfer, self._inbox = worker, transfer, inbox
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._last_load: Load | None = None

    @property
    def info(self) -> WorkerInfo:
        """Who this worker is."""
        return self._worker.info

    def start(self, sink: EventSink) -> None:
        """Begin to take work; every event goes to ``sink``."""
        self._sink = sink
        self._thread.start()

    def submit(self, work: list[AnyWork]) -> None:
        """Queue work; what cannot be done ends in a ``Failed`` event."""
        self._inbox.put(partial(self._worker.submit, work, time.monotonic()))

    def cancel(self, request_ids: list[str]) -> None:
        """Stop these requests before the next step, and end the leases they hold."""
        self._inbox.put(partial(self._worker.cancel, request_ids))

    def pair(self, peer: WorkerInfo) -> None:
        """Get ready to move KV to or from ``peer``.

        Raises:
            TandemError: ``worker_incompatible``, naming in what the two differ.
        """
        require_compatible(self.info, peer)
        peers = self._worker.handover.peers
        known = peers.get(peer.worker_id)
        if known is None or peer.epoch >= known.epoch:
            self._transfer.pair(peer)
            peers[peer.worker_id] = peer

    def unpair(self, worker_id: str) -> None:
        """Forget a peer that is gone for good; an unknown one is no error."""
        if self._worker.handover.peers.pop(worker_id, None) is not None:
            self._transfer.unpair(worker_id)

    def stop(self) -> None:
        """End all threads. Running requests are dropped."""
        self._stopping = True
        self._inbox.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
        self._transfer.stop()

    def _run(self) -> None:
        while not self._stopping:
            while not self._inbox.empty():
                self._inbox.get()()
            self._report(time.monotonic())
            self._wait()

    def _report(self, now: float) -> None:
        """Hand over what has happened, and the load wherever it changed."""
        events, load, kv = self._worker.advance(now), self._worker.load, self._worker.take_kv_events()
        if events or kv or load != self._last_load:
            self._last_load = load
            self._sink(events, load, kv)

    def _wait(self) -> None:
        longest = HUNGRY_S if self._worker.load.queued else IDLE_S
        next_at = self._worker.next_at
        pause = longest if next_at is None else min(longest, next_at - time.monotonic())
        if pause <= 0:
            return
        try:
            command = self._inbox.get(timeout=pause)
        except queue.Empty:
            return
        command()
