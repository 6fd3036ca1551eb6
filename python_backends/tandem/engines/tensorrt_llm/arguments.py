"""What ``LLM`` is told when it is built: all that the deployment says about a worker, in TensorRT-LLM's words."""

from __future__ import annotations

import os
from typing import Any

from tandem.deployment import Deployment, TensorRtLlm, Worker
from tandem.engines.tensorrt_llm.library import Library
from tandem.messages import KvFormat

EVENT_BUFFER = 65_536
"""Changes of the KV cache that wait to be read; what does not fit is lost, and noticed by its number."""
STATISTICS_KEPT = 4096


def section_of(worker: Worker) -> TensorRtLlm:
    """``[worker.tensorrt_llm]``, or what it is when left out."""
    return worker.tensorrt_llm or TensorRtLlm()


def prepare_environment(worker: Worker) -> None:
    """Have this process, and those it starts, see its own GPUs alone, and send nothing home. To be called before
    TensorRT-LLM is imported; what the environment says already stays.

    The names are CUDA's for this process, and the one by which the library passes them to what it spawns.
    """
    os.environ.setdefault("TRTLLM_NO_USAGE_STATS", "1")
    numbers = [device.partition(":")[2] or "0" for device in worker.devices]
    for name in ("CUDA_VISIBLE_DEVICES", "TRTLLM_VISIBLE_DEVICES"):
        os.environ.setdefault(name, ",".join(numbers))


def make_arguments(
    library: Library, deployment: Deployment, worker: Worker, kv: KvFormat, max_model_len: int
) -> dict[str, Any]:
    """Keyword arguments of ``LLM``."""
    section = section_of(worker)
    arguments: dict[str, Any] = {
        "model": section.engine_dir or deployment.model.path,
        "tokenizer": deployment.model.path,
        "skip_tokenizer_init": section.guided_decoding is None,
        "dtype": deployment.model.dtype,
        "tensor_parallel_size": worker.tensor_parallel_size,
        "pipeline_parallel_size": worker.pipeline_parallel_size,
        "gpus_per_node": worker.group_size // max(1, len(worker.hosts)),  # a rank's device is its number modulo this
        "max_batch_size": worker.max_batch_size,
        "max_num_tokens": worker.max_batch_tokens,
        "max_input_len": max_model_len - 1,
        "max_seq_len": max_model_len,
        "enable_chunked_prefill": True,
        "iter_stats_max_iterations": STATISTICS_KEPT,
        "kv_cache_config": _kv_cache(library, deployment, worker, kv),
        "cache_transceiver_config": _transceiver(library, deployment, worker, max_model_len),
    }
    if section.engine_dir is None:  # built engines have statistics anyhow, and their schedule is their own
        arguments["enable_iter_perf_stats"] = True
        arguments["disable_overlap_scheduler"] = worker.stage != "decode"  # 1.2 refuses context phases with it
    if section.expert_parallel_size > 1:
        arguments["moe_expert_parallel_size"] = section.expert_parallel_size
    if section.attention_data_parallel:
        arguments["enable_attention_dp"] = True
    if section.guided_decoding is not None:
        arguments["guided_decoding_backend"] = section.guided_decoding
    if section.lora:
        directories = [adapter.path for adapter in section.lora]  # a mapping, since the class moves between versions
        arguments["lora_config"] = {"lora_dir": directories, "max_lora_rank": section.max_lora_rank}
    return arguments


def count_tokens(worker: Worker, kv: KvFormat) -> int | None:
    """Most tokens whose KV the worker may hold; None where it takes a share of what memory is left."""
    if section_of(worker).kv_fraction is not None:
        return None
    per_token = bytes_per_token(kv) / min(kv.num_kv_heads, worker.tensor_parallel_size) / worker.pipeline_parallel_size
    return int(worker.kv_bytes / per_token) // kv.block_size * kv.block_size


def bytes_per_token(kv: KvFormat) -> float:
    """Of keys and values over all layers and heads."""
    return kv.slice_bytes * kv.num_layers * kv.num_kv_heads / kv.block_size


def _kv_cache(library: Library, deployment: Deployment, worker: Worker, kv: KvFormat) -> Any:
    section, tokens = section_of(worker), count_tokens(worker, kv)
    limit = {"free_gpu_memory_fraction": section.kv_fraction} if tokens is None else {"max_tokens": tokens}
    return library.KvCacheConfig(
        enable_block_reuse=deployment.kv.prefix_cache,
        event_buffer_max_size=EVENT_BUFFER if deployment.kv.prefix_cache else 0,
        tokens_per_block=deployment.kv.block_size,
        dtype="auto" if section.engine_dir else section.kv_dtype,  # a built engine has its own
        **limit,
    )


def _transceiver(library: Library, deployment: Deployment, worker: Worker, max_model_len: int) -> Any:
    section = section_of(worker)
    newer: dict[str, Any] = {}
    if library.has("CacheTransceiverConfig", "transceiver_runtime"):
        newer["transceiver_runtime"] = "CPP"  # left to itself, each side may choose another one
    return library.CacheTransceiverConfig(
        backend=section.cache_transceiver,
        max_tokens_in_buffer=section.max_tokens_in_buffer or max_model_len,
        kv_transfer_timeout_ms=int(1000 * transfer_deadline_s(deployment, worker)),
        **newer,
    )


def transfer_deadline_s(deployment: Deployment, worker: Worker) -> float:
    """How long TensorRT-LLM waits for a transfer. Prefill holds KV for as long as a lease lasts and, since one may be
    claimed at its very end, for as long as a transfer may take."""
    kv = deployment.kv
    return kv.transfer_timeout_s if worker.stage == "decode" else kv.lease_s + kv.transfer_timeout_s
