"""The engines that the suite is for. A new one joins by one line in ``SUBJECTS``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.deployment import Deployment, Kv, Model, Worker
from tests.unit.engines.torch.support import make_model

LEASE_S = 60.0
BLOCK_SIZE = 4
MAX_MODEL_LEN = 512


@dataclass(frozen=True)
class Subject:
    """An engine, and the fields of [[worker]] that choose it and gives it KV memory."""

    engine: str
    token_bytes: int
    worker: dict[str, Any]

    def deploy(self, model_dir: Path, *, lease_s: float = LEASE_S, blocks: int = 1000, **kv: Any) -> Deployment:
        """A prefill and two decode workers, and two for both stages, with room for ``blocks`` blocks each."""
        kib = -(-blocks * BLOCK_SIZE * self.token_bytes // 1024)
        common = {"threads": 1, "max_batch_size": 8, "kv_memory": f"{kib}KiB", "engine": self.engine} | self.worker
        return Deployment(
            name="conformance",
            model=Model(path=str(model_dir), dtype="float32", max_model_len=MAX_MODEL_LEN),
            worker=[
                Worker(name="prefill_0", stage="prefill", **common),
                Worker(name="decode_0", stage="decode", **common),
                Worker(name="decode_1", stage="decode", **common),
                Worker(name="both_0", stage="both", **common),
                Worker(name="both_1", stage="both", **common),
            ],
            kv=Kv(block_size=BLOCK_SIZE, lease_s=lease_s, **kv),
        )


SUBJECTS = [
    Subject("torch", token_bytes=3 * 2 * 2 * 16 * 4, worker={}),
    Subject("sim", token_bytes=1024, worker={"profile": "instant", "timing": {"overhead_s": 1e-3}}),
]


def make_model_dir(directory: Path) -> Path:
    """A small random model, which all of them can serve: 400 tokens, and a context of 512."""
    return make_model("llama", directory)
