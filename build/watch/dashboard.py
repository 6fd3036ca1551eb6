"""The Grafana dashboard: ``python build/watch/dashboard.py`` writes it, spelled by Grafana's own library."""

from __future__ import annotations

import string
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)

FILE = Path(__file__).parents[2] / "deployments" / "watch" / "dashboards" / "tandem.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
HERE = 'deployment="$deployment"'
ITS = 'deployment="$deployment",stage=~"$stage",worker=~"$worker"'
RATE = "[$__rate_interval]"
EACH, WHO = "worker, instance", "{{worker}} {{instance}}"
"""A worker: those behind one address have one name."""

Query = tuple[str, str]
"""PromQL, and how the legend names what it finds."""


def quantile(q: float, metric: str, labels: str, by: str = "") -> str:
    """Of a histogram."""
    return f"histogram_quantile({q}, sum by (le{by}) (rate({metric}_bucket{{{labels}}}{RATE})))"


def rate(metric: str, labels: str, by: str = "") -> str:
    """Of a counter, each second."""
    total = f"rate({metric}{{{labels}}}{RATE})"
    return f"sum by ({by}) ({total})" if by else f"sum({total})"


def graph(title: str, unit: str, *queries: Query, stacked: bool = False, about: str = "") -> timeseries.Panel:
    """Lines over time; a third of the width."""
    panel = timeseries.Panel().title(title).description(about).datasource(SOURCE).unit(unit).min(0).span(8).height(7)
    panel.legend(common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM))
    panel.fill_opacity(30 if stacked else 5)
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for name, (expression, legend) in zip(string.ascii_uppercase, queries, strict=False):
        panel.with_target(prometheus.Dataquery().ref_id(name).expr(expression).legend_format(legend).range())
    return panel


def figure(title: str, unit: str, expression: str, bad_above: float | None = None) -> stat.Panel:
    """One number; an eighth of the width."""
    panel = stat.Panel().title(title).datasource(SOURCE).unit(unit).span(3).height(4)
    panel.with_target(prometheus.Dataquery().ref_id("A").expr(expression).instant())
    steps = [Threshold(value=None, color="green")]
    if bad_above is not None:
        steps.append(Threshold(value=bad_above, color="red"))
    return panel.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))


def overview(board: dashboard.Dashboard) -> None:
    """What is asked first."""
    board.with_row(dashboard.Row("Now"))
    board.with_panel(figure("Requests in hand", "short", f"sum(tandem_requests_in_flight{{{HERE}}})"))
    board.with_panel(figure("Requests", "reqps", rate("tandem_requests_total", HERE)))
    board.with_panel(figure("Answer tokens", "short", rate("tandem_output_tokens_total", HERE)))
    board.with_panel(figure("TTFT p95", "s", quantile(0.95, "tandem_ttft_seconds", HERE), bad_above=1.0))
    errors = f'{HERE},outcome="error"'
    board.with_panel(figure("Errors", "reqps", rate("tandem_requests_total", errors), bad_above=0.001))
    for stage in ("prefill", "decode"):
        good = f'sum(tandem_workers{{{HERE},stage="{stage}",state="good"}})'
        board.with_panel(figure(f"Good {stage} workers", "short", good))
    bad = f'sum(tandem_worker_state{{{HERE},state=~"out|away"}})'
    board.with_panel(figure("Workers out or away", "short", bad, bad_above=1))


def requests(board: dashboard.Dashboard) -> None:
    """As clients see them."""
    board.with_row(dashboard.Row("Requests, as clients see them"))
    levels = (0.5, 0.95, 0.99)
    for title, metric in (
        ("Time to first token", "tandem_ttft_seconds"),
        ("Between tokens", "tandem_inter_token_seconds"),
        ("Whole requests", "tandem_request_seconds"),
    ):
        board.with_panel(graph(title, "s", *((quantile(q, metric, HERE), f"p{100 * q:g}") for q in levels)))
    outcomes = rate("tandem_requests_total", HERE, "outcome")
    board.with_panel(graph("Ended, by outcome", "reqps", (outcomes, "{{outcome}}"), stacked=True))
    refused = rate("tandem_orchestrator_refusals_total", HERE, "reason")
    board.with_panel(graph("Refused or failed, by reason", "reqps", (f"{refused} > 0", "{{reason}}"), stacked=True))
    moved, hedged = rate("tandem_migrations_total", HERE, "reason"), rate("tandem_hedges_total", HERE)
    board.with_panel(
        graph("Went on elsewhere, started twice", "reqps", (f"{moved} > 0", "moved: {{reason}}"), (hedged, "hedged"))
    )
    waiting, admitted = (
        f"sum by (priority, tenant) (tandem_queue_requests{{{HERE}}})",
        f"tandem_admitted_requests{{{HERE}}}",
    )
    board.with_panel(
        graph("Wait for their turn", "short", (waiting, "{{priority}} {{tenant}}"), (admitted, "in workers"))
    )
    late = quantile(0.95, "tandem_admission_wait_seconds", HERE, ", priority")
    board.with_panel(graph("Wait of admitted requests, p95", "s", (late, "priority {{priority}}")))
    refused = rate("tandem_admission_refusals_total", HERE, "reason, tenant")
    board.with_panel(
        graph("Refused before any work", "reqps", (f"{refused} > 0", "{{reason}} {{tenant}}"), stacked=True)
    )
    tokens = [("prompt", "prompt_tokens"), ("of these cached", "cached_prompt_tokens"), ("answer", "output_tokens")]
    board.with_panel(
        graph("Tokens a second", "short", *((rate(f"tandem_{name}_total", HERE), legend) for legend, name in tokens))
    )


def workers(board: dashboard.Dashboard) -> None:
    """What they are, do and hold."""
    board.with_row(dashboard.Row("Workers"))
    states = statetimeline.Panel().title("State, as the gateway sees it").datasource(SOURCE).span(16).height(7)
    state = f'tandem_worker_state{{{HERE},stage=~"$stage"}} == 1'
    board.with_panel(
        states.with_target(prometheus.Dataquery().ref_id("A").expr(state).legend_format("{{worker}} {{state}}"))
    )
    up, lost = f"tandem_engine_up{{{ITS}}}", f"increase(tandem_engine_restarts_total{{{ITS}}}{RATE})"
    board.with_panel(graph("Engines", "short", (up, f"{WHO} up"), (f"{lost} > 0", f"{WHO} restarted")))
    given = f'tandem_worker_requests{{{HERE},stage=~"$stage"}}'
    board.with_panel(graph("In their hands, of the gateway", "short", (given, "{{worker}}")))
    waiting, running = f"tandem_queue_length{{{ITS}}}", f"tandem_running_requests{{{ITS}}}"
    board.with_panel(graph("Queue and batch", "short", (waiting, f"{WHO} waits"), (running, f"{WHO} runs")))
    board.with_panel(graph("Prompt tokens to be read", "short", (f"tandem_queued_tokens{{{ITS}}}", WHO)))
    busy = rate("tandem_engine_step_seconds_total", ITS, EACH)
    exchange = rate("tandem_engine_collective_seconds_total", ITS, EACH)
    board.with_panel(graph("Busy", "percentunit", (busy, WHO), (f"{exchange} > 0", f"{WHO}: exchange between ranks")))
    steps = rate("tandem_engine_steps_total", ITS, EACH)
    board.with_panel(graph("Steps a second", "short", (steps, WHO)))
    read, made = (rate(f"tandem_{name}_tokens_total", ITS, EACH) for name in ("prefill", "generated"))
    board.with_panel(graph("Tokens a second", "short", (read, f"{WHO} reads"), (made, f"{WHO} writes")))
    refused = rate("tandem_refusals_total", ITS, f"{EACH}, reason")
    board.with_panel(graph("Refused or failed", "reqps", (f"{refused} > 0", f"{WHO}: {{{{reason}}}}"), stacked=True))
    parts = (("wait", "tandem_queue_seconds"), ("prefill", "tandem_prefill_seconds"))
    lines = ((quantile(0.95, metric, ITS, f", {EACH}"), f"{WHO} {part}") for part, metric in parts)
    board.with_panel(graph("Wait before prefill, and prefill, p95", "s", *lines))


def kv(board: dashboard.Dashboard) -> None:
    """The KV cache, and what moves."""
    board.with_row(dashboard.Row("KV cache"))
    used, cached, free = (f"tandem_kv_blocks_{kind}{{{ITS}}}" for kind in ("used", "cached", "free"))
    whole = f"({used} + {cached} + {free})"
    shares = ((f"{used} / {whole}", f"{WHO} used"), (f"{cached} / {whole}", f"{WHO} cached"))
    board.with_panel(graph("Blocks", "percentunit", *shares, about="used: held for requests and handles"))
    preempted = rate("tandem_preemptions_total", ITS, EACH)
    board.with_panel(graph("Gave way to others, a second", "short", (f"{preempted} > 0", WHO)))
    hits, read = (rate(f"tandem_{name}_tokens_total", ITS, EACH) for name in ("prefix_cache", "prefill"))
    board.with_panel(graph("Prefix cache hit rate", "percentunit", (f"{hits} / ({hits} + {read})", WHO)))
    lent, not_lent = rate("tandem_borrowed_tokens_total", ITS, EACH), rate("tandem_borrows_failed_total", ITS, EACH)
    lines = ((f"{lent} > 0", f"{WHO} tokens"), (f"{not_lent} > 0", f"{WHO} failed"))
    board.with_panel(graph("Borrowed, a second", "short", *lines))
    held, expired = f"tandem_kv_handles_held{{{ITS}}}", rate("tandem_kv_handles_expired_total", ITS, EACH)
    granted = rate("tandem_kv_handles_granted_total", ITS, EACH)
    board.with_panel(
        graph(
            "Handles",
            "short",
            (held, f"{WHO} held"),
            (f"{granted} > 0", f"{WHO} granted/s"),
            (f"{expired} > 0", f"{WHO} expired/s"),
        )
    )
    blocks = f"tandem_kv_tier_blocks{{{ITS}}}"
    board.with_panel(
        graph(
            "Tiers",
            "bytes",
            (f"tandem_kv_tier_bytes{{{ITS}}}", f"{WHO} {{{{tier}}}}"),
            (blocks, f"{WHO} {{{{tier}}}} blocks"),
        )
    )
    kinds = ("hits", "misses", "corrupt", "dropped", "errors")
    counts = ((f"{rate(f'tandem_kv_tier_{kind}_total', ITS, EACH)} > 0", f"{WHO} {kind}") for kind in kinds)
    board.with_panel(graph("Second tier, a second", "short", *counts))
    moved = rate("tandem_kv_transfer_bytes_total", ITS, EACH)
    board.with_panel(graph("Transfers", "Bps", (f"{moved} > 0", WHO)))
    seconds = quantile(0.95, "tandem_kv_transfer_seconds", ITS, f", {EACH}")
    board.with_panel(graph("Transfer time, p95", "s", (seconds, WHO)))


def choice(name: str, label: str, metric: str, within: str = "") -> dashboard.QueryVariable:
    """A variable with the values that a label of a metric has."""
    found = f"label_values({metric}{within}, {name})"
    variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(found)
    return variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)


def build() -> str:
    """The dashboard as JSON."""
    board = dashboard.Dashboard("Tandem").uid("tandem").tags(["tandem"]).readonly().refresh("10s")
    board.time("now-30m", "now").timezone("browser").tooltip(DashboardCursorSync.CROSSHAIR)
    board.with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
    board.with_variable(choice("deployment", "Deployment", "tandem_engine_up"))
    board.with_variable(choice("stage", "Stage", "tandem_engine_up", f"{{{HERE}}}").multi(True).include_all(True))
    board.with_variable(
        choice("worker", "Worker", "tandem_engine_up", f'{{{HERE},stage=~"$stage"}}').multi(True).include_all(True)
    )
    for row in (overview, requests, workers, kv):
        row(board)
    text: str = JSONEncoder(sort_keys=True, indent=1).encode(board.build())
    return text + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(build())
    print(FILE)
