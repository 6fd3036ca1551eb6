"""The engines that the suite is for. A new one joins by one line in ``SUBJECTS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tandem.deployment import Deployment, Kv, Model, Worker
from tandem.engines.base import Engine
from tandem.engines.registry import find_engine
from tandem.messages import Role
from tests import fakes
from tests.unit.engines.torch.support import make_model

LEASE_S = 60.0
BLOCK_SIZE = 4
MAX_MODEL_LEN = 512
WORKERS: dict[str, Role] = {
    "prefill_0": "prefill",
    "decode_0": "decode",
    "decode_1": "decode",
    "both_0": "both",
    "both_1": "both",
}


@dataclass(frozen=True)
class Subject:
    """An engine, and the fields of [[worker]] that choose it and give it KV memory."""

    engine: str
    token_bytes: int
    worker: dict[str, Any]
    is_fake: bool = False
    """Its library is a stand-in."""
    environment: dict[str, str] = field(default_factory=dict)
    stall: dict[str, str] = field(default_factory=dict)
    """Environment of a prefill worker from which no KV comes. None is needed where it need only not know its peer."""
    samples_alike: bool = True
    """What it samples depends on seed and place alone, whichever worker does it, and after whatever stage."""
    dtype: str = "float32"
    block_size: int = BLOCK_SIZE
    devices: dict[str, str] = field(default_factory=dict)
    """By worker, where they are not those of ``worker``."""
    start: Callable[[Deployment, Worker, int], Engine] | None = None
    """Builds an engine, given its epoch; None: in this process."""
    moves_kv_itself: bool = True
    """Else the engine's library does: a lease then ends before the transfer, and what was given up stays where it is
    until the library's own time for it is over."""

    def prepare(self, patch: pytest.MonkeyPatch) -> None:
        """What it needs around it."""
        for name, value in self.environment.items():
            patch.setenv(name, value)
        if self.is_fake:
            fakes.use(patch)

    def build(self, deployment: Deployment, worker: Worker, epoch: int) -> Engine:
        """The engine of one worker."""
        if self.start is not None:
            return self.start(deployment, worker, epoch)
        return find_engine(self.engine)(deployment, worker, epoch, lambda _what, _done: None)

    def deploy(self, model_dir: Path, *, lease_s: float = LEASE_S, blocks: int | None = None, **kv: Any) -> Deployment:
        """A prefill and two decode workers, and two for both stages, with room for ``blocks`` blocks of ``BLOCK_SIZE``
        tokens each."""
        blocks = blocks or (1000 if self.moves_kv_itself else 20_000)  # what was given up adds up
        kib = -(-blocks * BLOCK_SIZE * self.token_bytes // 1024)
        common = {"threads": 1, "max_batch_size": 8, "kv_memory": f"{kib}KiB", "engine": self.engine} | self.worker
        return Deployment(
            name="conformance",
            model=Model(path=str(model_dir), dtype=self.dtype, max_model_len=MAX_MODEL_LEN),  # type: ignore[arg-type]
            worker=[
                Worker(name=name, stage=stage, **common | ({"devices": [d]} if (d := self.devices.get(name)) else {}))
                for name, stage in WORKERS.items()
            ],
            kv=Kv(block_size=self.block_size, lease_s=lease_s, **kv),
        )


SUBJECTS = [
    Subject("torch", token_bytes=3 * 2 * 2 * 16 * 4, worker={}),
    Subject(
        "tensorrt_llm",
        token_bytes=3 * 2 * 2 * 16 * 4,
        worker={"devices": ["cuda:0"]},
        is_fake=True,
        environment={
            "FAKE_TRTLLM_KV_BLOCKS": "100000",
            "CUDA_VISIBLE_DEVICES": "0",
            "TRTLLM_VISIBLE_DEVICES": "0",
            "TRTLLM_NO_USAGE_STATS": "1",
        },
        stall={"FAKE_TRTLLM_FAULTS": "transfer_lost"},
        moves_kv_itself=False,
    ),
    Subject("sim", token_bytes=1024, worker={"profile": "instant", "timing": {"overhead_s": 1e-3}}),
]


def make_model_dir(directory: Path) -> Path:
    """A small random model, which all of them can serve: 400 tokens, and a context of 512."""
    return make_model("llama", directory)
