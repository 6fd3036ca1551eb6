"""What tells two models apart: a hash over the configuration and all weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from conversion.source import TensorSpec


class WeightsHash:
    """Collects the tensors in any order; the result does not depend on it, nor on how files were cut."""

    def __init__(self) -> None:
        self._tensors: dict[str, str] = {}

    def add(self, spec: TensorSpec, data: bytes | memoryview) -> None:
        """Take one tensor."""
        about = json.dumps([spec.name, spec.dtype, spec.shape]).encode()
        self._tensors[spec.name] = hashlib.sha256(about + b"\0" + hashlib.sha256(data).digest()).hexdigest()

    def fingerprint(self, config: dict[str, Any]) -> str:
        """SHA-256, in hex, over ``config`` (keys in any order) and all tensors taken."""
        whole = json.dumps([config, self._tensors], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(whole.encode()).hexdigest()
