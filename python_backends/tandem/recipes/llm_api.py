"""What the LLM API of TensorRT-LLM is given for a stage: the keyword arguments of ``tensorrt_llm.LLM``, as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tandem.messages import StageName
from tandem.recipes.recipe import Recipe


def llm_arguments(recipe: Recipe, stage_name: StageName, engine: Path | None = None) -> dict[str, Any]:
    """Keyword arguments of ``LLM``: of the PyTorch backend for a checkpoint, of TensorRT's for a built ``engine``."""
    stage = recipe.stage(stage_name)
    arguments: dict[str, Any] = {
        "model": str(engine or recipe.checkpoint),
        "tokenizer": recipe.checkpoint,
        "backend": "tensorrt" if engine else "pytorch",
        "tensor_parallel_size": stage.tensor_parallel_size,
        "pipeline_parallel_size": stage.pipeline_parallel_size,
        "gpus_per_node": stage.ranks // stage.hosts,
        "max_batch_size": stage.max_batch_size,
        "max_num_tokens": stage.max_num_tokens,
        "max_seq_len": stage.max_seq_len,
        "max_beam_width": 1,
        "enable_chunked_prefill": True,
        "kv_cache_config": {
            "free_gpu_memory_fraction": stage.kv_fraction,
            "enable_block_reuse": True,
            "tokens_per_block": stage.tokens_per_block,
        },
        "cache_transceiver_config": {
            "backend": recipe.cache_transceiver,  # None, the default of 1.2, would turn the hand-over off
            "max_tokens_in_buffer": recipe.prefill.max_input_len,
            "kv_transfer_timeout_ms": recipe.kv_transfer_timeout_ms,  # None would hold unclaimed KV for ever
        },
    }
    if recipe.shape.moe is not None and engine is None:
        arguments["moe_expert_parallel_size"] = stage.expert_parallel_size
        arguments["moe_tensor_parallel_size"] = stage.tensor_parallel_size // stage.expert_parallel_size
    if engine is None:
        arguments["dtype"] = recipe.dtype
        arguments["enable_attention_dp"] = stage.attention_data_parallel
        arguments["kv_cache_config"]["dtype"] = stage.kv_dtype
        # Prefill alone: up to 1.2 the overlap scheduler refuses requests that end with prefill.
        arguments["disable_overlap_scheduler"] = stage_name == "prefill"
        if stage_name == "decode":
            arguments["cuda_graph_config"] = {"max_batch_size": stage.max_batch_size, "enable_padding": True}
    return arguments
