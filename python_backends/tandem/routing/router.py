"""Where a request goes. Runs alike in an orchestrator and on a simulated clock: it is told of everything that happens,
time included, and asks nobody.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import msgspec

from tandem.deployment import Routing
from tandem.errors import TandemError
from tandem.kv.hashes import Hashes
from tandem.messages import KvReport, Load, Role, StageName, WorkerInfo
from tandem.routing import weighing
from tandem.routing.cost import Costs, Request, weigh
from tandem.routing.disaggregation import NOBODY_WAITS, Split, Task, Verdict, Waiting, Whole, choose_way, crowding
from tandem.routing.index import Held, PrefixIndex
from tandem.routing.keeping import Keeping
from tandem.routing.lending import LEAST_GAIN_S, Offer
from tandem.routing.policies.base import Candidates, Choice
from tandem.routing.policies.registry import make_policy
from tandem.routing.room import Room, find_room, read_ahead_s
from tandem.routing.table import NOBODY, Numbers, Places, WorkerTable
from tandem.routing.worker import Booking

EXPECTED_S = 30.0
"""How long a worker that got a prompt is believed to hold its blocks before it reports them."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where a request would go now, and why; nothing has been counted yet."""

    costs: Costs
    """Of the request, on every worker."""
    hashes: Hashes
    """Of the prompt's whole blocks."""
    verdict: Verdict
    prefill: Choice | None = None
    decode: Choice | None = None
    whole: Choice | None = None
    """The worker that would do both stages; None where that was not weighed."""
    lender: Offer | None = None
    """Who lends the prefill worker what it lacks; None: nobody, it computes."""
    keeper: StageName | None = None
    """Which of two workers keeps the KV; None: each for itself."""
    spares_prefill: bool = False
    """Whether it takes nothing of prefill workers, though it could: one that only decodes does both stages."""
    names: Sequence[str]
    policy: str

    @property
    def is_whole(self) -> bool:
        """Whether one worker does both stages."""
        return self.verdict.way == "whole"

    @property
    def first_token_s(self) -> float:
        """Expected until the first token is there."""
        way = self.verdict.whole if self.is_whole else self.verdict.split
        assert way is not None
        return way.prefill_s

    @property
    def workers(self) -> tuple[str | None, str]:
        """The prefill and the decode worker; None and one name where one does both stages."""
        if self.is_whole:
            assert self.whole is not None
            return None, self.names[self.whole.place]
        assert self.prefill is not None
        assert self.decode is not None
        return self.names[self.prefill.place], self.names[self.decode.place]

    def keeps(self, stage: StageName) -> bool:
        """Whether this stage's worker is to keep the KV."""
        return self.keeper in (None, stage)

    @property
    def loan(self) -> tuple[str, int] | None:
        """Who lends to the prefill worker, and of how many of the prompt's tokens it holds the KV."""
        return None if self.lender is None else (self.names[self.lender.place], self.lender.tokens)


class Route(msgspec.Struct, frozen=True, gc=False):
    """A request on its way: what it takes of the workers chosen for it is counted until it ends."""

    prefill: Booking | None
    """None: the decode worker does both stages."""
    decode: Booking

    def sent(self, stage: StageName) -> None:
        """The worker of this stage has got its work."""
        booking = self.prefill if stage == "prefill" else self.decode
        if booking is not None:
            booking.send()

    def first_token(self) -> None:
        """The prompt has been read."""
        (self.prefill or self.decode).read()

    def released(self) -> None:
        """The prefill worker holds nothing of the request any more."""
        if self.prefill is not None:
            self.prefill.end()

    def end(self) -> None:
        """The request has ended, however it did; may be called again."""
        self.released()
        self.decode.end()


class Router:
    """Chooses workers for one orchestrator. Workers are known by their names."""

    def __init__(self, routing: Routing, block_size: int, seed: int) -> None:
        """``seed`` should differ between orchestrators, so that they do not choose alike."""
        self._routing = routing
        self._block_size = block_size
        self._policy = make_policy(routing, seed)
        self._keeping = Keeping(seed)
        self._turns = itertools.count(seed % (1 << 32))
        """So that of equal lenders not always the same one is asked."""
        self._table = WorkerTable()
        self._index = PrefixIndex()
        self._places: dict[str, int] = {}
        self._block_bytes = 0
        self._lends = False
        """Whether workers lend each other what is in their caches, and it is asked for where that is."""

    # -------------------------------------------------------------- what it is told of workers

    def add(self, name: str, role: Role) -> None:
        """A worker of the deployment, not there yet."""
        known = len(self._table.names)
        self._places[name] = place = self._table.add(name, role)
        if place == known:
            self._index.add()

    def remove(self, name: str) -> None:
        """A worker is gone for good: all of it is forgotten, and its place free for another."""
        place = self._places.pop(name)
        self._index.begin(place, None)
        self._table.remove(place)

    def join(self, name: str, info: WorkerInfo, load: Load) -> None:
        """A worker is there, with a new engine; all that was known of its cache is forgotten."""
        place = self._places[name]
        self._block_bytes = info.kv.slice_bytes * info.kv.num_layers * info.kv.num_kv_heads
        self._lends = self._routing.lending and self._routing.policy == "kv" and info.library is None
        self._index.begin(place, info.epoch)
        self._table.join(place, info.max_batch_size, load)

    def pair(self, one: str, other: str) -> None:
        """KV can move between these two from now on."""
        self._table.pair(self._places[one], self._places[other])

    def lose(self, name: str) -> None:
        """A worker is gone."""
        self._index.begin(self._places[name], None)
        self._table.lose(self._places[name])

    def drain(self, name: str) -> None:
        """A worker takes no new work."""
        self._table.drain(self._places[name])

    def own(self, name: str) -> int:
        """Requests that a worker was chosen for here and that have not ended there."""
        return self._table.own(self._places[name])

    def resume(self, name: str) -> None:
        """A worker that was drained takes new work again."""
        self._table.resume(self._places[name])

    def report(self, name: str, epoch: int, load: Load, kv: KvReport | None) -> int:
        """A worker says how it does and what its cache holds; returns the number of the next change to be asked for
        (``Poll.kv_from``)."""
        place = self._places[name]
        self._table.report(place, load)
        if kv is not None:
            self._index.take(place, epoch, kv)
        return self._index.next_number(place)

    def answered(self, max_tokens: int, tokens: int) -> None:
        """An answer of at most ``max_tokens`` has ended after ``tokens``."""
        self._table.answers.ended(max_tokens, tokens)

    # -------------------------------------------------------------- the choice

    def blocks_for(self, num_tokens: int, max_tokens: int) -> int:
        """KV blocks of a prompt and its answer, which is taken to become as long as others of late."""
        return self._blocks(num_tokens + self._table.answers.expected(max_tokens))

    def plan(
        self,
        hashes: Hashes,
        num_tokens: int,
        max_tokens: int,
        now: float,
        *,
        waiting: Waiting = NOBODY_WAITS,
        stand_in: bool = True,
        avoid: Collection[str] = (),
    ) -> Plan:
        """Where a request would go now, given the hashes of its prompt's whole blocks; to none of ``avoid``.

        ``waiting`` are those whom it would pass: they are held up by every prompt that a prefill worker reads. With
        ``stand_in``, workers of one stage do both where the other stage has none.

        Raises:
            TandemError: ``worker_lost``, naming the stage that has no worker.
        """
        self._index.expire(now)
        held = self._index.held(hashes)
        offer = self._find_offer(hashes, num_tokens, held) if self._lends else None
        table = self._table
        costs = weigh(table, self._request(held, num_tokens, max_tokens, offer))
        avoided = frozenset(self._places[name] for name in avoid if name in self._places) if avoid else NOBODY
        bar = table.paired_bar(avoided)
        if bar is None:
            return self._stand_in(costs, hashes, stand_in, avoided)
        prefill = self._choose("prefill", bar, costs)
        decode = self._choose("decode", table.bar("decode", prefill.place, avoided), costs)
        whole = None
        if self._routing.conditional_disaggregation and table.has_measured_prefill:
            whole = self._choose("generate", table.bar("decode", avoid=avoided), costs)
        verdict = choose_way(self._split(costs, prefill, decode, waiting), self._whole(costs, whole, waiting))
        is_split = verdict.way == "split"
        lender = self._choose_lender(costs, offer, prefill.place) if offer and is_split else None
        keeper = self._keeping.draw(table, now) if self._lends and is_split else None
        spares_prefill = not is_split and whole is not None and not table.takes(whole.place, "prefill")
        return self._plan(costs, hashes, verdict, prefill, decode, whole, lender, keeper, spares_prefill)

    def room(self, kv_share: float) -> Room | None:
        """How much more the workers can take at once; None where there are none. See ``find_room``."""
        return find_room(self._table, kv_share)

    def commit(self, plan: Plan, now: float) -> Route:
        """Count a plan as chosen: the next one takes it into account."""
        request, tokens = plan.costs.request, plan.costs.weighed.item
        if plan.is_whole:
            assert plan.whole is not None
            place, prefill = plan.whole.place, None
            uncached = int(tokens(weighing.UNCACHED, place))
            decode = self._table.book(place, uncached, request.all_blocks)
        else:
            assert plan.prefill is not None
            assert plan.decode is not None
            place = plan.prefill.place
            uncached = int(tokens(weighing.UNCACHED, place))
            to_read = round(tokens(weighing.TO_READ, place)) if plan.lender else uncached
            prefill = self._table.book(place, to_read, request.prompt_blocks)
            decode = self._table.book(plan.decode.place, 0, request.all_blocks, later=True)
        held = (request.num_tokens - uncached) // self._block_size
        self._index.give(place, plan.hashes, held, now, now + EXPECTED_S)
        return Route(prefill, decode)

    # -------------------------------------------------------------- its parts

    def _find_offer(self, hashes: Hashes, num_tokens: int, held: Held) -> Offer | None:
        """Who has most to lend, where there is enough of it for anybody."""
        size = self._block_size
        share = self._table.tokens_per_byte * self._block_bytes / size
        if not held.most or share >= 1.0:
            return None
        place = held.holder(next(self._turns))
        tokens = size * min(self._index.reported(place, hashes, held.most), (num_tokens - 1) // size)
        offer = Offer(place=place, tokens=tokens, share=share)
        return offer if offer.gain(num_tokens, num_tokens) * self._table.prefill_s.item(place) >= LEAST_GAIN_S else None

    def _choose_lender(self, costs: Costs, offer: Offer, borrower: int) -> Offer | None:
        """The offer, if it is of use to this prefill worker."""
        gain = offer.gain(costs.uncached.item(borrower), costs.request.num_tokens)
        is_worth_it = gain * self._table.prefill_s.item(borrower) >= LEAST_GAIN_S
        return offer if is_worth_it and self._table.is_paired(offer.place, borrower) else None

    def _request(self, held: Held, num_tokens: int, max_tokens: int, offer: Offer | None) -> Request:
        answer_tokens = self._table.answers.expected(max_tokens)
        return Request(
            num_tokens=num_tokens,
            answer_tokens=answer_tokens,
            prompt_blocks=self._blocks(num_tokens),
            all_blocks=self._blocks(num_tokens + answer_tokens),
            block_size=self._block_size,
            held=held.counts,
            lent_tokens=offer.tokens if offer else 0,
            lent_share=offer.share if offer else 1.0,
            chances=self._index.chances(),
        )

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _choose(self, task: Task, bar: Numbers | None, costs: Costs) -> Choice:
        assert bar is not None
        return self._policy.choose(Candidates(task, self._table, bar, costs))

    def _stand_in(self, costs: Costs, hashes: Hashes, allowed: bool, avoided: Places) -> Plan:
        """The plan where no two workers can share the request."""
        decoders, prefillers = (self._table.bar(stage, avoid=avoided) for stage in ("decode", "prefill"))
        bar = prefillers if decoders is None else decoders
        if bar is None or not allowed:
            stage: StageName = "decode" if decoders is None and prefillers is not None else "prefill"
            names = ", ".join(self._table.deployed(stage)) or "none"
            raise TandemError("worker_lost", f"no {stage} worker is ready (deployed: {names}); try again shortly")
        whole = self._choose("generate", bar, costs)
        return self._plan(costs, hashes, choose_way(None, self._whole(costs, whole)), None, None, whole)

    def _plan(
        self,
        costs: Costs,
        hashes: Hashes,
        verdict: Verdict,
        prefill: Choice | None,
        decode: Choice | None,
        whole: Choice | None,
        lender: Offer | None = None,
        keeper: StageName | None = None,
        spares_prefill: bool = False,
    ) -> Plan:
        return Plan(
            costs=costs,
            hashes=hashes,
            verdict=verdict,
            prefill=prefill,
            decode=decode,
            whole=whole,
            lender=lender,
            keeper=keeper,
            spares_prefill=spares_prefill,
            names=self._table.names,
            policy=self._routing.policy,
        )

    # The two ways are compared by their cheapest workers: what chance makes of near-ties says nothing about the ways.

    def _split(self, costs: Costs, prefill: Choice, decode: Choice, waiting: Waiting) -> Split:
        reader, writer, seconds = prefill.cheapest, decode.cheapest, costs.weighed.item
        pull_s = self._table.pull_s.item(writer)
        # Where a prefill worker has room they wait for something else.
        is_full = waiting.others and not read_ahead_s(self._table).item(reader)
        held_up = waiting.others / self._table.usable("prefill") if is_full else 0.0
        return Split(
            gate_s=waiting.own_s,
            prefill_s=seconds(weighing.PREFILL_TOTAL, reader),
            held_up_s=seconds(weighing.READ, reader) * held_up,
            transfer_s=costs.request.prompt_blocks * self._block_bytes * pull_s,
            decode_s=seconds(weighing.DECODE_TOTAL, writer),
        )

    def _whole(self, costs: Costs, whole: Choice | None, waiting: Waiting = NOBODY_WAITS) -> Whole | None:
        if whole is None:
            return None
        place, seconds = whole.cheapest, costs.weighed.item
        price = crowding(self._table.used_share.item(place)) if waiting.own_s else 1.0
        return Whole(
            prefill_s=seconds(weighing.WAIT, place) + seconds(weighing.READ_WHOLE, place),
            stall_s=price * seconds(weighing.STALL, place),
            decode_s=seconds(weighing.DECODE_TOTAL, place),
        )
