"""Timings of common GPUs and models, computed from published figures by the formulas in ``derive``.

A profile is an estimate from data sheets, not a measurement: it says how workers compare and where load begins to
queue, not what a certain server will reach.
"""

from __future__ import annotations

from dataclasses import dataclass

from tandem.engines.sim.timing import Timing
from tandem.errors import TandemError

COMPUTE_SHARE = 0.5
"""Of the peak of dense 16-bit matrix products that prefill reaches: assumed; 0.4 to 0.6 is usual."""
BANDWIDTH_SHARE = 0.7
"""Of the memory bandwidth that decode reaches: assumed; 0.6 to 0.8 is usual."""
LINK_SHARE = 0.8
"""Of the network's line rate that a transfer reaches: assumed."""
MEMORY_SHARE = 0.9
"""Of the GPU memory that weights and KV may fill; the default of vLLM and TensorRT-LLM."""
STEP_OVERHEAD_S = 1e-3
"""Launches (CUDA graphs), scheduling and sampling: assumed."""
ALL_REDUCE_S = 10e-6
"""Latency of one all-reduce over NVLink; there are two in each layer: assumed."""
TRANSFER_LATENCY_S = 1e-3
"""Handshake, registration look-up and confirmation of one KV transfer: assumed."""
START_S = 60.0
"""Loading weights and capturing graphs: assumed, whatever the model."""
ELEMENT_BYTES = 2
"""bf16 weights and KV."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. Dense bf16 (tensor cores, without sparsity), memory, and the network port that servers pair with it."""

    flops: float
    bytes_per_s: float
    memory_bytes: float
    link_bytes_per_s: float
    source: str


@dataclass(frozen=True)
class ModelShape:
    """What of a model's config.json decides its speed."""

    parameters: float
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int
    source: str

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * ELEMENT_BYTES


@dataclass(frozen=True)
class Profile:
    """How fast a worker is, how much KV it holds, and what its KV looks like."""

    timing: Timing
    model: str
    """Workers whose models differ do not fit together."""
    num_layers: int
    num_kv_heads: int
    context: int
    """Most tokens of prompt and answer together."""
    kv_bytes: int
    """GPU memory that is left for KV."""
    source: str


GPUS = {
    "h100": Gpu(989e12, 3.35e12, 80e9, 50e9, "NVIDIA H100 data sheet, SXM5; ConnectX-7, 400 Gb/s per GPU (DGX H100)"),
    "h200": Gpu(989e12, 4.8e12, 141e9, 50e9, "NVIDIA H200 data sheet, SXM; ConnectX-7, 400 Gb/s per GPU (DGX H200)"),
    "a100": Gpu(312e12, 2.039e12, 80e9, 25e9, "NVIDIA A100 data sheet, SXM4 80 GB; ConnectX-6, 200 Gb/s (DGX A100)"),
    "l4": Gpu(121e12, 0.3e12, 24e9, 12.5e9, "NVIDIA L4 data sheet (242 TFLOPS are with sparsity); 100 Gb/s assumed"),
}
MODELS = {
    "llama-3.1-8b": ModelShape(8.03e9, 32, 32, 8, 128, 131072, "meta-llama/Llama-3.1-8B, config.json"),
    "llama-3.3-70b": ModelShape(70.6e9, 80, 64, 8, 128, 131072, "meta-llama/Llama-3.3-70B-Instruct, config.json"),
    "qwen3-32b": ModelShape(32.8e9, 64, 64, 8, 128, 40960, "Qwen/Qwen3-32B, config.json"),
}
COMBINATIONS = [
    ("h100", 1, "llama-3.1-8b"),
    ("h200", 1, "llama-3.1-8b"),
    ("a100", 1, "llama-3.1-8b"),
    ("l4", 1, "llama-3.1-8b"),
    ("h100", 2, "qwen3-32b"),
    ("h100", 4, "llama-3.3-70b"),
    ("h100", 8, "llama-3.3-70b"),
    ("a100", 4, "llama-3.3-70b"),
]
"""GPU, number of them (tensor-parallel), model."""


def derive(gpu: Gpu, count: int, model: ModelShape) -> Timing:
    """A roofline: multiplying costs 2 operations per parameter and token, attention in prefill 4 per pair, head and
    its dimension in each layer; decode reads all weights once per step, and the KV of all tokens before."""
    flops = count * gpu.flops * COMPUTE_SHARE
    bytes_per_s = count * gpu.bytes_per_s * BANDWIDTH_SHARE
    exchange = 2 * model.num_layers * ALL_REDUCE_S if count > 1 else 0.0
    return Timing(
        overhead_s=STEP_OVERHEAD_S + exchange,
        weights_s=model.parameters * ELEMENT_BYTES / bytes_per_s,
        token_s=2 * model.parameters / flops,
        pair_s=4 * model.num_layers * model.num_heads * model.head_dim / flops,
        context_s=model.kv_bytes_per_token / bytes_per_s,
        kv_bytes_per_token=model.kv_bytes_per_token,
        transfer_latency_s=TRANSFER_LATENCY_S,
        transfer_bytes_per_s=count * gpu.link_bytes_per_s * LINK_SHARE,
        start_s=START_S,
    )


def _profile(gpu_name: str, count: int, model_name: str) -> Profile:
    gpu, model = GPUS[gpu_name], MODELS[model_name]
    return Profile(
        timing=derive(gpu, count, model),
        model=model_name,
        num_layers=model.num_layers,
        num_kv_heads=model.num_kv_heads,
        context=model.context,
        kv_bytes=int(count * gpu.memory_bytes * MEMORY_SHARE - model.parameters * ELEMENT_BYTES),
        source=f"{gpu.source}; {model.source}",
    )


def _name(gpu: str, count: int, model: str) -> str:
    return f"{gpu}-{model}" if count == 1 else f"{gpu}x{count}-{model}"


PROFILES = {_name(*combination): _profile(*combination) for combination in COMBINATIONS} | {
    "instant": Profile(
        timing=Timing(),
        model="instant",
        num_layers=1,
        num_kv_heads=1,
        context=131072,
        kv_bytes=1 << 30,
        source="nothing takes any time: what is left is the overhead of everything around the engine",
    )
}


def find_profile(name: str) -> Profile:
    """The profile called ``name``.

    Raises:
        TandemError: ``invalid_request``, with the names that there are.
    """
    if name not in PROFILES:
        raise TandemError("invalid_request", f"profile: {name!r} is none of {', '.join(sorted(PROFILES))}")
    return PROFILES[name]
