"""What all messages have in common, and how they become bytes."""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

PROTOCOL_VERSION = 6
"""Of lanes and of what workers say of themselves; those that differ refuse each other when they meet."""

StageName = Literal["prefill", "decode"]

Role = Literal["prefill", "decode", "both"]
"""The stages that a worker does."""

FinishReason = Literal["stop", "length", "cancelled"]


class Message(msgspec.Struct, frozen=True, tag_field="type"):
    """Base of every message: immutable."""


def does(role: Role, stage: StageName) -> bool:
    """Whether a worker of this role does ``stage``."""
    return role in (stage, "both")


_T = TypeVar("_T")
_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """Serialise any message to msgpack."""
    return _encoder.encode(message)


def decoder(kind: type[_T] | object) -> msgspec.msgpack.Decoder[_T]:
    """A typed msgpack decoder for one struct or union; raises ``msgspec.ValidationError`` on wrong input."""
    return msgspec.msgpack.Decoder(kind)
