"""``scoresde verify``: the order of every step, measured on problems with exact answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scoresde.cli.choices import names
from scoresde.cli.console import progress
from scoresde.cli.options import VerifyOptions
from scoresde.convergence import (
    Convergence,
    Paths,
    draws_noise,
    mixture_paths,
    path_order,
    weak_order,
)
from scoresde.registry import PREDICTIONS, SDES, SELF_PACED, STEPS, build_step
from scoresde.samplers import Step
from scoresde.sde import SDE

TOLERANCE = 0.15
FOURTH = 0.3  # order 4 shows on finer grids than these
ORDERS = [{"order": order} for order in (1, 2, 3, 4)]
VARIANTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "recommended": [{"eta": 0.5}],  # without noise: eab, from where its ramp does no harm
    "heun": [{}, {"s_churn": 3.0}],
    "ddim": [{}, {"eta": 1.0}],
    "ddpm": [{}, {"large": True}],
    "dpmpp_2m_sde": [{}, {"heun": True}],
    "sa_solver": [{}, {"tau": 0.5}, {"predictor": 3, "corrector": 3}],
    "eab_sde": [{}, {"std": 0.5}],
    "restart": [{"low": 0.4, "high": 1.5}],  # inside the range measured
    "dpm_solver": ORDERS[:3],
    "dpm_solver_singlestep": ORDERS[:3],
    "eab": [*ORDERS, *({"prediction": name} for name in PREDICTIONS if name != "x0")],
    "deis": [*ORDERS, {"variable": "clock"}, {"variable": "ratio"}],
    **dict.fromkeys(("lms", "ipndm_v", "ipndm", "plms", "unipc"), ORDERS),
}
"""The options a sampler is measured with, where those by default are not all."""
LANGEVIN = {"pc": 1.0, "annealed_langevin": 1.2}
"""Correctors, with n snr^2: their defaults in 40 steps."""


@dataclass(frozen=True)
class Case:
    """A sampler with some of its options."""

    kind: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Such as "lms order=3"."""
        return " ".join([self.kind, *(f"{k}={v}" for k, v in self.options.items())])

    def step(self, n: int) -> Step:
        """The step for a grid of n steps, finer as n grows in all it does."""
        if self.kind == "dpm_fast":
            return build_step(self.kind, {}, 3 * (n - 1))[0]
        finer: dict[str, Any] = {}
        if self.kind == "restart":
            finer = {"inner_steps": n // 5}
        elif self.kind in LANGEVIN:  # a snr that stays leaves a bias of its square
            finer = {"snr": math.sqrt(LANGEVIN[self.kind] / n)}
        return build_step(self.kind, {**self.options, **finer}, n)[0]


@dataclass(frozen=True)
class Finding:
    """The order of a sampler on one process: of its paths, or weak, of its moments."""

    sampler: str
    process: str
    weak: bool
    calls: int
    declared: int
    convergence: Convergence

    @property
    def ok(self) -> bool:
        """Within the tolerance; more than declared is no fault at order 4."""
        measured = self.convergence.order
        below = FOURTH if self.declared >= 4 else TOLERANCE
        above = math.inf if self.declared >= 4 else TOLERANCE
        return self.declared - below <= measured <= self.declared + above


def run(options: VerifyOptions, overrides: Mapping[str, Any]) -> int:
    """Measure, print, and return 1 if an order is not the declared one."""
    cases = chosen(options.samplers)
    processes = names("--sde", options.sde, SDES)
    with progress(len(cases) * len(processes), "orders") as advance:
        findings = list(measure(cases, processes, advance))
    if options.json:
        print(json.dumps([plain(finding) for finding in findings], indent=2))
    else:
        show(findings)
    return 0 if all(finding.ok for finding in findings) else 1


def chosen(text: str | None) -> list[Case]:
    """The cases of ``--samplers``, of all that have an order without it. Raises ValueError."""
    kinds = [k for k in STEPS if k not in SELF_PACED] if text is None else _named(text)
    return [Case(kind, some) for kind in kinds for some in VARIANTS.get(kind, [{}])]


def _named(text: str) -> list[str]:
    kinds = names("--samplers", text, STEPS)
    if paced := SELF_PACED.intersection(kinds):
        raise ValueError(
            f"--samplers: {', '.join(paced)}: its steps are its own, so that there is no order to "
            "measure; leave it out"
        )
    return kinds


def measure(
    cases: Sequence[Case], processes: Sequence[str], advance: Callable[[int], None]
) -> Iterator[Finding]:
    """The order of every case on every process."""
    for process in processes:
        sde = SDES[process]()
        paths = mixture_paths(sde)
        for case in cases:
            yield finding(case, process, sde, paths)
            advance(1)


def finding(case: Case, process: str, sde: SDE, paths: Paths) -> Finding:
    """The order of paths, or where the step draws noise, of moments."""
    step = case.step(40)
    weak = draws_noise(step)
    found = weak_order(case.step, sde) if weak else path_order(case.step, paths)
    return Finding(case.name, process, weak, step.nfe_per_step, step.order, found)


def plain(finding: Finding) -> dict[str, Any]:
    """The finding as JSON has it."""
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
    """A table, a sampler a line and a process a column, and what it says."""
    from rich.console import Console
    from rich.table import Table

    processes = list(dict.fromkeys(finding.process for finding in findings))
    table = Table(header_style="bold")
    table.add_column("sampler", overflow="fold")
    table.add_column("order of")
    for column in ("calls/step", "declared", *processes, "ok"):
        table.add_column(column, justify="right")
    for name in dict.fromkeys(finding.sampler for finding in findings):
        rows = [finding for finding in findings if finding.sampler == name]
        table.add_row(*_cells(rows))
    console = Console(highlight=False)
    console.print(table)
    off = [finding for finding in findings if not finding.ok]
    console.print(
        f"{len(findings) - len(off)} of {len(findings)} orders as declared, within {TOLERANCE} "
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
