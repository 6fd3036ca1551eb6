"""The secret of a deployment, the handle key, and how it is changed while everything runs.

It stands in a file (``TANDEM_HANDLE_KEY_FILE``) or in the environment (``TANDEM_HANDLE_KEY``): 64 hex digits, or two
such words, the newer first. What either of them signed is accepted; the newer signs as soon as it has been there for
``REST_S``, so that by then the file has reached all hosts. A file is read again when it has changed.
"""

from __future__ import annotations

import hmac
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tandem.errors import TandemError

log = logging.getLogger(__name__)

KEY_BYTES = 32
MAX_KEYS = 2
KEY_VARIABLE = "TANDEM_HANDLE_KEY"
FILE_VARIABLE = "TANDEM_HANDLE_KEY_FILE"
REST_S = 60.0
LOOK_EVERY_S = 1.0

_ACCESS = b"tandem access"
_MANAGEMENT = b"tandem management"


class Keys:
    """The newest key signs, all of them verify. Threads may share it."""

    def __init__(self, known: list[bytes], file: Path | None = None) -> None:
        """``file`` is where ``known``, newest first, came from, and is looked at again."""
        self._known, self._file = known, file
        self._state = _state(file)
        since = time.time() - file.stat().st_mtime if file is not None else REST_S
        self._in_force = time.monotonic() + REST_S - max(0.0, since)
        """When the newest begins to sign."""
        self._look_at = time.monotonic() + LOOK_EVERY_S
        self._lock = threading.Lock()

    @property
    def signing(self) -> bytes:
        """The key to sign with."""
        self._look()
        is_new = len(self._known) > 1 and time.monotonic() < self._in_force
        return self._known[1 if is_new else 0]

    def sign(self, data: bytes) -> bytes:
        """HMAC-SHA256 of ``data``: 32 bytes."""
        return mac(data, self.signing)

    def verify(self, data: bytes, given: bytes) -> bool:
        """Whether ``given`` is the HMAC of ``data`` with one of the keys; those in the file now, if need be."""
        self._look()  # a key that was taken out is not to be accepted by those who only verify
        if self._fits(data, given):
            return True
        return self._look(now=True) and self._fits(data, given)

    def _fits(self, data: bytes, given: bytes) -> bool:
        return any(hmac.compare_digest(given, mac(data, key)) for key in self._known)

    def _look(self, *, now: bool = False) -> bool:
        """Whether the file has changed, and holds other keys."""
        if self._file is None or (not now and time.monotonic() < self._look_at):
            return False
        with self._lock:
            self._look_at = time.monotonic() + LOOK_EVERY_S
            if (state := _state(self._file)) == self._state:
                return False
            try:
                known = _parse(self._file.read_text(), str(self._file))
            except (OSError, TandemError, UnicodeDecodeError) as error:
                log.warning("the handle key stays as it is: %s", error)
                return False
            self._state = state
            if known == self._known:
                return False
            # A key that was there before needs no rest: one that is only left of two, or put back.
            self._in_force = time.monotonic() + (0.0 if known[0] in self._known else REST_S)
            self._known = known
            log.info("the handle key has changed: %d keys are accepted", len(known))
            return True


def load_keys(environment: Mapping[str, str] = os.environ) -> Keys:
    """The keys of this deployment, from the file or the variable that ``environment`` names.

    Raises:
        TandemError: ``invalid_request``; says how to set them.
    """
    if name := environment.get(FILE_VARIABLE):
        file = Path(name)
        try:
            return Keys(_parse(file.read_text(), name), file)
        except (OSError, UnicodeDecodeError) as error:
            raise TandemError("invalid_request", f"{FILE_VARIABLE}: {name} cannot be read: {error}") from error
    return Keys(_parse(environment.get(KEY_VARIABLE, ""), f"the environment variable {KEY_VARIABLE}"))


def mac(data: bytes, key: bytes) -> bytes:
    """HMAC-SHA256: 32 bytes."""
    return hmac.digest(key, data, "sha256")


def access_word(key: bytes) -> str:
    """What a plain client has to say to a private stage, as the request parameter ``access``."""
    return mac(_ACCESS, key).hex()


def has_access(word: str, keys: Keys) -> bool:
    """Whether ``word`` is the ``access_word`` of one of the keys."""
    try:
        return keys.verify(_ACCESS, bytes.fromhex(word))
    except ValueError:
        return False


def management_word(key: bytes) -> str:
    """What a client has to say to Triton's own management, in a header (see ``triton/command.py``)."""
    return mac(_MANAGEMENT, key).hex()


def _state(file: Path | None) -> tuple[int, int, int] | None:
    """Changes whenever the file does."""
    try:
        found = file.stat() if file is not None else None
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size) if found is not None else None


def _parse(text: str, place: str) -> list[bytes]:
    words = text.split()
    try:
        known = [bytes.fromhex(word) for word in words]
    except ValueError:
        known = []
    if not 1 <= len(known) <= MAX_KEYS or any(len(key) != KEY_BYTES for key in known):
        # The value is a secret: only its length is told.
        raise TandemError(
            "invalid_request",
            f"{place} must hold {KEY_BYTES} bytes as {2 * KEY_BYTES} hex digits, the same for all parts of a "
            f"deployment, or two such words, the newer first; it has {len(text.strip())} characters. "
            f"`openssl rand -hex {KEY_BYTES}` makes one",
        )
    return known
