"""How the fake behaves: read from the environment whenever it matters, so that it reaches other processes, too.

==============================  ========================================================================================
FAKE_TRTLLM_VERSION             ``1.2`` (default), ``1.3`` or ``1.4``: whose fields and manners it has
FAKE_TRTLLM_STEP_MS             how long a step takes (0.5)
FAKE_TRTLLM_PREFILL_US          and how much longer for each prompt token read in it (0)
FAKE_TRTLLM_TRANSFER_MS         how long a transfer of KV takes (0)
FAKE_TRTLLM_BLOCKING_TRANSFERS  1: an engine that only waits for KV hears nothing else (so it is in 1.2's sources)
FAKE_TRTLLM_VOCAB               vocabulary, where the model directory does not say (32000)
FAKE_TRTLLM_KV_BLOCKS           blocks of KV (512)
FAKE_TRTLLM_EOS_AFTER           every answer ends with its end token after so many others (never)
FAKE_TRTLLM_DROP_END            1: the end token is not among the tokens of an answer (the sources do not say for sure)
FAKE_TRTLLM_GPUS                devices there are (1)
FAKE_TRTLLM_FAULTS              faults, by commas: see ``_faults.py``
==============================  ========================================================================================
"""

from __future__ import annotations

import os

VERSION_NUMBERS = {"1.2": "1.2.1", "1.3": "1.3.0rc29", "1.4": "1.4.0rc1"}


def version() -> str:
    """Whose manners: ``1.2``, ``1.3`` or ``1.4``."""
    chosen = os.environ.get("FAKE_TRTLLM_VERSION", "1.2")
    if chosen not in VERSION_NUMBERS:
        raise ImportError(f"FAKE_TRTLLM_VERSION is {chosen!r}: expected one of {', '.join(VERSION_NUMBERS)}")
    return chosen


def number(name: str, default: float) -> float:
    """A number of the environment."""
    return float(os.environ.get(f"FAKE_TRTLLM_{name}", default))
