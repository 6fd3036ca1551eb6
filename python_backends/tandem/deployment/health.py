"""``[health]``: when a worker is taken to hang."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from tandem.deployment.base import PositiveFloat, Section


class Health(Section, frozen=True, kw_only=True):
    """When a worker that still answers is taken to hang, and how it comes back."""

    silence_s: PositiveFloat = 5.0
    """An engine gives a sign of life twice a second; one that gives none for as long is out."""
    stall_s: PositiveFloat = 10.0
    """So long an engine with work may stand still, at least. One whose steps are long gets ``stall_factor`` of them."""
    stall_factor: Annotated[float, Meta(ge=1)] = 4.0
    first_step_s: PositiveFloat = 120.0
    """For the first step of a new engine, which may have to compile."""
    stuck_s: PositiveFloat = 30.0
    """So long an answer that is being written may get no token while others do."""
    back_off_s: PositiveFloat = 1.0
    """From suspicion to the first probe; doubled with each that fails."""
    max_back_off_s: PositiveFloat = 60.0
