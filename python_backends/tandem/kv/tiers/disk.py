"""Blocks as files, one each, that outlive the process.

    <path>/<worker>/lock                           held by the running worker
    <path>/<worker>/<format>/<digest>              header (format, digest, checksum), then the block's bytes

The format is a hash over all that decides what the bytes of a block mean: model, dtype, layout, block size. A worker
finds its files again after a restart, since nothing else than their tokens and that format decides what is in them;
files of another format are removed. A file is written under another name first and not synced: one that a crash of
the machine has torn does not have its checksum.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import xxhash

from tandem.kv.tiers.memory import Bytes

log = logging.getLogger(__name__)

_MAGIC = b"tandem-kv-block1"
_FORMAT_BYTES, _DIGEST_BYTES, _CHECKSUM_BYTES = 16, 32, 16
PAUSE_S = 5.0
"""After an error nothing is written for so long."""
QUIET_S = 10.0
HEADER_BYTES = len(_MAGIC) + _FORMAT_BYTES + _DIGEST_BYTES + _CHECKSUM_BYTES
_FILE_NAME = re.compile(rf"^[0-9a-f]{{{2 * _DIGEST_BYTES}}}(\.part)?$")
_FORMAT_NAME = re.compile(rf"^[0-9a-f]{{{2 * _FORMAT_BYTES}}}$")


class DiskStore:
    """See the module; a ``Store``. Nothing touches the disk before ``open``. Errors are counted and logged."""

    def __init__(self, directory: Path, capacity_bytes: int, block_bytes: int, format_id: bytes) -> None:
        """``directory`` is this worker's own; ``format_id``: 16 bytes that name the format."""
        self._root, self._directory = directory, directory / format_id.hex()
        self._format_id = format_id
        self.file_bytes = HEADER_BYTES + block_bytes
        self.capacity = capacity_bytes // self.file_bytes
        """In blocks."""
        if not self.capacity:
            raise ValueError(f"{capacity_bytes} bytes hold no file of a KV block; one takes {self.file_bytes} bytes")
        self._lock = threading.Lock()
        self._index: OrderedDict[bytes, None] = OrderedDict()
        """Least recently used first."""
        self._lock_file: int | None = None
        self.corrupt = 0
        """Files that were not what they should be."""
        self.errors = 0
        """Times that the disk could not be written to or read from."""
        self._paused_until = 0.0
        self._quiet_until = 0.0

    @property
    def blocks(self) -> int:
        """Files there are."""
        return len(self._index)

    def open(self) -> None:
        """Find what an earlier process has left, once. Whether the directory can be used ``put`` tries anew."""
        self._guard(self._open)

    def close(self) -> None:
        """Let another process have the directory."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None
            self._index = OrderedDict()

    def holds(self, digest: bytes) -> bool:
        """As in ``Store``."""
        return digest in self._index

    def put(self, digest: bytes, data: Bytes) -> bool:
        """As in ``Store``. After an error nothing is tried for a while."""
        return digest in self._index or (
            time.monotonic() >= self._paused_until and self._guard(self._put, digest, data)
        )

    def get(self, digest: bytes, out: Bytes) -> bool:
        """As in ``Store``."""
        if digest not in self._index:
            return False
        path = self._path(digest)
        try:
            whole = self._read(path, digest, out)
        except OSError as error:
            self._forget(digest)
            if not isinstance(error, FileNotFoundError):
                self.errors += 1
            self._warn(f"a KV block is computed anew: {error}")
            return False
        if not whole:
            self.corrupt += 1
            self._warn(f"{path} is not the KV block that it should be; it is computed anew")
            self._remove(digest)
            return False
        with self._lock:
            if digest in self._index:
                self._index.move_to_end(digest)
        with contextlib.suppress(OSError):
            os.utime(path)  # a later process learns from it what was used last
        return True

    def _guard(self, write: Callable[..., None], *arguments: object) -> bool:
        """Whether it went well: no request is to hear of a disk that cannot be written to."""
        try:
            write(*arguments)
        except OSError as error:
            self.errors += 1
            self._paused_until = time.monotonic() + PAUSE_S
            log.warning("no KV blocks are written to disk for %g s: %s", PAUSE_S, error)
            return False
        return True

    def _open(self) -> None:
        if self._lock_file is not None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        lock_file = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_other_formats()
            found = self._list()
        except OSError:
            os.close(lock_file)
            raise
        with self._lock:
            self._index = OrderedDict.fromkeys(found)
        self._lock_file = lock_file
        self._make_room(self.capacity)
        log.info("%s: %d KV blocks of earlier", self._directory, self.blocks)

    def _put(self, digest: bytes, data: Bytes) -> None:
        self._open()
        self._make_room(self.capacity - 1)
        path = self._path(digest)
        part = path.with_suffix(".part")
        try:
            with part.open("wb", buffering=0) as file:
                written = os.writev(file.fileno(), [self._header(digest, data), data.data])
            if written != self.file_bytes:
                raise OSError(f"{part}: {written} of {self.file_bytes} bytes were written; is the disk full?")
            part.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        with self._lock:
            self._index[digest] = None

    def _read(self, path: Path, digest: bytes, out: Bytes) -> bool:
        """Whether the file is all that it should be."""
        header = bytearray(HEADER_BYTES)
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != self.file_bytes:
                return False
            if os.readv(file.fileno(), [header, out.data]) != self.file_bytes:
                return False
        return bytes(header) == self._header(digest, out)

    def _warn(self, text: str) -> None:
        """Say what is wrong with files, not of each of many."""
        if (now := time.monotonic()) >= self._quiet_until:
            self._quiet_until = now + QUIET_S
            log.warning("%s (more of the kind within %g s is not told)", text, QUIET_S)

    def _header(self, digest: bytes, data: Bytes) -> bytes:
        """What a file begins with; the checksum is over format, digest and data."""
        checksum = xxhash.xxh3_128(self._format_id + digest)
        checksum.update(data.data)
        return _MAGIC + self._format_id + digest + checksum.digest()

    def _path(self, digest: bytes) -> Path:
        return self._directory / digest.hex()

    def _make_room(self, most: int) -> None:
        """Remove the least recently used files until there are at most ``most``."""
        while len(self._index) > most:
            with self._lock:
                oldest = next(iter(self._index))
            self._remove(oldest)

    def _remove(self, digest: bytes) -> None:
        self._forget(digest)
        with contextlib.suppress(OSError):
            self._path(digest).unlink()

    def _forget(self, digest: bytes) -> None:
        with self._lock:
            self._index.pop(digest, None)

    def _remove_other_formats(self) -> None:
        for entry in self._root.iterdir():
            if _FORMAT_NAME.match(entry.name) and entry != self._directory:
                log.info("%s: removed, KV blocks of another model or format", entry)
                shutil.rmtree(entry, ignore_errors=True)

    def _list(self) -> list[bytes]:
        """The digests of all files of the right size, least recently used first; what else lies there is removed."""
        found: list[tuple[float, bytes]] = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if not _FILE_NAME.match(entry.name):
                    continue
                facts = entry.stat()
                if "." not in entry.name and facts.st_size == self.file_bytes:
                    found.append((facts.st_mtime, bytes.fromhex(entry.name)))
                else:
                    Path(entry.path).unlink(missing_ok=True)
        return [digest for _, digest in sorted(found)]
