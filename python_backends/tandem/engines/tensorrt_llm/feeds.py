"""The library's statistics and KV events. Each can be read once, so each has one reader."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

from tandem.engines.tensorrt_llm.library import Library

log = logging.getLogger(__name__)

Feed = Literal["get_stats", "get_kv_cache_events"]

FOREVER_S = 1e6
"""A feed that has been empty for as long as it was to wait is dead until the next request, and what comes between is
late: so it waits for ever."""
CALL_S = 0.5
"""How long a call waits that blocks a thread."""
PAUSE_S = 0.1
"""Before an empty feed is asked again."""
LONGEST_PAUSE_S = 10.0
"""… or a broken one."""


async def follow(library: Library, llm: Any, feed: Feed, take: Callable[[Mapping[str, Any]], None]) -> None:
    """Hand on all that ``feed`` says, for ever. To be begun after the first request: before it there are no feeds.

    A feed that fails is asked again, ever less often: without it only the router is worse off.
    """
    pause = PAUSE_S
    while True:
        try:
            if library.answers_by_call(llm):
                for entry in await asyncio.to_thread(getattr(llm, feed), timeout=CALL_S):
                    take(_read(entry))
            else:
                async for entry in getattr(llm, f"{feed}_async")(timeout=FOREVER_S):
                    take(_read(entry))
            pause = PAUSE_S
        except Exception:
            log.exception("TensorRT-LLM's %s failed; asked again in %g s", feed, pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        await asyncio.sleep(pause)


def _read(entry: Any) -> Mapping[str, Any]:
    """Some versions hand on the text that came from the executor."""
    return json.loads(entry) if isinstance(entry, str) else entry  # type: ignore[no-any-return]
