"""``scoresde verify``: measures the order of every step on problems with exact solutions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scoresde.cli.choices import names
from scoresde.cli.console import progress
from scoresde.cli.options import VerifyOptions
from scoresde.registry import SDES, SELF_PACED, STEPS
from scoresde.runs.orders import FOURTH, TOLERANCE, Finding, cases, measure


def run(options: VerifyOptions, overrides: Mapping[str, Any]) -> int:
    """Measure and print the orders; return 1 if any differs from the declared one."""
    kinds = None if options.samplers is None else names("--samplers", options.samplers, STEPS)
    if paced := SELF_PACED.intersection(kinds or ()):
        raise ValueError(
            f"--samplers: {', '.join(paced)}: chooses its own steps, so it has no order to "
            "measure; leave it out"
        )
    findings = list(measure(cases(kinds), names("--sde", options.sde, SDES), progress))
    if options.json:
        print(json.dumps([plain(finding) for finding in findings], indent=2))
    else:
        show(findings)
    return 0 if all(finding.ok for finding in findings) else 1


def plain(finding: Finding) -> dict[str, Any]:
    """A finding as JSON values."""
    found = finding.convergence
    return {
        "sampler": finding.sampler,
        "process": finding.process,
        "order_of": "moments" if finding.weak else "paths",
        "calls_per_step": finding.calls,
        "declared": finding.declared,
        "measured": found.order,
        "ok": finding.ok,
        "steps": found.steps,
        "errors": found.errors,
    }


def show(findings: Sequence[Finding]) -> None:
    """Print a table with one row per sampler and one column per process, and a summary."""
    from rich.console import Console
    from rich.table import Table

    processes = list(dict.fromkeys(finding.process for finding in findings))
    table = Table(header_style="bold")
    table.add_column("sampler", overflow="fold")
    table.add_column("order of")
    for column in ("calls/step", "declared", *processes, "ok"):
        table.add_column(column, justify="right")
    for name in dict.fromkeys(finding.sampler for finding in findings):
        table.add_row(*_cells([finding for finding in findings if finding.sampler == name]))
    console = Console(highlight=False)
    console.print(table)
    right = sum(finding.ok for finding in findings)
    console.print(
        f"{right} of {len(findings)} orders as declared, within {TOLERANCE} "
        f"(at order 4, no more than {FOURTH} below)."
    )


def _cells(rows: Sequence[Finding]) -> Iterator[str]:
    first = rows[0]
    yield from (first.sampler, "moments" if first.weak else "paths")
    yield from (str(first.calls), str(first.declared))
    for row in rows:
        order = f"{row.convergence.order:.2f}"
        yield order if row.ok else f"[bold red]{order}[/]"
    yield "yes" if all(row.ok for row in rows) else "[bold red]no[/]"
