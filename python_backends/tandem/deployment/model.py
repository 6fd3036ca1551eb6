"""``[model]``: the checkpoint."""

from __future__ import annotations

from typing import Literal

from tandem.deployment.base import PositiveInt, Section


class Model(Section, frozen=True, kw_only=True):
    """The checkpoint, as ``build/`` writes it, and how it is computed."""

    path: str
    """Directory with config.json, *.safetensors and tokenizer.json; relative to the deployment file."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_model_len: PositiveInt | None = None
    """Most tokens of prompt and answer together; the model's own context when left out."""
