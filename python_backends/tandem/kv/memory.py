"""KV memory in a host's RAM, which other processes of this host can map: what lies next door is copied, not asked for.

It is an anonymous file. Whoever may look at its owner's files (the same user) maps it through /proc, and copies at the
speed of memcpy; there is no name to clean up, and a mapping outlives the owner. A token behind the last byte tells
whether a process number means here what it means there: in another container or on another host it does not.
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

import numpy as np
import numpy.typing as npt

from tandem.messages import SharedMemory

Bytes = npt.NDArray[np.uint8]

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
        os.ftruncate(file, num_bytes + _TOKEN_BYTES)
        self.buffer = mmap.mmap(file, num_bytes + _TOKEN_BYTES)
        """The memory itself; what comes behind ``num_bytes`` is not to be written."""
        with contextlib.suppress(OSError):  # a kernel without huge pages
            self.buffer.madvise(mmap.MADV_HUGEPAGE)
        token = secrets.token_bytes(_TOKEN_BYTES)
        self.buffer[num_bytes:] = token
        self.place = SharedMemory(pid=os.getpid(), file=file, num_bytes=num_bytes, token=token)
        _populate(self.array, _POPULATE_WRITE)

    @property
    def array(self) -> Bytes:
        """The memory: [num_bytes]."""
        return np.frombuffer(self.buffer, dtype=np.uint8, count=self.place.num_bytes)


def map_shared(place: SharedMemory) -> Bytes | None:
    """Another process's ``HostMemory``, read-only: [num_bytes]. None: it is not within reach."""
    path, size = Path(f"/proc/{place.pid}/fd/{place.file}"), place.num_bytes + _TOKEN_BYTES
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
    if buffer[place.num_bytes :] != place.token:
        return None
    return np.frombuffer(buffer, dtype=np.uint8, count=place.num_bytes)


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
