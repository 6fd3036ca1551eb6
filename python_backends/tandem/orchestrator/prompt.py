"""From what a client wrote to token ids: template, tokens, and the checks that need the model."""

from __future__ import annotations

from tandem.api.ask import Ask, check_ids
from tandem.errors import TandemError
from tandem.text.codec import TextCodec


def read_prompt(ask: Ask, codec: TextCodec, max_model_len: int) -> list[int]:
    """The prompt's token ids. Slow for long texts: call it off the event loop.

    Raises:
        TandemError: ``prompt_too_long`` (before any work, where the text cannot fit), or ``invalid_request``.
    """
    if ask.token_ids is not None:
        check_ids("input_ids", ask.token_ids, codec.vocab_size)
        return ask.token_ids
    if ask.messages is not None:
        text, name = codec.render_chat(ask.messages), "messages"
    else:
        text, name = ask.text or "", "text_input"
    size, most = len(text.encode()), max_model_len * codec.max_token_bytes
    if size > most:
        raise TandemError(
            "prompt_too_long",
            f"{name}: {size} bytes; no text of more than {most} fits the model's context of {max_model_len} tokens",
        )
    ids = codec.encode(text, add_special_tokens=ask.messages is None)
    if not ids:
        raise TandemError("invalid_request", f"{name}: the text has no tokens")
    return ids


def text_size(ask: Ask) -> int:
    """About how much text has to be read, in characters."""
    return len(ask.text or "") + sum(len(text) for message in ask.messages or () for text in message.values())
