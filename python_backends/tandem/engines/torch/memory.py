"""Makes the operating system's memory quick enough for a decode step. Linux; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path

log = logging.getLogger(__name__)

HUGE_PAGE = 2 << 20
_MADV_COLLAPSE = 25
"""Since Linux 6.1: gather into huge pages at once what is there already. linux/mman.h"""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""malloc.h of glibc"""
_LARGEST_MMAP_THRESHOLD = 32 << 20


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, instead of giving it back and getting it again page by page.

    A step allocates and frees the same few megabytes in every layer; the page faults took longer than the attention
    itself (measured: 66 against 17 ms a pass). Call it before the first step.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def collapse_private_memory() -> None:
    """Move all private anonymous memory of this process into huge pages; call when the weights are in place.

    Reading weights is most of a decode step, and with 4 KiB pages a third of that goes into looking up addresses
    (measured in a VM, one thread: 19 against 28 GB/s). The weights are many pieces smaller than a huge page, in
    memory of oneDNN's own, so it cannot be done where they are allocated. Contents stay; where the kernel refuses,
    so does everything else.
    """
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in _private_ranges():
        first, last = -(-start // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
        if last > first and madvise(first, last - first, _MADV_COLLAPSE) != 0:
            log.debug("no huge pages for %d bytes: errno %d", last - first, ctypes.get_errno())


def _private_ranges() -> list[tuple[int, int]]:
    """Writable anonymous mappings, stacks and the like left out: (start, end) addresses."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _offset, _device, inode, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = addresses.split("-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges
