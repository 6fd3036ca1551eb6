"""Checkpoints to test with: small random ones of every family, and the demo model."""

from __future__ import annotations

import gc
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from conversion.convert import convert
from conversion.package import find_gguf

HOME = Path(__file__).resolve().parents[1] / ".tandem"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama_untied": (LlamaConfig, {"tie_word_embeddings": False}),
    "llama_biased": (LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama3": (LlamaConfig, {"tie_word_embeddings": False, "rope_parameters": _LLAMA3_ROPE}),
    "mistral": (MistralConfig, {"tie_word_embeddings": False, "sliding_window": None}),
    "mistral_window": (MistralConfig, {"tie_word_embeddings": False, "sliding_window": 128}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": False}),
}
KINDS = tuple(_KINDS)


def make_random_checkpoint(
    kind: str,
    directory: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    **overrides: Any,
) -> Path:
    """A Hugging Face directory with a small random model, a byte-level BPE tokenizer and a chat template.

    Weights are wide, norms not 1 and biases not 0, so that a mistake in any of them shows in the logits.
    ``overrides`` replace fields of the configuration. Returns ``directory``.
    """
    tokenizer = make_tokenizer()
    config_class, fields = _KINDS[kind]
    config = config_class(**({"vocab_size": tokenizer.get_vocab_size()} | _SHAPE | fields | overrides))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.5)
            else:
                parameter.normal_(0, 0.15)
    model.to(dtype).save_pretrained(directory, max_shard_size=shard_size)
    save_tokenizer(tokenizer, directory)
    del model
    gc.collect()
    return directory


def make_random_model(kind: str, directory: Path, **options: Any) -> Path:
    """As ``make_random_checkpoint``, converted: what the deployment's ``model.path`` may name."""
    checkpoint = make_random_checkpoint(kind, directory / "checkpoint", **options)
    convert(checkpoint, directory / "model", lambda _done, _total: None)
    return directory / "model"


@cache
def demo_model() -> Path:
    """The demo model, converted if it is not there yet."""
    out = HOME / "models" / "smollm2-135m-instruct"
    convert(demo_gguf(), out, lambda _done, _total: None)
    return out


def demo_gguf() -> Path:
    """The file that the demo model is made from."""
    return find_gguf(HOME / "downloads")


@cache
def make_tokenizer() -> Tokenizer:
    """Byte-level BPE with all 256 bytes, some merges and the special tokens of ChatML; it begins texts with a mark."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_CORPUS] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the tokenizer as transformers does: with the chat template in a file of its own."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)


_CORPUS = """The capital of France is Paris. The quick brown fox jumps over the lazy dog, and the dog does not mind.
A cache holds keys and values of every token; a worker reads the prompt and another writes the answer.
Größe, Übung, naïve café, señor, smørrebrød. Привет, как дела? 你好,世界。今日はいい天気ですね。 안녕하세요 👋 🎉 👨‍👩‍👧
0 1 2 3 10 100 2024 3.14159
def main() -> None:
    print("hello, world")
"""
