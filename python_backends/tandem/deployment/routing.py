"""``[routing]``: which workers a request gets."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from tandem.deployment.base import Section


class Routing(Section, frozen=True, kw_only=True):
    """Which workers a request gets."""

    policy: Literal["kv", "least_loaded", "power_of_two", "round_robin", "random"] = "kv"
    spread: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Of policy ``kv``: workers whose cost exceeds the least by no more than this part of it share the requests."""
    lending: bool = True
    """Of policy ``kv``: a prefill worker gets the KV of what another worker has read before from there, where that is
    quicker than to compute it; so of the two workers of a request only one keeps its KV when memory is short.
    TensorRT-LLM does not let its cache be read."""
    conditional_disaggregation: bool = True
    """A request goes to its decode worker whole where that takes less than taking it apart."""
