"""Every message that crosses a process. Read this file first.

    client ─ tensors ─ orchestrator ─ lane messages ─ stage ─ engine messages ─ engine process ═ NIXL ═ engine process

All structs travel as msgpack. A union is told apart by its ``type`` tag. Times are in seconds
unless the name says otherwise, and always durations: no clock is compared between processes.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from tandem.errors import ErrorCode

PROTOCOL_VERSION = 3
"""Of lanes and of what workers say of themselves; those that differ refuse each other when they meet."""

StageName = Literal["prefill", "decode"]
Role = Literal["prefill", "decode", "both"]
"""The stages that a worker does."""
FinishReason = Literal["stop", "length", "cancelled"]
Feature = Literal["lora", "guided_decoding"]
"""What some engines can do and others cannot; ``tandem.engines.torch.checks`` names the fields that ask for it."""
GuideKind = Literal["json", "json_schema", "regex", "ebnf_grammar", "structural_tag"]
"""As Triton's TensorRT-LLM models call them. ``json``: any JSON, and no text comes with it."""
DEFAULT_PRIORITY = 5
"""Of 1, which is served first, to 9."""


class Message(msgspec.Struct, frozen=True, tag_field="type"):
    """Base of every message: immutable."""


def does(role: Role, stage: StageName) -> bool:
    """Whether a worker of this role does ``stage``."""
    return role in (stage, "both")


# ---------------------------------------------------------------- what a request asks for


class Guide(Message, frozen=True, kw_only=True):
    """What an answer's text has to be: one of a kind."""

    kind: GuideKind
    text: str = ""
    """The schema, expression, grammar or tag."""


class Sampling(Message, frozen=True, kw_only=True):
    """How a token is chosen. ``temperature`` 0 is greedy; 0 / 1.0 switch the other filters off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logprobs: int | None = None
    """None: no log-probabilities; n: those of the chosen token and of the n likeliest."""
    guide: Guide | None = None
    lora_task_id: int | None = None
    """Which of the deployment's LoRA adapters the model wears; None: none."""


class Stopping(Message, frozen=True, kw_only=True):
    """When an answer ends. Stop strings are the orchestrator's: an engine knows tokens only."""

    max_tokens: int
    """Most tokens in the whole answer, replayed ones included."""
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    """End-of-text tokens of the model included, unless the request ignores them."""


# ---------------------------------------------------------------- work (orchestrator → engine)


class Work(Message, frozen=True, kw_only=True):
    """One request as an engine sees it: prompt and the answer so far, both as token ids."""

    request_id: str
    token_ids: list[int]
    output_ids: list[int] = []
    """Answer tokens that exist already; the next token has this list's length as its index."""
    salt: str = ""
    """Of the block hashes: requests share cached blocks only where it is the same (a tenant's name)."""
    sampling: Sampling
    stopping: Stopping
    traceparent: str = ""
    """Of W3C: the span that the work belongs to; empty: none."""
    priority: int = DEFAULT_PRIORITY
    """Who has a higher number gives up KV blocks first."""


class Prefill(Work, tag="prefill", frozen=True, kw_only=True):
    """Read the prompt, make one token, hold the KV blocks under a lease."""


class Decode(Work, tag="decode", frozen=True, kw_only=True):
    """Redeem ``handle`` for the KV blocks of ``token_ids`` and go on after ``output_ids``."""

    handle: bytes


class Generate(Work, tag="generate", frozen=True, kw_only=True):
    """Do both stages in one engine."""


AnyWork = Prefill | Decode | Generate


# ---------------------------------------------------------------- events (engine → orchestrator)


class TokenLogprob(Message, frozen=True, kw_only=True):
    """Natural-log probabilities before sampling filters, after penalties."""

    logprob: float
    top: list[tuple[int, float]] = []


class Tokens(Message, tag="tokens", frozen=True, kw_only=True):
    """New tokens of one answer. ``index`` is the first one's place in it, so repeats can be dropped."""

    request_id: str
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None


class Prefilled(Message, tag="prefilled", frozen=True, kw_only=True):
    """A ``Prefill`` is done: its one token follows in ``Tokens`` before this event.

    ``handle`` is None where the first token already ended the answer (``finish_reason`` set).
    """

    request_id: str
    handle: bytes | None
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    """Tokens that did not have to be read: their KV was in the prefix cache."""
    queue_s: float = 0.0
    compute_s: float = 0.0


class Pulled(Message, tag="pulled", frozen=True, kw_only=True):
    """Decode holds confirmed KV: how much moved and how long it took, confirmation included."""

    request_id: str
    bytes_moved: int
    seconds: float


class Preempted(Message, tag="preempted", frozen=True, kw_only=True):
    """Its KV has given way to that of others; once there is room it is computed anew, and the answer goes on."""

    request_id: str


class Finished(Message, tag="finished", frozen=True, kw_only=True):
    request_id: str
    reason: FinishReason
    cached_tokens: int = 0
    """Of a ``Generate``: tokens that did not have to be read."""
    queue_s: float = 0.0
    """Of a ``Generate``: as in ``Prefilled``."""
    compute_s: float = 0.0


class Failed(Message, tag="failed", frozen=True, kw_only=True):
    request_id: str
    code: ErrorCode
    message: str


EngineEvent = Tokens | Prefilled | Pulled | Preempted | Finished | Failed


# ---------------------------------------------------------------- what a worker's prefix cache holds


class BlocksStored(Message, tag="stored", frozen=True, kw_only=True):
    """These blocks can be reused from now on. Chained hashes name them (``tandem.kv.hashes``), in the chain's order."""

    hashes: list[int]


class BlocksRemoved(Message, tag="removed", frozen=True, kw_only=True):
    """These blocks are gone; those that follow them in a chain may still be there, but are of no use."""

    hashes: list[int]


KvEvent = BlocksStored | BlocksRemoved


class KvReport(Message, frozen=True, kw_only=True):
    """Changes of a prefix cache since the one that the poll named; numbered, from 1 in each epoch."""

    first: int
    """Number of the first of ``events``."""
    events: list[KvEvent]
    is_snapshot: bool = False
    """The log does not reach back so far: forget all, ``events`` say everything there is, as if they had the number
    ``first`` together. It is 0 where nothing has happened in this epoch."""


class TierLoad(Message, frozen=True, kw_only=True):
    """The prefix cache below the fast memory (``tandem.kv.tiers``); counters, in blocks, run since the start."""

    block_bytes: int
    """In the fast memory."""
    host_blocks: int = 0
    host_bytes: int = 0
    disk_blocks: int = 0
    disk_bytes: int = 0
    """Headers included."""
    hits: int = 0
    """Read back."""
    misses: int = 0
    """Of prompts that were looked up: neither in the fast memory nor read back, so computed."""
    corrupt: int = 0
    """Read, but not what they should be."""
    dropped: int = 0
    """Had to leave the fast memory before they were copied."""
    errors: int = 0
    """Times that the disk could not be written to or read from."""


class Load(Message, frozen=True, kw_only=True):
    """What a worker has to do and hold, at one moment; counters run since its start."""

    queued: int = 0
    running: int = 0
    blocks_total: int = 0
    blocks_used: int = 0
    """Held for requests and handles."""
    blocks_wanted: int = 0
    """What those requests may come to take beyond these, with their longest answers."""
    blocks_cached: int = 0
    """Held by nobody, and kept for reuse until there is need of room."""
    preemptions: int = 0
    """Times that a request's KV gave way to that of others, to be computed anew."""
    handles_held: int = 0
    handles_granted: int = 0
    handles_expired: int = 0
    bytes_pulled: int = 0
    pull_seconds: float = 0.0
    pulls: int = 0
    steps: int = 0
    """Engine steps that made progress: a worker that has work and whose steps stand still is hung."""
    step_seconds: float = 0.0
    prefill_steps: int = 0
    """Of the steps, those that read prompts; the others are decode steps."""
    prefill_tokens: int = 0
    """Prompt tokens read, those of cached blocks not among them."""
    prefill_seconds: float = 0.0
    """Of the steps' time, what the prefill steps took."""
    queued_tokens: int = 0
    """Prompt tokens that are still to be read, cached ones not among them, of all requests in hand."""
    collective_seconds: float = 0.0
    """Of the steps' time, what the leader spent in exchange with other ranks, waiting for them included."""
    silent_s: float = 0.0
    """For how long the engine process has said nothing. Filled in by the stage."""
    tier: TierLoad | None = None
    """None: blocks that leave the fast memory are gone."""


# ---------------------------------------------------------------- who a worker is


class SharedMemory(Message, frozen=True, kw_only=True):
    """Where processes of the same host find memory that they can map; see ``tandem.kv.memory``."""

    pid: int
    file: int
    """Its descriptor in that process."""
    num_bytes: int
    token: bytes
    """What stands behind the last byte."""


class TransferInfo(Message, frozen=True, kw_only=True):
    """Where one rank's KV memory lies and how NIXL reaches it. Block i starts at ``address + i * block_bytes``."""

    agent_name: str
    agent_metadata: bytes
    address: int
    block_bytes: int
    num_blocks: int
    memory: Literal["DRAM", "VRAM"] = "DRAM"
    device_id: int = 0
    shared: SharedMemory | None = None
    """The same memory for processes of this host."""


class LibraryTransfer(Message, frozen=True, kw_only=True):
    """An engine whose library moves KV itself, and shows neither blocks nor memory. Both ends must have it the same."""

    library: str
    """Name and version."""
    backend: str
    """What the library moves KV with."""
    claims: str = ""
    """Where a prefill worker is asked whether a lease still holds: a ZeroMQ address."""


class Partition(Message, frozen=True, kw_only=True):
    """How an engine group splits a model over its ranks; see ``tandem.parallel.partition``."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1

    @property
    def size(self) -> int:
        """Ranks in the group."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class WorkerInfo(Message, frozen=True, kw_only=True):
    """All that others must know of a worker. Workers fit together when their ``KvFormat`` is equal."""

    protocol_version: int = PROTOCOL_VERSION
    worker_id: str
    """Unique among all workers that can meet; stays the same as long as its Triton server runs."""
    epoch: int
    """New at every start of the engine process; nothing of an older epoch is ever accepted."""
    stage: Role
    engine: str
    kv: KvFormat
    partition: Partition = Partition()
    """Workers whose partitions differ fit together all the same: KV is cut anew on its way."""
    vocab_size: int
    max_model_len: int
    """Most tokens of prompt and answer together."""
    max_batch_size: int
    transfers: list[TransferInfo] = []
    """One for each rank, in their order; a block of the worker is the blocks of that number of all ranks."""
    library: LibraryTransfer | None = None
    """In place of ``transfers``."""
    features: list[Feature] = []


class KvFormat(Message, frozen=True, kw_only=True):
    """What must be equal on both sides of a hand-over for KV bytes to mean the same."""

    fingerprint: str
    """Hash over the model's configuration and weights."""
    dtype: str
    layout: str
    """Order of what a block holds, and of the numbers in a key."""
    block_size: int
    num_layers: int
    num_kv_heads: int
    slice_bytes: int
    """Bytes of one KV head of one layer in a block; a rank's block holds its heads and, within each, its layers."""


# ---------------------------------------------------------------- lane (orchestrator → stage)


class Hello(Message, tag="hello", frozen=True, kw_only=True):
    """Ask a worker who it is. One that speaks another version refuses."""

    protocol_version: int = PROTOCOL_VERSION


class Pair(Message, tag="pair", frozen=True, kw_only=True):
    """Introduce a worker, so that KV may move between the two, as long as any lane wants it."""

    lane: str = ""
    peer: WorkerInfo


class Unpair(Message, tag="unpair", frozen=True, kw_only=True):
    """A worker that was introduced by this lane is gone for good; unknown ones are no error."""

    lane: str = ""
    worker_id: str


class Submit(Message, tag="submit", frozen=True, kw_only=True):
    """Hand over work; every refusal comes back at once, everything else through polls of ``lane``."""

    lane: str
    epoch: int
    work: list[AnyWork]


class Poll(Message, tag="poll", frozen=True, kw_only=True):
    """Ask for all events of ``lane`` since its last poll; answered when there are some, or after ``wait_s``.

    A poll that finds another one of the same lane outstanding takes its place.
    """

    lane: str
    wait_s: float
    kv_from: int | None = None
    """Number of the next change of the prefix cache that the caller has not heard of; None: it does not want to."""


class Cancel(Message, tag="cancel", frozen=True, kw_only=True):
    """Stop these requests wherever they are; unknown ids are no error. Handles they hold are released."""

    request_ids: list[str]


class Leave(Message, tag="leave", frozen=True, kw_only=True):
    """The caller has no request left and will not poll ``lane`` again: the worker may forget it."""

    lane: str


LaneRequest = Hello | Pair | Unpair | Submit | Poll | Cancel | Leave


class HelloReply(Message, tag="hello_reply", frozen=True, kw_only=True):
    worker: WorkerInfo
    load: Load
    draining: bool = False
    """It takes in only what was on its way to it; see ``PollReply``."""


class Done(Message, tag="done", frozen=True, kw_only=True):
    """Understood and done."""


class Refused(Message, tag="refused", frozen=True, kw_only=True):
    code: ErrorCode
    message: str


class SubmitReply(Message, tag="submit_reply", frozen=True, kw_only=True):
    refused: list[Failed]


class PollReply(Message, tag="poll_reply", frozen=True, kw_only=True):
    epoch: int
    events: list[EngineEvent]
    load: Load
    kv: KvReport | None = None
    """Comes along where there is something new; it does not make a poll be answered earlier."""
    draining: bool = False
    """The worker is about to end: choose it for nothing new, and leave once nothing is on its way to it. What was
    chosen before is still taken."""


LaneReply = HelloReply | Done | Refused | SubmitReply | PollReply


# ---------------------------------------------------------------- engine process (stage ↔ engine)


class Stop(Message, tag="stop", frozen=True, kw_only=True):
    """End the engine process in good order."""


class Start(Message, tag="start", frozen=True, kw_only=True):
    """Take work (one message, many requests)."""

    work: list[AnyWork]


EngineCommand = Start | Cancel | Pair | Unpair | Stop


class Loading(Message, tag="loading", frozen=True, kw_only=True):
    """The engine process is alive and loading."""

    what: str
    fraction: float


class Ready(Message, tag="ready", frozen=True, kw_only=True):
    worker: WorkerInfo


class EngineError(Message, tag="engine_error", frozen=True, kw_only=True):
    """The engine cannot go on; the process ends after this message."""

    message: str


class Events(Message, tag="events", frozen=True, kw_only=True):
    """All that happened in one engine step. Sent at least every second, as a sign of life."""

    events: list[EngineEvent]
    load: Load
    kv: list[KvEvent] = []


EngineReport = Loading | Ready | EngineError | Events


# ---------------------------------------------------------------- KV handle


class HeldBlocks(Message, tag="blocks", frozen=True, kw_only=True):
    """KV that lies in blocks of memory that the peer may read."""

    block_ids: list[int]


class HeldByLibrary(Message, tag="library", frozen=True, kw_only=True):
    """KV that the engine's library holds, and finds again by what it has said about it."""

    context_request_id: int
    opaque_state: bytes
    """Empty: it holds none, and decode has to read the prompt itself."""
    first_token_ids: list[int]
    draft_token_ids: list[int] | None = None
    more: dict[str, int | str] = {}
    """Fields that only newer versions of the library have."""
    first_logprobs: list[Any] | None = None
    """Of the first token, as the library nests them."""


class KvHandle(Message, frozen=True, kw_only=True):
    """The ticket that prefill returns and decode redeems. Signed: see ``tandem.kv.handle``."""

    version: int
    worker_id: str
    epoch: int
    lease_id: int
    kv: KvFormat
    partition: Partition
    num_tokens: int
    """Tokens whose KV the blocks hold (the prompt's)."""
    tokens_digest: bytes
    """Hash of those token ids: a handle fits one prompt only."""
    held: HeldBlocks | HeldByLibrary

    @property
    def block_ids(self) -> list[int]:
        """Of ``HeldBlocks``; a library's are its own."""
        return self.held.block_ids if isinstance(self.held, HeldBlocks) else []


# ---------------------------------------------------------------- engine group (leader ↔ followers, over MPI)


class Row(Message, frozen=True, kw_only=True):
    """One sequence in one step."""

    num_cached: int
    """Tokens before ``token_ids`` whose KV the blocks hold."""
    token_ids: list[int]
    """Tokens to read now."""
    block_ids: list[int]


class StepPlan(Message, frozen=True, kw_only=True):
    """One pass through the model, as all ranks of a group do it."""

    is_prefill: bool
    rows: list[Row]
    whole_logits: list[int]
    """Indexes of rows whose logits the leader wants whole; of the others it wants the likeliest token alone."""


class PullOrder(Message, frozen=True, kw_only=True):
    """Read your part of the handle's blocks into ``block_ids`` of your own."""

    request_id: str
    handle: KvHandle
    block_ids: list[int]


class Orders(Message, frozen=True, kw_only=True):
    """What the leader has for its followers, in this order. Sent at least twice a second, as a sign of life."""

    unpair: list[str] = []
    """Worker ids of peers that are gone for good."""
    pair: list[WorkerInfo] = []
    pull: list[PullOrder] = []
    abort: list[str] = []
    """Requests whose reading is no longer wanted."""
    leases_held: bool = False
    """Whether peers may be reading from this group now: over a network both sides move the bytes."""
    step: StepPlan | None = None
    stop: bool = False


class ReadEnded(Message, frozen=True, kw_only=True):
    """A follower's part of a pull has ended."""

    request_id: str
    rank: int
    bytes_moved: int
    code: ErrorCode | None = None
    """None: all of its part is there."""
    message: str = ""
    still_writing: bool = False
    """The read was given up, but may yet write: the blocks are not to be used until a second message says otherwise."""


# ---------------------------------------------------------------- supervision (rank → supervisor, as lines of JSON)


class Heartbeat(Message, frozen=True, kw_only=True):
    """A rank is alive. Said twice a second, and at once when the phase changes."""

    pid: int
    """As the rank's own host counts."""
    phase: Literal["loading", "running", "stopped", "failed", "exited", "killed"]
    """stopped: ended in good order; failed: it cannot go on, ``message`` says why; exited, killed: the process has
    ended unasked, by itself or by a signal, says its guard, and ``message`` says how."""
    progress: int
    """Grows while the engine loop goes round; one that stands still while running hangs."""
    message: str = ""


# ---------------------------------------------------------------- KV hand-over (decode ↔ prefill, over NIXL)


class Confirm(Message, tag="confirm", frozen=True, kw_only=True):
    """The read of a lease's blocks has ended: did the lease still hold? Repeated until answered."""

    correlation: int
    """Names this question among all of one sender; a repetition has the same."""
    lease_id: int
    holder: str
    """Agent name of the worker, and thereby the epoch, that granted the lease."""


class Confirmed(Message, tag="confirmed", frozen=True, kw_only=True):
    """The lease held during the whole read, and ended now."""

    correlation: int


class NotConfirmed(Message, tag="not_confirmed", frozen=True, kw_only=True):
    """The lease did not hold; what was read must not be used."""

    correlation: int
    code: ErrorCode
    message: str


TransferNote = Confirm | Confirmed | NotConfirmed


_T = TypeVar("_T")
_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """Serialise any message to msgpack."""
    return _encoder.encode(message)


def decoder(kind: type[_T] | object) -> msgspec.msgpack.Decoder[_T]:
    """A typed msgpack decoder for one struct or union; raises ``msgspec.ValidationError`` on wrong input."""
    return msgspec.msgpack.Decoder(kind)
