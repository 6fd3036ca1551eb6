"""How engine processes copy KV: past the processor's caches, which hold little of it anyway.

A plain store first fetches the line that it overwrites, so a copy moves three bytes for each; a non-temporal one moves
two. glibc's memcpy uses those from a size on that is meant for copies larger than the caches. KV that was pulled is
read once per step, from memory for the most part, so in engine processes it begins with a block.
"""

from __future__ import annotations

from collections.abc import Mapping

VARIABLE = "GLIBC_TUNABLES"
"""Read when a process starts; see "Tunables" in glibc's manual. Other C libraries, and other processors, ignore it."""
THRESHOLD = "glibc.cpu.x86_non_temporal_threshold"
PAST_CACHES_BYTES = 256 << 10


def add_copying(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for an engine process. What is set in it already stays."""
    given = environment.get(VARIABLE, "")
    if THRESHOLD in given:
        return dict(environment)
    return {**environment, VARIABLE: ":".join(filter(None, [given, f"{THRESHOLD}={PAST_CACHES_BYTES:#x}"]))}
