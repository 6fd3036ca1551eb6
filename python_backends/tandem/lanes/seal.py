"""Lane messages under the deployment's key: a stage takes none from anybody who does not have it.

HMAC-SHA256 of worker name, 0, message │ message
                 32 B                  │
"""

from __future__ import annotations

from tandem.errors import TandemError
from tandem.keys import Keys

MAC_BYTES = 32


def seal(message: bytes, worker: str, keys: Keys) -> bytes:
    """A message to the stage model ``worker``, as ``open_sealed`` takes it there."""
    return keys.sign(_signed(message, worker)) + message


def open_sealed(data: bytes, worker: str, keys: Keys) -> bytes:
    """The message.

    Raises:
        TandemError: ``forbidden``: who sent it does not have the key, or meant another worker.
    """
    mac, message = data[:MAC_BYTES], data[MAC_BYTES:]
    if not keys.verify(_signed(message, worker), mac):
        raise TandemError(
            "forbidden",
            f"lane_request: its signature does not fit: worker {worker} takes lane messages only under the handle key "
            "of its deployment (TANDEM_HANDLE_KEY, or TANDEM_HANDLE_KEY_FILE)",
        )
    return message


def _signed(message: bytes, worker: str) -> bytes:
    return worker.encode() + b"\0" + message
