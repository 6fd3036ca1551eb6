"""KV memory in a host's RAM, which other processes of this host can map: what lies next door is copied, not asked for.

It is an anonymous file. Whoever may look at its owner's files (the same user) maps it through /proc, and copies at the
speed of memcpy; there is no name to clean up, and a mapping outlives the owner. Behind the blocks stand the leases that
hold, so that who has copied blocks sees whether they were untouched; and a token, which tells whether a process number
means here what it means there: in another container or on another host it does not.

    blocks │ lease words, one for each lease that holds │ token
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import secrets
import threading
import weakref
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tandem.messages import SharedMemory

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

LEASE_WORDS = 4096
"""Leases that can be seen to hold at a time; whoever does not find one asks."""
_WORD_BYTES = 8
_TOKEN_BYTES = 16
_POPULATE_READ, _POPULATE_WRITE = 22, 23
"""linux/mman.h"""
_POPULATE_AT_ONCE = 64 << 20


class HostMemory:
    """Zeroed memory that can be mapped by others as long as this object lives."""

    def __init__(self, num_bytes: int) -> None:
        """Raises OSError where the machine cannot give it."""
        file = os.memfd_create("tandem-kv")
        weakref.finalize(self, os.close, file)
        os.ftruncate(file, _size(num_bytes))
        self.buffer = mmap.mmap(file, _size(num_bytes))
        """The memory itself; what comes behind ``num_bytes`` is not to be written."""
        with contextlib.suppress(OSError):  # a kernel without huge pages
            self.buffer.madvise(mmap.MADV_HUGEPAGE)
        token = secrets.token_bytes(_TOKEN_BYTES)
        self.buffer[-_TOKEN_BYTES:] = token
        self.place = SharedMemory(pid=os.getpid(), file=file, num_bytes=num_bytes, token=token)
        _populate(self.array, _POPULATE_WRITE)

    @property
    def array(self) -> Bytes:
        """The memory: [num_bytes]."""
        return np.frombuffer(self.buffer, dtype=np.uint8, count=self.place.num_bytes)

    @property
    def lease_words(self) -> Words:
        """For ``LeaseTable``: [LEASE_WORDS]."""
        return _words_in(self.buffer, self.place.num_bytes)


class MappedMemory(NamedTuple):
    """Another process's ``HostMemory``, read-only."""

    array: Bytes
    """[num_bytes]."""
    lease_words: Words
    """[LEASE_WORDS]."""


def map_shared(place: SharedMemory) -> MappedMemory | None:
    """Another process's ``HostMemory``. None: it is not within reach."""
    path, size = Path(f"/proc/{place.pid}/fd/{place.file}"), _size(place.num_bytes)
    try:
        found = path.stat()  # before it is opened: the number may mean anything here
        if not S_ISREG(found.st_mode) or found.st_size != size:
            return None
        file = os.open(path, os.O_RDONLY)
        try:
            buffer = mmap.mmap(file, size, prot=mmap.PROT_READ)
        finally:
            os.close(file)
    except (OSError, ValueError):
        return None
    if buffer[-_TOKEN_BYTES:] != place.token:
        return None
    array = np.frombuffer(buffer, dtype=np.uint8, count=place.num_bytes)
    return MappedMemory(array, _words_in(buffer, place.num_bytes))


def _size(num_bytes: int) -> int:
    """Of the file."""
    return num_bytes + (LEASE_WORDS + 1) * _WORD_BYTES + _TOKEN_BYTES


def _words_in(buffer: mmap.mmap, num_bytes: int) -> Words:
    aligned = -(-num_bytes // _WORD_BYTES) * _WORD_BYTES
    return np.frombuffer(buffer, dtype=np.uint64, count=LEASE_WORDS, offset=aligned)


def populate(mapped: Bytes) -> None:
    """Have all pages of what ``map_shared`` gave there soon."""
    _populate(mapped, _POPULATE_READ)


def _populate(memory: Bytes, advice: int) -> None:
    """Have all pages there soon. Else a pull into memory that was never used takes a page fault for each of its pages,
    and with them several times as long."""

    def run() -> None:
        for start in range(0, memory.size, _POPULATE_AT_ONCE):
            length = min(_POPULATE_AT_ONCE, memory.size - start)
            if madvise(memory.ctypes.data + start, length, advice):
                return  # Linux before 5.14: pages come when they are touched

    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    threading.Thread(target=run, name="kv-populate", daemon=True).start()
