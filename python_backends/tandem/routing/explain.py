"""A routing decision in words and figures: for a log line, for the facts of an answer, and for ``tandem explain``."""

from __future__ import annotations

from tandem.routing.disaggregation import Task
from tandem.routing.explanation import ExplainedCandidate, ExplainedChoice, Explanation
from tandem.routing.policies.base import Choice
from tandem.routing.router import Plan


def explain(plan: Plan) -> Explanation:
    """The candidates, their costs, and why these were chosen."""
    tasks: list[tuple[Task, Choice | None]] = [
        ("prefill", plan.prefill),
        ("decode", plan.decode),
        ("generate", plan.whole),
    ]
    lender, lent_tokens = plan.loan or ("", 0)
    return Explanation(
        lender=lender,
        lent_tokens=lent_tokens,
        keeper=plan.keeper,
        policy=plan.policy,
        way=plan.verdict.way,
        reason=plan.verdict.reason,
        prompt_tokens=plan.costs.request.num_tokens,
        choices=[_explain_choice(plan, task, choice) for task, choice in tasks if choice is not None],
    )


def one_line(plan: Plan) -> str:
    """Who was chosen and why, for a log."""
    if plan.is_whole:
        assert plan.whole is not None
        chosen = _words(plan, "generate", plan.whole)
    else:
        assert plan.prefill is not None
        assert plan.decode is not None
        lent = f" and {plan.loan[1]} held by {plan.loan[0]}, which lends them" if plan.loan else ""
        chosen = f"{_words(plan, 'prefill', plan.prefill)}{lent}; {_words(plan, 'decode', plan.decode)}"
    kept = f"; kept in {plan.keeper}" if plan.keeper else ""
    return f"{chosen}; {plan.verdict.way}: {plan.verdict.reason}{kept}"


def _words(plan: Plan, task: Task, choice: Choice) -> str:
    """``prefill on prefill_1: least cost, 12.3 ms of 8.1 to 40.2, 96 of 120 tokens cached``."""
    costs = choice.cost.total[choice.bar == 0.0]
    scale, unit = (1e3, "ms") if choice.cost.unit == "seconds" else (1.0, "requests")
    words = (
        f"{task} on {plan.names[choice.place]}: {choice.reason}, {scale * choice.cost.total[choice.place]:.1f} {unit}"
    )
    if len(costs) > 1:
        words += f" of {scale * costs.min():.1f} to {scale * costs.max():.1f}"
    if task != "decode":
        words += f", {_cached(plan, choice.place)} of {plan.costs.request.num_tokens} tokens cached"
    return words


def _explain_choice(plan: Plan, task: Task, choice: Choice) -> ExplainedChoice:
    places = (choice.bar == 0.0).nonzero()[0].tolist()
    candidates = [
        ExplainedCandidate(
            plan.names[place],
            _cached(plan, place),
            float(choice.cost.total[place]),
            {name: float(column[place]) for name, column in choice.cost.parts.items()},
        )
        for place in places
    ]
    return ExplainedChoice(task, plan.names[choice.place], choice.reason, choice.cost.unit, candidates)


def _cached(plan: Plan, place: int) -> int:
    return plan.costs.request.num_tokens - int(plan.costs.uncached[place])
