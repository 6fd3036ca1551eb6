"""A GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) of the llama architecture."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from conversion.gguf_tokenizer import GgufTokenizer
from conversion.source import TensorSpec, refuse

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class GgufSource:
    """Opens the file; weights are dequantized tensor by tensor.

    They are kept in float32: a dequantized Q4 weight is ``scale * q + minimum`` of 16-bit numbers, which needs more
    than the 11 bits of a float16 and the 8 of a bfloat16, and an engine can only be compared with others on the very
    same weights.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._reader = gguf.GGUFReader(path)
            self._fields: dict[str, Any] = {name: field.contents() for name, field in self._reader.fields.items()}
        except (OSError, ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
            raise refuse(path, f"not a whole GGUF file ({error}); fetch it again") from error
        if (found := self._field("general.architecture")) != "llama":
            raise refuse(
                path,
                f"general.architecture is {found!r}; from GGUF only 'llama' is converted, the others from a "
                "Hugging Face directory (llama, mistral, qwen2, qwen3)",
            )
        self._tokenizer = GgufTokenizer(path, self._fields)
        self.config = self._read_config()
        self.generation_config = {
            "bos_token_id": self._tokenizer.bos_id,
            "eos_token_id": self._tokenizer.eos_ids,
            "pad_token_id": self._tokenizer.pad_id,
        }

    def tensors(self) -> list[TensorSpec]:
        """All tensors under their Hugging Face names, as float32."""
        return [self._spec(tensor) for tensor in self._reader.tensors]

    def write_tokenizer(self, out: Path) -> None:
        """Build the tokenizer anew from the vocabulary in the file."""
        self._tokenizer.write(out)

    def _field(self, name: str) -> Any:
        if name not in self._fields:
            raise refuse(self._path, f"the field {name} is missing")
        return self._fields[name]

    def _read_config(self) -> dict[str, Any]:
        if (scaling := self._fields.get("llama.rope.scaling.type", "none")) != "none":
            raise refuse(self._path, f"llama.rope.scaling.type is {scaling!r}; from GGUF only 'none' is supported")
        heads, hidden = self._field("llama.attention.head_count"), self._field("llama.embedding_length")
        head_dim = self._fields.get("llama.attention.key_length", hidden // heads)
        if (rotary := self._fields.get("llama.rope.dimension_count", head_dim)) != head_dim:
            raise refuse(
                self._path, f"llama.rope.dimension_count is {rotary}; supported is the head dimension, {head_dim}"
            )
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "float32",
            "hidden_act": "silu",
            "hidden_size": hidden,
            "head_dim": head_dim,
            "intermediate_size": self._field("llama.feed_forward_length"),
            "max_position_embeddings": self._field("llama.context_length"),
            "num_attention_heads": heads,
            "num_hidden_layers": self._field("llama.block_count"),
            "num_key_value_heads": self._fields.get("llama.attention.head_count_kv", heads),
            "rms_norm_eps": _shortest(self._field("llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": _shortest(self._fields.get("llama.rope.freq_base", 10000.0)),
            "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in self._reader.tensors),
            "vocab_size": len(self._field("tokenizer.ggml.tokens")),
            "bos_token_id": self._tokenizer.bos_id,
            "eos_token_id": self._tokenizer.eos_ids,
            "pad_token_id": self._tokenizer.pad_id,
        }

    def _spec(self, tensor: gguf.ReaderTensor) -> TensorSpec:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        return TensorSpec(self._rename(tensor.name), "F32", shape, lambda: self._load(tensor, shape))

    def _rename(self, name: str) -> str:
        stem, _, kind = name.rpartition(".")
        if stem in _TOP_NAMES:
            return f"{_TOP_NAMES[stem]}.{kind}"
        block, _, part = stem.removeprefix("blk.").partition(".")
        if block.isdecimal() and part in _LAYER_NAMES:
            return f"model.layers.{block}.{_LAYER_NAMES[part]}.{kind}"
        raise refuse(self._path, f"the tensor {name} is unknown; a llama model has no such weights")

    def _load(self, tensor: gguf.ReaderTensor, shape: tuple[int, ...]) -> bytes:
        try:
            weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("<f4").reshape(shape)
        except NotImplementedError as error:
            raise refuse(self._path, f"tensor {tensor.name}: cannot dequantize {tensor.tensor_type.name}") from error
        if tensor.name.endswith("attn_q.weight"):
            weights = unpermute(weights, self.config["num_attention_heads"])
        elif tensor.name.endswith("attn_k.weight"):
            weights = unpermute(weights, self.config["num_key_value_heads"])
        return weights.tobytes()


def unpermute(weights: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """From llama.cpp's row order of a query or key projection back to that of Hugging Face.

    llama.cpp rotates neighbouring rows of a head, Hugging Face row i with row i + head_dim / 2; llama.cpp's own
    converter reorders them (``permute`` in convert_hf_to_gguf.py), this is its inverse.
    Shape: [heads * head_dim, hidden].
    """
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _shortest(value: float) -> float:
    """The number that was meant: GGUF stores float32, in which 1e-5 reads 9.999999747378752e-06."""
    return float(str(np.float32(value)))
