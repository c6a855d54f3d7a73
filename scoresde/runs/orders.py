"""Measures the order of steps on problems with exact solutions, for ``scoresde verify``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scoresde.arguments import unwrapped
from scoresde.config.sections import contents
from scoresde.convergence import (
    Convergence,
    Paths,
    draws_noise,
    mixture_paths,
    path_order,
    weak_order,
)
from scoresde.progress import Progress, silent
from scoresde.registry import SDES, SELF_PACED, STEPS, Table, build_step
from scoresde.samplers import Step
from scoresde.sde import SDE

TOLERANCE = 0.15
FOURTH = 0.3  # order 4 shows on finer grids than these
FURTHER: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "recommended": [{"eta": 0.5}],
    "heun": [{"s_churn": 3.0}],
    "ddim": [{"eta": 1.0}, {"eta": 1.0, "variance": "large"}],
    "ddpm": [{"variance": "large"}],
    "sa_solver": [{"tau": 0.5}, {"predictor": 3, "corrector": 3}],
    "eab_sde": [{"std": 0.5}],
}
"""Additional settings to measure, besides the defaults and ``variants``."""
INSTEAD: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "recommended": [],  # without noise: unipc, whose ramp does no harm here
    "restart": [{"low": 0.4, "high": 1.5}],  # inside the range measured
}
"""Settings to measure instead of the defaults and ``variants``."""
SUPERCONVERGENT = {"published", "ramp"}
"""Settings of lower order whose errors fall as fast as without them, but for the first steps."""
LANGEVIN = {"pc": 1.0, "annealed_langevin": 1.2}
"""Langevin correctors and the value of n snr^2, which is that of their defaults at n = 40."""


@dataclass(frozen=True)
class Case:
    """A sampler with settings that differ from its defaults."""

    kind: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name with settings, such as "lms order=3"."""
        return " ".join([self.kind, *(f"{k}={v}" for k, v in self.settings.items())])

    def step(self, n: int) -> Step:
        """The step for a grid of n steps."""
        finer: dict[str, Any] = {}
        if self.kind in LANGEVIN:  # a constant snr leaves a bias of order snr^2
            finer = {"snr": math.sqrt(LANGEVIN[self.kind] / n)}
        return build_step(self.kind, {**self.settings, **finer}, n)


@dataclass(frozen=True)
class Finding:
    """Measured order of a sampler on one process: of its paths, or of its moments if weak."""

    sampler: str
    process: str
    weak: bool
    calls: int
    declared: int
    convergence: Convergence

    @property
    def ok(self) -> bool:
        """True within the tolerance; order 4 may exceed the declared order."""
        measured = self.convergence.order
        below = FOURTH if self.declared >= 4 else TOLERANCE
        above = math.inf if self.declared >= 4 else TOLERANCE
        return self.declared - below <= measured <= self.declared + above


def cases(kinds: Sequence[str] | None = None) -> list[Case]:
    """Cases of the given samplers, by default of all that have an order."""
    kinds = [kind for kind in STEPS if kind not in SELF_PACED] if kinds is None else kinds
    return [
        Case(kind, settings)
        for kind in kinds
        for settings in (
            *INSTEAD.get(kind, [{}, *variants(kind)]),
            *FURTHER.get(kind, ()),
        )
    ]


def variants(kind: str) -> Iterator[Mapping[str, Any]]:
    """Yield every non-default value of each setting that has few values."""
    for name, argument in STEPS.arguments(kind).items():
        plain, limits = unwrapped(argument.type)
        table = contents(argument)
        if name in SUPERCONVERGENT:
            continue
        if plain is bool:
            yield {name: not argument.default}
        elif plain is int and limits and limits[0].ge is not None and limits[0].le is not None:
            low, high = int(limits[0].ge), int(limits[0].le)
            yield from ({name: n} for n in range(low, high + 1) if n != argument.default)
        elif isinstance(table, Table):
            usual = table.name_of(argument.default)
            yield from ({name: other} for other in table if other != usual)


def measure(
    cases: Sequence[Case], processes: Sequence[str], progress: Progress = silent
) -> Iterator[Finding]:
    """Measure the order of every case on every process."""
    with progress(len(cases) * len(processes), "orders") as advance:
        for process in processes:
            sde = SDES[process]()
            paths = mixture_paths(sde)
            for case in cases:
                yield finding(case, process, sde, paths)
                advance(1)


def finding(case: Case, process: str, sde: SDE, paths: Paths) -> Finding:
    """Measure the order of moments if the step draws noise, else the order of paths."""
    step = case.step(40)
    weak = draws_noise(step)
    found = weak_order(case.step, sde) if weak else path_order(case.step, paths)
    return Finding(case.name, process, weak, step.nfe_per_step, step.order, found)
