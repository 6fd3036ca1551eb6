"""Every message that crosses a process. Read these files first.

    client ─ tensors ─ orchestrator ─ lane messages ─ stage ─ engine messages ─ engine process ═ NIXL ═ engine process

request.py       what a request asks for
work.py          orchestrator → engine: what there is to do
events.py        engine → orchestrator: what became of it
handle.py        the ticket that prefill returns and decode redeems
worker.py        who a worker is
load.py          what a worker has to do and hold
prefix_cache.py  what its prefix cache holds
lane.py          orchestrator ↔ stage
engine.py        stage ↔ engine process
confirmation.py  who reads KV ↔ who holds it, over NIXL
lending.py       the same for what one has in its prefix cache and the other lacks
group.py         leader ↔ followers of an engine group, over MPI
heartbeat.py     rank → supervisor
base.py          what all have in common, and how they become bytes

All structs travel as msgpack. A union is told apart by its ``type`` tag. Times are in seconds
unless the name says otherwise, and always durations: no clock is compared between processes.
"""

from tandem.messages.base import PROTOCOL_VERSION, FinishReason, Message, Role, StageName, decoder, does, encode
from tandem.messages.confirmation import Claim, Claimed, Confirm, Confirmed, NotConfirmed, TransferNote
from tandem.messages.engine import EngineCommand, EngineError, EngineReport, Events, Loading, Ready, Start, Stop
from tandem.messages.events import EngineEvent, Failed, Finished, Preempted, Prefilled, Pulled, TokenLogprob, Tokens
from tandem.messages.group import Orders, PullOrder, ReadEnded, Row, StepPlan
from tandem.messages.handle import HeldBlocks, HeldByLibrary, KvHandle
from tandem.messages.heartbeat import Heartbeat
from tandem.messages.lane import (
    Cancel,
    Done,
    Hello,
    HelloReply,
    LaneReply,
    LaneRequest,
    Leave,
    Pair,
    Poll,
    PollReply,
    Refused,
    Submit,
    SubmitReply,
    Unpair,
)
from tandem.messages.lending import Borrow, Lent
from tandem.messages.load import Load, TierLoad
from tandem.messages.prefix_cache import BlocksRemoved, BlocksStored, KvEvent, KvReport
from tandem.messages.request import Guide, GuideKind, Sampling, Stopping
from tandem.messages.work import DEFAULT_PRIORITY, AnyWork, Decode, Generate, Lender, Prefill, Work
from tandem.messages.worker import Feature, KvFormat, LibraryTransfer, Partition, SharedMemory, TransferInfo, WorkerInfo

__all__ = [
    "DEFAULT_PRIORITY",
    "PROTOCOL_VERSION",
    "AnyWork",
    "BlocksRemoved",
    "BlocksStored",
    "Borrow",
    "Cancel",
    "Claim",
    "Claimed",
    "Confirm",
    "Confirmed",
    "Decode",
    "Done",
    "EngineCommand",
    "EngineError",
    "EngineEvent",
    "EngineReport",
    "Events",
    "Failed",
    "Feature",
    "FinishReason",
    "Finished",
    "Generate",
    "Guide",
    "GuideKind",
    "Heartbeat",
    "HeldBlocks",
    "HeldByLibrary",
    "Hello",
    "HelloReply",
    "KvEvent",
    "KvFormat",
    "KvHandle",
    "KvReport",
    "LaneReply",
    "LaneRequest",
    "Leave",
    "Lender",
    "Lent",
    "LibraryTransfer",
    "Load",
    "Loading",
    "Message",
    "NotConfirmed",
    "Orders",
    "Pair",
    "Partition",
    "Poll",
    "PollReply",
    "Preempted",
    "Prefill",
    "Prefilled",
    "PullOrder",
    "Pulled",
    "ReadEnded",
    "Ready",
    "Refused",
    "Role",
    "Row",
    "Sampling",
    "SharedMemory",
    "StageName",
    "Start",
    "StepPlan",
    "Stop",
    "Stopping",
    "Submit",
    "SubmitReply",
    "TierLoad",
    "TokenLogprob",
    "Tokens",
    "TransferInfo",
    "TransferNote",
    "Unpair",
    "Work",
    "WorkerInfo",
    "decoder",
    "does",
    "encode",
]
