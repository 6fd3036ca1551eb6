"""``tandem doctor``: what is missing on this machine, and how to get it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from tandem.cli.checks import CHECKS
from tandem.cli.terminal import output
from tandem.deployment import load_deployment, override, split_parts
from tandem.errors import TandemError
from tandem.triton.home import project_root

_MARKS = {"good": "[green]✓[/green]", "note": "[yellow]–[/yellow]", "bad": "[red]✗[/red]"}


def doctor(
    deployment: Annotated[Path | None, typer.Argument(help="Check for this deployment.")] = None,
    only: Annotated[str | None, typer.Option(help="What of it would run here, as of `tandem serve`.")] = None,
) -> None:
    """Check whether this machine can run a deployment, and say how to get what is missing."""
    plan = load_deployment(deployment or project_root() / "deployments" / "local.toml")
    plan = override(plan, only=split_parts(only))
    findings = [(name, check(plan)) for name, check in CHECKS.items()]
    table = Table("", "what", Column("found", overflow="fold"), box=None, pad_edge=False)
    for name, finding in findings:
        table.add_row(_MARKS[finding.state], name, finding.text)
    output.print(table)
    if missing := [name for name, finding in findings if finding.state == "bad"]:
        raise TandemError("environment", f"not ready to serve {plan.name!r}: see {', '.join(missing)} above")
    output.print(f"Ready to serve {plan.name!r}.")
