"""A mixture of requests: short ones of all kinds, chats, and long prompts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.disruption.cluster import Cluster, url_of
from tests.disruption.load import TIMEOUT_S, make_requests
from tests.integration.clients import Answer, ask_all

CLOSE_CALL = 0.05
"""Where two tokens are as near to each other as that (of the logarithm), another rounding might prefer the other."""
CHATS = 16
LONG = 12
TOKENS = 16


def make_mixture(cluster: Cluster) -> list[dict[str, Any]]:
    """Short ones, and of the others those none of whose choices is a close call."""
    candidates = [make_chat(n) for n in range(CHATS)] + [make_long(n) for n in range(LONG)]
    whole = [item | {"stream": False, "top_logprobs": 2} for item in candidates]
    answers = asyncio.run(ask_all(url_of(cluster.gateways[0]), "llm", whole, at_once=8))
    clear = [item for item, answer in zip(candidates, answers, strict=True) if is_clear(answer)]
    return make_requests() + clear


def make_chat(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Tell me something about the number {number + 2}."}]
    return {"messages": json.dumps(messages), "max_tokens": TOKENS, "stream": True, "timeout_s": TIMEOUT_S}


def make_long(number: int) -> dict[str, Any]:
    """Some hundred tokens."""
    text = " ".join(f"Room {10 * number + n} of the museum shows {n + 3} paintings." for n in range(18))
    return {"text_input": text, "max_tokens": TOKENS, "stream": True, "timeout_s": TIMEOUT_S}


def is_clear(answer: Answer) -> bool:
    """Whether each token was better than the next one by more than ``CLOSE_CALL``."""
    if answer.error is not None:
        raise RuntimeError(f"while nothing was disturbed: {answer.error}")
    places = json.loads(answer.facts["top_log_probs"])
    return all(best - second > CLOSE_CALL for (_, best), (_, second) in places)
