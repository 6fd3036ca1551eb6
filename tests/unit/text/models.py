"""Model directories with only the text files, and tokenizers of the kinds that exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from tests.checkpoints import CHAT_TEMPLATE, make_tokenizer

_CONFIG = {
    "bos_token": "<|endoftext|>",
    "eos_token": {"content": "<|im_end|>", "special": True},
    "chat_template": CHAT_TEMPLATE,
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def write_model(directory: Path, tokenizer: Tokenizer | None = None, **changes: Any) -> Path:
    """The files that ``TextCodec`` reads. ``changes`` replace whole files, by stem."""
    tokenizer = tokenizer or make_tokenizer()
    contents: dict[str, Any] = {
        "tokenizer_config": _CONFIG,
        "generation_config": {"bos_token_id": 0, "eos_token_id": [0, 2]},
        "config": {"vocab_size": tokenizer.get_vocab_size() + 8},
        "tandem": {"fingerprint": "00", "context": 512},
    }
    directory.mkdir(parents=True, exist_ok=True)
    for stem, content in (contents | changes).items():
        (directory / f"{stem}.json").write_text(json.dumps(content))
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def sentence_piece() -> Tokenizer:
    """As Llama 2 has it: ``▁`` for a space, bytes for what the vocabulary lacks, a space before every text."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = [*"▁abcdefgh", "é", "好"]
    merged = ["▁a", "bc", "▁▁"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *byte_tokens, *letters, *merged])}
    merges = [("▁", "a"), ("b", "c"), ("▁", "▁")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    return tokenizer
