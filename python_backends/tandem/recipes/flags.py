"""Every option of TensorRT-LLM's tools that a build uses, and where in its source it was read.

The commits are of NVIDIA/TensorRT-LLM on GitHub, at the time of 1.2, when the tools still existed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tool = Literal["trtllm-build", "llama", "qwen", "quantize"]


@dataclass(frozen=True)
class Source:
    """A file of TensorRT-LLM, and the commit at which it was read."""

    path: str
    commit: str

    def __str__(self) -> str:
        return f"{self.path} at {self.commit[:12]}"


BUILD = Source("tensorrt_llm/commands/build.py", "65f1d1536e18aea3380e6e270e00895a709333eb")
PLUGINS = Source("tensorrt_llm/plugin/plugin.py", "c20322ffd3dc0740ca530c9fad989b22e64f6e06")
LLAMA = Source("examples/models/core/llama/convert_checkpoint.py", "fd96a08bdc489f41f139b295935b10ed43652fa1")
QWEN = Source("examples/models/core/qwen/convert_checkpoint.py", "65b31db1b401d3752b8ebe7c29093cbfb6af04b7")
QUANTIZE = Source("examples/quantization/quantize.py", "c8c6df08bd0ead54cd47f7973e1e425c28a174cd")

_CONVERT = (
    "--model_dir",
    "--output_dir",
    "--dtype",
    "--tp_size",
    "--pp_size",
    "--moe_tp_size",
    "--moe_ep_size",
    "--use_weight_only",
    "--weight_only_precision",
    "--workers",
)
FLAGS: dict[Tool, dict[str, Source]] = {
    "trtllm-build": dict.fromkeys(
        (
            "--checkpoint_dir",
            "--output_dir",
            "--max_batch_size",
            "--max_input_len",
            "--max_seq_len",
            "--max_num_tokens",
            "--max_beam_width",
            "--kv_cache_type",
            "--workers",
            "--log_level",
        ),
        BUILD,
    )
    | dict.fromkeys(
        (
            "--gpt_attention_plugin",
            "--gemm_plugin",
            "--tokens_per_block",
            "--remove_input_padding",
            "--context_fmha",
            "--use_paged_context_fmha",
            "--use_fp8_context_fmha",
        ),
        PLUGINS,
    ),
    "llama": dict.fromkeys(_CONVERT, LLAMA),
    "qwen": dict.fromkeys(_CONVERT, QWEN),
    "quantize": dict.fromkeys(
        (
            "--model_dir",
            "--output_dir",
            "--dtype",
            "--qformat",
            "--kv_cache_dtype",
            "--calib_size",
            "--tp_size",
            "--pp_size",
        ),
        QUANTIZE,
    ),
}


def flags_of(command: list[str]) -> list[str]:
    """The options in a command line."""
    return [word for word in command if word.startswith("--")]
