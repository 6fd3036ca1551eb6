"""Huge pages: what the kernel was really told."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from tandem.kv.memory import advise_huge_pages

SIZE = 8 << 20


def flags_at(address: int) -> list[str]:
    """The kernel's flags of the mapping that holds ``address``."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(x, 16) for x in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    raise AssertionError("no such mapping")


def test_memory_is_marked_for_huge_pages() -> None:
    memory = np.frombuffer(mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=np.uint8)
    middle = memory.ctypes.data + SIZE // 2
    assert "hg" not in flags_at(middle)
    assert advise_huge_pages(memory.ctypes.data, SIZE)
    assert "hg" in flags_at(middle)


def test_less_than_a_page_cannot_be_marked() -> None:
    memory = np.zeros(100, dtype=np.uint8)
    assert not advise_huge_pages(memory.ctypes.data + 1, 50)


def test_foreign_memory_is_refused_quietly() -> None:
    assert not advise_huge_pages(4096, SIZE)
