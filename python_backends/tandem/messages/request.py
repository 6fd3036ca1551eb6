"""What a request asks for."""

from __future__ import annotations

from typing import Literal

from tandem.messages.base import Message

GuideKind = Literal["json", "json_schema", "regex", "ebnf_grammar", "structural_tag"]
"""As Triton's TensorRT-LLM models call them. ``json``: any JSON, and no text comes with it."""


class Guide(Message, frozen=True, kw_only=True):
    """What an answer's text has to be: one of a kind."""

    kind: GuideKind
    text: str = ""
    """The schema, expression, grammar or tag."""


class Sampling(Message, frozen=True, kw_only=True):
    """How a token is chosen. ``temperature`` 0 is greedy; 0 / 1.0 switch the other filters off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logprobs: int | None = None
    """None: no log-probabilities; n: those of the chosen token and of the n likeliest."""
    guide: Guide | None = None
    lora_task_id: int | None = None
    """Which of the deployment's LoRA adapters the model wears; None: none."""


class Stopping(Message, frozen=True, kw_only=True):
    """When an answer ends. Stop strings are the orchestrator's: an engine knows tokens only."""

    max_tokens: int
    """Most tokens in the whole answer, replayed ones included."""
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    """End-of-text tokens of the model included, unless the request ignores them."""
