"""What the next turn of a conversation waits for, with workers that lend each other KV and without: ``python
loadtest/conversations.py``.

Two servers of ``deployments/local.toml``, one of them with ``routing.lending = false``, take turns. A conversation is a
prompt, an answer, and a second prompt that goes on from both; what is told is the second one's time to first token.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tandem.cli.client import Client
from tandem.deployment import Deployment, load_deployment, override
from tandem.text.codec import TextCodec
from tandem.triton.server import TritonServer

ROOT = Path(__file__).parents[1]
LOCAL = ROOT / "deployments" / "local.toml"
PROMPT, QUESTION, SECOND_ANSWER = 256, 32, 8
"""Tokens of the first prompt, of what the second one adds, and of the second answer."""
HEARD_S = 1.5
"""After this the orchestrator has heard what the workers keep: they are asked once a second at least."""


class Turn(msgspec.Struct, frozen=True):
    """The second turn of one conversation."""

    ttft_ms: float
    cached_tokens: int
    """Of its prompt."""


@dataclass(frozen=True)
class ConversationsRow:
    """Answers of one length; medians over all conversations."""

    answer_tokens: int
    prompt_tokens: int
    """Of the second prompt, the answer included."""
    cached_lending: float
    cached_alone: float
    """Tokens of it whose KV was not computed."""
    ttft_lending_ms: float
    ttft_alone_ms: float


@dataclass(frozen=True)
class ConversationsReport:
    """All lengths of one run."""

    conversations: int
    rows: list[ConversationsRow]


def converse(url: str, vocab_size: int, answer_tokens: int, seed: int) -> Turn:
    """One conversation of two turns."""
    rng = random.Random(seed)
    prompt = [rng.randrange(vocab_size) for _ in range(PROMPT)]
    with Client(url) as client:
        answer = ask(client, prompt, answer_tokens)["output_ids"]
        time.sleep(HEARD_S)
        question = [rng.randrange(vocab_size) for _ in range(QUESTION)]
        facts = ask(client, [*prompt, *answer, *question], SECOND_ANSWER)
    return Turn(facts["ttft_ms"], facts["num_cached_tokens"])


def ask(client: Client, prompt: list[int], max_tokens: int) -> dict[str, Any]:
    """The facts of one answer of just so many tokens."""
    facts: dict[str, Any] = {}
    for response in client.stream("llm", {"input_ids": prompt, "max_tokens": max_tokens, "ignore_eos": True}):
        facts |= response
    return facts


def measure(lending: TritonServer, alone: TritonServer, answer_tokens: int, conversations: int) -> ConversationsRow:
    """Conversations on both servers in turns; the first on each only warms up."""
    vocab_size = TextCodec(Path(lending.deployment.model.path)).vocab_size
    turns: dict[str, list[Turn]] = {lending.grpc_url: [], alone.grpc_url: []}
    for number in track(range(conversations + 1), f"answers of {answer_tokens} tokens", transient=True):
        for url, done in turns.items():
            turn = converse(url, vocab_size, answer_tokens, seed=1000 * answer_tokens + number)
            if number:
                done.append(turn)
    (ours, theirs) = turns.values()
    return ConversationsRow(
        answer_tokens=answer_tokens,
        prompt_tokens=PROMPT + answer_tokens + QUESTION,
        cached_lending=statistics.median(turn.cached_tokens for turn in ours),
        cached_alone=statistics.median(turn.cached_tokens for turn in theirs),
        ttft_lending_ms=statistics.median(turn.ttft_ms for turn in ours),
        ttft_alone_ms=statistics.median(turn.ttft_ms for turn in theirs),
    )


def deploy(lending: bool) -> Deployment:
    """``local.toml`` on free ports."""
    plain = override(load_deployment(LOCAL), http_port=0, grpc_port=0, metrics_port=0)
    workers = [msgspec.structs.replace(worker, threads=1) for worker in plain.worker]
    routing = msgspec.structs.replace(plain.routing, lending=lending)
    return msgspec.structs.replace(plain, worker=workers, routing=routing)


def table(report: ConversationsReport) -> Table:
    """The report for the terminal."""
    shown = Table(title="the second turn of a conversation")
    for name in ("answer", "its prompt", "cached, lending", "without", "TTFT, ms, lending", "without", "ratio"):
        shown.add_column(name, justify="right")
    for row in report.rows:
        shown.add_row(
            f"{row.answer_tokens}",
            f"{row.prompt_tokens}",
            f"{row.cached_lending:.0f}",
            f"{row.cached_alone:.0f}",
            f"{row.ttft_lending_ms:.0f}",
            f"{row.ttft_alone_ms:.0f}",
            f"{row.ttft_lending_ms / row.ttft_alone_ms:.2f}",
        )
    return shown


def main(
    answers: Annotated[list[int] | None, typer.Option(help="Tokens of the first answers.  [default: 128 512]")] = None,
    conversations: Annotated[int, typer.Option(help="For each length, on each server.")] = 10,
    out: Annotated[Path, typer.Option(help="Where to write the report.")] = ROOT / ".tandem" / "conversations.json",
) -> None:
    """Measure, print the table, write the JSON."""
    with TritonServer(deploy(lending=True)) as lending, TritonServer(deploy(lending=False)) as alone:
        rows = [measure(lending, alone, length, conversations) for length in answers or [128, 512]]
    report = ConversationsReport(conversations, rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(report)), indent=2))
    console = Console()
    console.print(table(report))
    console.print(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
