"""Whether posterior draws are calibrated: ranks of the truth, coverage, scores, with errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.evaluation.figures import BLUE, GREY, ORANGE
from scoresde.evaluation.resampling import Estimate

LEVELS = (0.5, 0.9, 0.95)
BINS, PER_BIN = 20, 5
"""Most bins of a histogram, and fewest examples for each."""
COORDINATES, DIRECTIONS = 8, 4
"""Most coordinates and random directions that are ranked by default."""


class Row(NamedTuple):
    """A number, its standard error, and its value for the true posterior; None if unknown."""

    value: float
    error: float | None = None
    ideal: float | None = None


def fractional_ranks(draws: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """The randomised rank u of ``truth`` (...) among ``draws`` (L, ...), as a fraction.

        u = (#{x_i < truth} + v (1 + #{x_i = truth})) / (L + 1),   v uniform in (0, 1)

    If truth and draws are exchangeable it is uniform in (0, 1), exactly, for any L and ties.
    Talts and others, Validating Bayesian Inference Algorithms with Simulation-Based Calibration,
    arXiv 1804.06788, theorem 1.
    """
    v = torch.rand(truth.shape, generator=generator, dtype=torch.float64).to(truth.device)
    ties = (draws == truth).sum(0)
    return ((draws < truth).sum(0) + v * (1 + ties)) / (len(draws) + 1)


def fair_crps(draws: Tensor, truth: Tensor) -> Tensor:
    """The continuous ranked probability score (...) of ``draws`` (L, ...), for each number.

        mean_i |x_i - truth| - sum_ij |x_i - x_j| / (2 L (L - 1))

    Its mean does not depend on L. Raises ValueError for fewer than two draws. Ferro, Fair scores
    for ensemble forecasts, Q. J. R. Meteorol. Soc. 140 (2014), equation 4.
    """
    n = _count(draws)
    weights = 2 * torch.arange(1, n + 1, dtype=draws.dtype, device=draws.device) - n - 1
    pairs = torch.tensordot(weights, draws.sort(0).values, 1)  # sum over i < j
    found: Tensor = (draws - truth).abs().mean(0) - pairs / (n * (n - 1))
    return found


def fair_energy(draws: Tensor, truth: Tensor) -> Tensor:
    """The energy score () of ``draws`` (L, D), ``fair_crps`` with Euclidean distances.

    Raises ValueError for fewer than two draws.
    """
    n = _count(draws)
    pairs = torch.nn.functional.pdist(draws).sum()
    found: Tensor = (draws - truth).norm(dim=1).mean() - pairs / (n * (n - 1))
    return found


def linear_quantities(
    shape: Sequence[int], hidden: Tensor | None = None
) -> tuple[tuple[str, ...], Tensor]:
    """Names and weights (Q, D) of linear functions of a sample of this shape.

    They are up to 8 coordinates, those that the mask ``hidden`` of this shape selects if there
    are any, 4 random directions, and for pictures the mean.
    """
    d = math.prod(shape)
    generator = torch.Generator().manual_seed(0)
    places = torch.arange(d)
    if hidden is not None and bool(hidden.any()):
        places = places[hidden.flatten().cpu()]
    if len(places) > COORDINATES:
        some = torch.randperm(len(places), generator=generator)[:COORDINATES]
        places = places[some.sort().values]
    index = torch.stack(torch.unravel_index(places, tuple(shape)), 1).tolist()
    names = [f"x[{','.join(map(str, each))}]" for each in index]
    weights = [torch.nn.functional.one_hot(places, d).double()]
    if d > 1:
        away = torch.randn(DIRECTIONS, d, generator=generator, dtype=torch.float64)
        weights.append(away / away.norm(dim=1, keepdim=True))
        names += [f"direction {k}" for k in range(1, DIRECTIONS + 1)]
    if len(shape) == 3:
        weights.append(torch.full((1, d), 1 / d, dtype=torch.float64))
        names.append("mean")
    return tuple(names), torch.cat(weights)


@dataclass(frozen=True, eq=False)
class Calibration:
    """How K truths lie among draws of their posteriors.

    For the true posterior ranks are uniform, an interval of level c covers the truth in a
    proportion c of the examples, and the residual of the measurement is 1. Draws that are too
    narrow cover less, and their ranks heap up at both ends; draws that are too wide cover more.

    Args:
        ranks: ``fractional_ranks`` (K, Q) of the quantities of each example.
        names: name of each quantity.
        draws: number of draws of each example.
        asked: number of examples that were asked for; K of them are done.
        crps: fair CRPS (K,) of each example, the mean of all its coordinates.
        energy: fair energy score (K,).
        prior_crps: that of draws of the prior (K,).
        residual: mean square (K,) of |A x - y| / noise.
        nfe: mean number of network calls of a draw.
    """

    ranks: Tensor
    names: tuple[str, ...]
    draws: int
    asked: int
    crps: Tensor
    energy: Tensor
    prior_crps: Tensor | None = None
    residual: Tensor | None = None
    nfe: float = math.nan

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def bins(self) -> int:
        """Number of bins of the histograms; at least 5 examples are expected in each."""
        return max(2, min(BINS, self.draws + 1, len(self) // PER_BIN))

    @property
    def histograms(self) -> Tensor:
        """Counts (Q, bins) of the ranks of each quantity."""
        return torch.stack([part.sum(0) for part in self._hits()], 1)

    @property
    def p_values(self) -> Tensor:
        """p-value (Q,) of the uniformity of each histogram, by the chi^2 test.

        NaN for fewer than 10 examples.
        """
        expected = len(self) / self.bins
        statistic = (self.histograms - expected).square().sum(1) / expected
        half = torch.tensor((self.bins - 1) / 2, dtype=torch.float64)
        p = torch.special.gammaincc(half, statistic / 2)
        return p if len(self) >= 2 * PER_BIN else torch.full_like(p, math.nan)

    @property
    def p_value(self) -> float:
        """The smallest p-value times the number of quantities, at most 1."""
        return float((self.p_values.min() * len(self.names)).clamp(max=1))

    def coverage(self, level: float, quantity: str | None = None) -> Estimate:
        """The proportion of truths in central intervals of this level, with its error.

        Of all quantities, or of the one of this name.
        """
        covered = (self.ranks - 0.5).abs() <= level / 2
        if quantity is not None:
            covered = covered[:, [self.names.index(quantity)]]
        return proportion(covered)

    @property
    def rows(self) -> dict[str, Row]:
        """The numbers of the report, by name."""
        found = {
            f"coverage {level:.0%}": Row(*_two(self.coverage(level)), level) for level in LEVELS
        }
        found["p_value"] = Row(self.p_value)
        if self.residual is not None:
            square = _mean(self.residual)
            rms = math.sqrt(square.value)
            found["residual"] = Row(rms, square.error / (2 * rms) if rms else 0.0, 1.0)
        found["crps"] = Row(*_two(_mean(self.crps)))
        if self.prior_crps is not None:
            ratio = float(self.crps.mean() / self.prior_crps.mean())
            error = _mean(self.crps - ratio * self.prior_crps).error
            found["prior_crps"] = Row(*_two(_mean(self.prior_crps)))
            found["skill"] = Row(1 - ratio, error / float(self.prior_crps.mean()))
        found["energy"] = Row(*_two(_mean(self.energy)))
        return found

    def record(self) -> dict[str, Any]:
        """The rows, and those of each quantity, as JSON values."""
        quantities = {}
        pairs = zip(self.names, self.histograms.tolist(), self.p_values.tolist(), strict=True)
        for k, (name, counts, p) in enumerate(pairs):
            row: dict[str, Any] = {
                "p_value": _json(p),
                "mean_rank": float(self.ranks[:, k].mean()),
            }
            for level in LEVELS:
                found = self.coverage(level, name)
                row[f"coverage {level:.0%}"] = {"value": found.value, "error": found.error}
            quantities[name] = {**row, "histogram": [int(count) for count in counts]}
        rows = {
            name: {key: _json(value) for key, value in row._asdict().items()}
            for name, row in self.rows.items()
        }
        return {
            "examples": len(self),
            "asked": self.asked,
            "draws": self.draws,
            "nfe": _json(self.nfe),
            "rows": rows,
            "quantities": quantities,
        }

    def plot(self, path: Path | str, title: str = "") -> None:
        """Draw the histogram of all ranks and the coverage of every level, as a PNG.

        The bands and bars are two standard errors.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4.2), dpi=120, layout="constrained")
        left, right = figure.subplots(1, 2)
        parts = [proportion(part) for part in self._hits()]
        heights = [part.value * self.bins for part in parts]
        band = 2 * self.bins * math.sqrt(sum(p.error**2 for p in parts) / self.bins)
        edges = [k / self.bins for k in range(self.bins)]
        left.bar(edges, heights, 1 / self.bins, align="edge", color=BLUE)
        style = {"color": GREY, "alpha": 0.5, "linewidth": 0, "zorder": 2}
        left.axhspan(max(0, 1 - band), 1 + band, label="2 errors", **style)
        left.axhline(1, color="black", linewidth=0.8)
        left.set(xlim=(0, 1), xlabel="rank of the truth among the draws, as a fraction")
        left.set(ylim=(0, 1.1 * max(*heights, 1 + band)), ylabel="density")
        left.set_title(f"ranks of {len(self)} truths, {len(self.names)} quantities", fontsize=10)
        left.legend(frameon=False)
        levels = [k / 40 for k in range(41)]
        for name in self.names:
            curve = [self.coverage(level, name).value for level in levels]
            right.plot(levels, curve, color=GREY, linewidth=0.6)
        right.plot([], [], color=GREY, linewidth=0.6, label="each quantity")
        right.plot(levels, [self.coverage(c).value for c in levels], color=BLUE, label="all")
        marks = [self.coverage(level) for level in LEVELS]
        bars = [2 * mark.error for mark in marks]
        right.errorbar(LEVELS, [m.value for m in marks], bars, fmt="o", color=ORANGE, markersize=4)
        right.plot([0, 1], [0, 1], color="black", linewidth=0.8)
        right.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="level of the interval")
        right.set(ylabel="proportion of truths in it")
        right.set_title("coverage of central intervals", fontsize=10)
        right.legend(frameon=False)
        figure.suptitle(title, fontsize=11)
        figure.savefig(path, format="png")

    def _hits(self) -> list[Tensor]:
        """Which ranks (K, Q) are in each bin."""
        place = (self.ranks * self.bins).long().clamp(max=self.bins - 1)
        return [place == k for k in range(self.bins)]


def proportion(hits: Tensor) -> Estimate:
    """The proportion of ``hits`` (K, Q) that are true, with its standard error.

    The quantities of an example may be correlated: the error is that between the examples, but
    at least the binomial one of K Q independent hits, with one hit and one miss added to them.
    """
    k, n = len(hits), hits.numel()
    each = hits.double().mean(1)
    p = (float(hits.sum()) + 1) / (n + 2)
    between = float(each.var()) / k if k > 1 else 0.0
    return Estimate(float(each.mean()), math.sqrt(max(between, p * (1 - p) / n)))


def _mean(values: Tensor) -> Estimate:
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), error)


def _two(found: Estimate) -> tuple[float, float]:
    return found.value, found.error


def _json(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _count(draws: Tensor) -> int:
    if len(draws) < 2:
        raise ValueError(f"a fair score needs at least 2 draws, got {len(draws)}")
    return len(draws)
