"""Posteriors of measurements: every method beside exact ones, and beside azula's methods.

    python experiments/posteriors.py [--azula FOLDER FOLDER] [--only PART] [--trial]

Six kinds of problems whose posterior is known: two Gaussians, and four mixtures whose posterior
has two components or more of weight above 0.1. Two draws of each kind (prior, operator, y), one of
the Gaussian in 64-D. Every method of ``registry.POSTERIORS`` with its defaults, under VP, judged
by the sliced Wasserstein-2 distance to the exact posterior in its own deviations, from 4 sets of
exact draws, as many as there are samples: 1024, but 256 in 64-D, where ``twisted_smc`` is slow,
for the peers too. twisted_smc has as many particles as samples. The floor is that of exact draws.
The exact conditional denoiser in the default sampler shows what solving costs.

Peers are measured where ``--azula`` and ``--deepinv`` name their folders, and those of what they
import (einops, torchmetrics ...); in 64-D at 50 and 100 calls alone. azula 0.11 has its defaults
and its VPSchedule. Its twisted SMC gets populations of 64 particles, pooled to as many samples.
The twist, which azula leaves to the user, is N(y; A x0_hat, r^2 A A* + noise^2) of ``PiGDM`` here.
deepinv 0.5 has the defaults of its data fidelities in ``PosteriorDiffusion``, and of its VP
process. Its DiffPIR and DDRM were left out: they are for pictures in [0, 1]. Packages that it
imports for data sets, torchvision among them, are stubs in this process. Where a peer leaves the
sampler open, both DDIM and DDPM are run.

A part that is stored is not measured again; ``--only`` measures the parts whose names begin so.
Prints tables in markdown, writes experiments/results/posteriors.json. ``--trial`` is a light run
that stores nothing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import json
import math
import re
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import MagicMock

import torch
from judging import surroundings
from torch import Tensor

import scoresde as ss
from scoresde.evaluation.transport import directions, sliced_wasserstein
from scoresde.posterior import Linear, Mask, Measurement, MomentMatching
from scoresde.posterior.operators import LinearOperator
from scoresde.registry import POSTERIORS
from scoresde.samplers import per_sample_noise, sample, starting_noise
from scoresde.sde import VP
from scoresde.testing import Gaussian, Mixture

STORE = Path(__file__).parent / "results" / "posteriors.json"
SDE = VP()
NFES = (20, 50, 100, 200)
JUDGED = (50, 100)  # calls of the comparison with the peers
SETS, SLICES = 4, 64
SMC = "twisted_smc"
EXACT, FLOOR = "exact conditional denoiser", "exact draws"
MOMENTS = "azula moment matching"
PEERS = ("azula", "deepinv")

Problem = Gaussian | Mixture
Cells = dict[str, dict[str, Any]]


# --- problems ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A prior, a measurement of one of its samples, and the posterior."""

    prior: Problem
    operator: LinearOperator
    y: Tensor
    noise: float
    x0: Tensor

    @property
    def posterior(self) -> Problem:
        """The exact one."""
        return self.prior.posterior(self.operator, self.y, self.noise)


@dataclass(frozen=True)
class Kind:
    """Problems by seed, the noise of their measurement, and how much of them is measured."""

    make: Callable[[torch.Generator], tuple[Problem, LinearOperator]]
    noise: float
    samples: int = 1024
    draws: int = 2
    peers: tuple[int, ...] = NFES

    def case(self, seed: int) -> Case:
        """One draw of the kind."""
        g = seeded(seed)
        prior, operator = self.make(g)
        x0 = prior.sample(1, g)
        y = operator(x0)
        y = (y + self.noise * normal(g, *y.shape))[0]
        y = y * operator.mask if isinstance(operator, Mask) else y
        return Case(prior, operator, y, self.noise, x0[0])

    def cases(self) -> Iterator[Case]:
        """Draws of which the posterior has two components of weight above 0.1, if it has any."""
        for seed in range(10_000):
            case = self.case(seed)
            exact = case.posterior
            if isinstance(exact, Gaussian) or (weights(exact) > 0.1).sum() > 1:
                yield case


def seeded(seed: int) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def weights(mixture: Mixture) -> Tensor:
    """Weights that add up to 1."""
    return mixture.weights / mixture.weights.sum()


def gaussian_8(g: torch.Generator) -> tuple[Problem, LinearOperator]:
    """A random covariance, 3 random measurements."""
    root = normal(g, 8, 8) / 4
    cov = root @ root.T + 0.02 * torch.eye(8).double()
    return Gaussian(0.3 * normal(g, 8), cov), Linear(normal(g, 3, 8) / math.sqrt(8))


def gaussian_64(g: torch.Generator) -> tuple[Problem, LinearOperator]:
    """Mean and covariance of the digits in [-1, 1], turned and mirrored at random; upper half."""
    from sklearn.datasets import load_digits

    x = torch.tensor(load_digits().data / 8 - 1).reshape(-1, 8, 8)
    turns, mirrored = torch.randint(4, (2,), generator=g).tolist()
    x = torch.rot90(x.flip(1) if mirrored % 2 else x, turns, (1, 2)).flatten(1)
    cov = torch.cov(x.T) + 1e-3 * torch.eye(64).double()
    return Gaussian(x.mean(0), cov), Mask(torch.arange(64) < 32)


def components(g: torch.Generator, k: int, d: int, spread: float, std: float) -> Mixture:
    """Components of unequal weights, scattered by ``spread``, of deviations near ``std``."""
    w = torch.rand(k, generator=g, dtype=torch.float64) + 0.3
    return Mixture(w, spread * normal(g, k, d), std * (0.3 * normal(g, k, d)).exp())


def mixture_2(g: torch.Generator) -> tuple[Problem, LinearOperator]:
    """One measurement of a mixture of 6 in the plane."""
    return components(g, 6, 2, 0.6, 0.12), Linear(normal(g, 1, 2))


def mixture_16(g: torch.Generator) -> tuple[Problem, LinearOperator]:
    """5 measurements of a mixture of 6 in 16-D."""
    return components(g, 6, 16, 0.5, 0.2), Linear(normal(g, 5, 16) / 4)


def mixture_64(g: torch.Generator) -> tuple[Problem, LinearOperator]:
    """A random half of 64 numbers of a mixture of 10: 5 pairs, which differ in the hidden half.

    Random components would all be told apart by the half that is kept.
    """
    prior = components(g, 10, 64, 0.4, 0.2)
    kept = torch.zeros(64, dtype=torch.bool)
    kept[torch.randperm(64, generator=g)[:32]] = True
    means, stds = prior.means.clone(), prior.stds
    assert stds is not None
    stds = stds.clone()
    means[1::2, kept] = means[::2, kept] + 0.02 * normal(g, 5, 32)
    stds[1::2] = stds[::2]
    return Mixture(prior.weights, means, stds), Mask(kept)


KINDS = {
    "Gaussian 8-D": Kind(gaussian_8, 0.1),
    "Gaussian 64-D": Kind(gaussian_64, 0.05, 256, 1, JUDGED),
    "mixture 2-D": Kind(mixture_2, 0.1),
    "mixture 16-D": Kind(mixture_16, 0.1),
    "mixture 16-D, noise 0.5": Kind(mixture_16, 0.5),
    "mixture 64-D": Kind(mixture_64, 0.02, 256, 2, JUDGED),
}
MIXTURES = [name for name in KINDS if name.startswith("mixture")]
PAIRS = dict(zip(MIXTURES, (100, 40, 40, 12), strict=True))  # of x0 and y, for the coverage


# --- what is measured of samples --------------------------------------------------------------


def mean_and_std(exact: Problem) -> tuple[Tensor, Tensor]:
    """Those of every number."""
    if isinstance(exact, Gaussian):
        return exact.mean.flatten(), torch.as_tensor(exact.cov).diagonal().sqrt()
    assert exact.covs is not None
    w, m = weights(exact)[:, None], exact.means.flatten(1)
    mean = (w * m).sum(0)
    second = (w * (exact.covs.diagonal(dim1=1, dim2=2) + m**2)).sum(0)
    return mean, (second - mean**2).sqrt()


def judged(x: Tensor, exact: Problem) -> tuple[float, float, float]:
    """Sliced W2, root mean square bias of the mean, both in deviations, and mean std ratio."""
    if not bool(x.isfinite().all()):
        return math.inf, math.inf, math.inf
    mean, std = mean_and_std(exact)
    x, lines = x.detach().double().flatten(1), directions(SLICES, len(std), seeded(1))
    found = [
        sliced_wasserstein(x / std, exact.sample(len(x), seeded(1000 + k)).flatten(1) / std, lines)
        for k in range(SETS)
    ]
    bias = ((x.mean(0) - mean) / std).square().mean().sqrt()
    return sum(found) / SETS, float(bias), float((x.std(0) / std).mean())


def measured(
    draw: Callable[[Case, int, int], Tensor], kind: Kind, nfes: tuple[int, ...], light: bool
) -> Cells:
    """By number of calls, what is judged of the draws of a kind."""
    cells = {}
    for nfe in nfes[: 2 if light else None]:
        rows = []
        for _, case in zip(range(kind.draws), kind.cases(), strict=False):
            n = 128 if light else kind.samples
            rows.append(judged(draw(case, n, nfe), case.posterior))
        w2, bias, spread = (
            [number(value) for value in column] for column in zip(*rows, strict=True)
        )
        cells[str(nfe)] = {"w2": w2, "bias": bias, "std_ratio": spread}
    return cells


def number(value: float) -> float | None:
    """Four digits; None for what is not finite, which JSON cannot say."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


# --- ours -------------------------------------------------------------------------------------


def by(method: str) -> Callable[[Case, int, int], Tensor]:
    """The samples of a method with its defaults."""

    def draw(case: Case, n: int, nfe: int) -> Tensor:
        particles = n if method == SMC else None
        return infer(case, method, n, nfe, particles).x

    return draw


def infer(
    case: Case, method: str, n: int, nfe: int, particles: int | None = None, seed: int = 0
) -> ss.Inferred:
    """ss.infer of a case."""
    return ss.infer(
        case.prior.denoiser(SDE),
        case.operator,
        case.y,
        case.noise,
        method=method,
        seeds=range(seed * n, (seed + 1) * n),
        nfe=nfe,
        particles=particles,
        batch=n,
    )


def start(case: Case, n: int) -> tuple[Tensor, Any]:
    """States at t_max of seeds 0, 1, ..., and their noise."""
    noise = per_sample_noise(range(n))
    like = torch.empty(n, len(case.x0), dtype=torch.float64)
    return starting_noise(SDE, like, noise), noise


def conditional(case: Case, n: int, nfe: int) -> Tensor:
    """The exact conditional denoiser in the default sampler."""
    return sample(case.posterior.denoiser(SDE), start(case, n)[0], nfe=nfe)


def exact_draws(case: Case, n: int, nfe: int) -> Tensor:
    """Draws of the posterior, others for each number of calls."""
    return case.posterior.sample(n, seeded(nfe))


def ours() -> dict[str, Callable[[Case, int, int], Tensor]]:
    """Our methods, and what they are measured by."""
    return {FLOOR: exact_draws, EXACT: conditional} | {name: by(name) for name in POSTERIORS}


# --- peers ------------------------------------------------------------------------------------


def measuring(case: Case) -> tuple[Tensor, Tensor]:
    """The rows that measure something, and their y."""
    h = case.operator(torch.eye(len(case.x0)).double()).T
    seen = h.square().sum(1) > 0
    return h[seen], case.y[seen]


def azula_methods() -> dict[str, Callable[[Case, int, int], Tensor]]:
    """azula's methods, by name."""
    guidance = importlib.import_module("azula.guidance")
    denoise = importlib.import_module("azula.denoise")
    samplers = importlib.import_module("azula.sample")
    vp = importlib.import_module("azula.noise").VPSchedule()

    class Schedule:
        """azula's process for our exact denoisers."""

        def alpha(self, t: Tensor) -> Tensor:
            return vp.alpha(t)

        def sigma(self, t: Tensor) -> Tensor:
            return vp.sigma(t)

    class Exact(denoise.Denoiser):
        """An exact denoiser as azula's."""

        schedule = vp

        def __init__(self, case: Case) -> None:
            super().__init__()
            self.predict = case.prior.denoiser(Schedule()).predict

        def forward(self, x: Tensor, t: Tensor) -> Any:
            return denoise.DiracPosterior(mean=self.predict(x, t))

    def drawn(sampler: Any, case: Case, n: int) -> Tensor:
        x = sampler.init((n, len(case.x0))).double()
        found: Tensor = sampler(x).detach()
        return found

    def settings(nfe: int) -> dict[str, Any]:
        return {"steps": nfe, "silent": True, "dtype": torch.float64}

    def guided(name: str, sampler: str, **given: Any) -> Callable[[Case, int, int], Tensor]:
        def draw(case: Case, n: int, nfe: int) -> Tensor:
            torch.manual_seed(nfe)
            h, y = measuring(case)
            noise = torch.tensor(case.noise**2).double()
            denoiser = getattr(guidance, name)(Exact(case), y, lambda x: x @ h.T, noise, **given)
            return drawn(getattr(samplers, sampler)(denoiser, **settings(nfe)), case, n)

        return draw

    def dps(case: Case, n: int, nfe: int) -> Tensor:
        torch.manual_seed(nfe)
        h, y = measuring(case)
        sampler = guidance.DPSSampler(Exact(case), y, lambda x: x @ h.T, **settings(nfe))
        return drawn(sampler, case, n)

    def pigdm(case: Case, n: int, nfe: int) -> Tensor:
        torch.manual_seed(nfe)
        h, y = measuring(case)
        back = torch.linalg.pinv(h)
        sampler = guidance.PGDMSampler(
            Exact(case), y, lambda x: x @ h.T, lambda u: u @ back.T, **settings(nfe)
        )
        return drawn(sampler, case, n)

    def twisted(case: Case, n: int, nfe: int) -> Tensor:
        torch.manual_seed(nfe)
        h, y = measuring(case)
        square, u = torch.linalg.eigh(h @ h.T)

        def twist(x0: Tensor, ratio: Tensor) -> Tensor:
            r2 = 0.25 * ratio**2 / (0.25 + ratio**2)
            variance = r2 * square + case.noise**2
            return -0.5 * (((y - x0 @ h.T) @ u).square() / variance + variance.log()).sum(1)

        sampler = guidance.TDSSampler(Exact(case), twist, **settings(nfe))
        return torch.cat([drawn(sampler, case, 64) for _ in range(n // 64)])

    return {
        f"{MOMENTS}, 1 iteration, DDIM": guided("MMPSDenoiser", "DDIMSampler"),
        f"{MOMENTS}, 1 iteration, DDPM": guided("MMPSDenoiser", "DDPMSampler"),
        f"{MOMENTS}, 8 iterations, DDIM": guided("MMPSDenoiser", "DDIMSampler", iterations=8),
        f"{MOMENTS}, 8 iterations, DDPM": guided("MMPSDenoiser", "DDPMSampler", iterations=8),
        "azula TMPD, DDIM": guided("TMPDenoiser", "DDIMSampler"),
        "azula TMPD, DDPM": guided("TMPDenoiser", "DDPMSampler"),
        "azula DiffPIR, DDIM": guided("DiffPIRDenoiser", "DDIMSampler"),
        "azula DiffPIR, DDPM": guided("DiffPIRDenoiser", "DDPMSampler"),
        "azula DPS": dps,
        "azula PiGDM": pigdm,
        "azula twisted SMC, 64 particles": twisted,
    }


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Packages that deepinv imports and its samplers do not need: stubs, in this process alone."""

    names = ("torchvision", "natsort", "h5py")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """A stub for these names."""
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        """A module whose every name is a mock."""

        class Stub(types.ModuleType):
            __path__: ClassVar[list[str]] = []

            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return MagicMock()

        return Stub(spec.name)

    def exec_module(self, module: Any) -> None:
        """Nothing to run."""


def deepinv_methods() -> dict[str, Callable[[Case, int, int], Tensor]]:
    """deepinv's methods, by name."""
    sys.meta_path.insert(0, Absent())
    sampling = importlib.import_module("deepinv.sampling")
    physics = importlib.import_module("deepinv.physics")

    class Clean:
        """x = x0 + sigma eps at t = sigma, as deepinv's denoisers take it."""

        def alpha(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

        def sigma(self, t: Tensor) -> Tensor:
            return t

    class Exact(torch.nn.Module):
        """An exact denoiser as deepinv's."""

        def __init__(self, case: Case) -> None:
            super().__init__()
            self.predict = case.prior.denoiser(Clean()).predict

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            level = sigma.double().flatten()
            return self.predict(x.double(), level.expand(len(x))).to(x)

    def method(fidelity: str, solver: str) -> Callable[[Case, int, int], Tensor]:
        def draw(case: Case, n: int, nfe: int) -> Tensor:
            h, y = measuring(case)
            denoiser, g = Exact(case), seeded(nfe)
            operator = physics.LinearPhysics(
                A=lambda x, **_: x @ h.T.to(x),
                A_adjoint=lambda u, **_: u @ h.to(u),
                noise_model=physics.GaussianNoise(case.noise),
            )
            model = sampling.PosteriorDiffusion(
                getattr(sampling, fidelity)(denoiser=denoiser),
                denoiser,
                sampling.VariancePreservingDiffusion(alpha=float(solver == "DDPMSolver")),
                getattr(sampling, solver)(torch.linspace(1, 0, nfe + 1).double(), rng=g),
                minus_one_one=False,
            )
            found: Tensor = model(y.expand(n, -1), operator, x_init=(n, len(case.x0)))
            return found.detach()

        return draw

    kinds = {
        "moment matching": "MomentMatchingDataFidelity",
        "PiGDM": "PiGDMDataFidelity",
        "DPS": "DPSDataFidelity",
    }
    return {
        f"deepinv {title}, {solver}": method(fidelity, f"{solver}Solver")
        for title, fidelity in kinds.items()
        for solver in ("DDIM", "DDPM")
    }


# --- further measurements ---------------------------------------------------------------------


def particles(name: str, light: bool) -> dict[str, Any]:
    """twisted_smc against its number of particles, 50 calls: W2 of 1024, error of log p(y)."""
    case = next(KINDS[name].cases())
    exact, truth = case.posterior, evidence_of(case)
    rows, seeds = [], 2 if light else 4
    for count in (16, 64, 256) if light else (16, 64, 256, 1024, 4096):
        n = 1024
        found = [infer(case, SMC, n, 50, count, seed) for seed in range(seeds)]
        w2 = [judged(each.x, exact)[0] for each in found]
        errors = [required(each.log_evidence) - truth for each in found]
        rows.append(
            {
                "particles": count,
                "w2": [number(value) for value in w2],
                "log_evidence_errors": [number(value) for value in errors],
                "sizes": [number(required(each.size)) for each in found],
            }
        )
    draws = [judged(exact.sample(1024, seeded(k)), exact)[0] for k in range(4)]
    return {"rows": rows, "floor": number(sum(draws) / 4)}


def evidence(name: str, light: bool) -> dict[str, Any]:
    """Whether log p(y) lies within 1.96 errors: 256 particles, 100 calls, fresh measurements."""
    runs = 3 if light else 4 if "64" in name else 20
    found = []
    for seed in range(runs):
        case = KINDS[name].case(5000 + seed)
        run = infer(case, SMC, 128, 100, 256, seed)
        error = required(run.log_evidence) - evidence_of(case)
        found.append([number(error), number(required(run.log_evidence_error))])
    within = sum(abs(required(error)) <= 1.96 * required(std) for error, std in found)
    return {"errors": found, "within": within, "runs": runs}


def evidence_of(case: Case) -> float:
    """The closed form of log p(y), of what is measured."""
    assert isinstance(case.prior, Mixture)
    operator, y = case.operator, case.y
    if isinstance(operator, Mask):
        kept = operator.mask.bool().flatten()
        operator, y = Linear(torch.eye(len(kept)).double()[kept]), y[kept]
    return case.prior.log_evidence(operator, y, case.noise)


def coverage(name: str, light: bool) -> dict[str, Any]:
    """How many of the true numbers lie in the 90 % intervals, for fresh pairs of x0 and y.

    The interval is from the 13th smallest to the 13th largest of 256 samples, which holds 89.9 %
    of exact draws. The error is the standard error over pairs, of which there are more where each
    has few numbers.
    """
    pairs, n, cut = 4 if light else PAIRS[name], 256, 13
    inside: dict[str, list[float]] = {method: [] for method in (FLOOR, *POSTERIORS)}
    for seed in range(pairs):
        case = KINDS[name].case(20_000 + seed)
        for method, shares in inside.items():
            if method == FLOOR:
                x = case.posterior.sample(n, seeded(seed))
            else:
                x = infer(case, method, n, 50, 2 * n if method == SMC else None, seed).x
            below = (x < case.x0).sum(0)
            shares.append(float(((below >= cut) & (below <= n - cut)).double().mean()))
    rows = {}
    for method, shares in inside.items():
        values = torch.tensor(shares).double()
        error = float(values.std()) / math.sqrt(pairs)
        rows[method] = {"share": number(float(values.mean())), "error": number(error)}
    return {"rows": rows, "pairs": pairs, "numbers": len(case.x0)}


def moments(name: str, light: bool) -> dict[str, Any]:
    """Moment matching on a Gaussian against the exact flow from the same starts.

    Largest error of a mean in deviations, and of a deviation, relative: without sampling error.
    The same with 32 iterations, and of the exact conditional denoiser: what the solver costs.
    """
    rows: dict[str, Any] = {}
    for nfe in NFES:
        worst = torch.zeros(6, dtype=torch.float64)
        for _, case in zip(range(2), KINDS[name].cases(), strict=False):
            exact = case.posterior
            assert isinstance(exact, Gaussian)
            x, noise = start(case, 128 if light else 512)
            measurement = Measurement(case.operator, case.y, case.noise)
            ends = [torch.tensor(t).double() for t in (SDE.t_max, SDE.t_min)]
            true, std = exact.flow(x, SDE, *ends), mean_and_std(exact)[1]
            prior = case.prior.denoiser(SDE)
            ours = [
                method(prior, measurement, x, noise, nfe)
                for method in (MomentMatching(), MomentMatching(iterations=32))
            ]
            found = []
            for each in (*ours, conditional(case, len(x), nfe)):
                found.append(((each.mean(0) - true.mean(0)) / std).abs().max())
                found.append((each.std(0) / true.std(0) - 1).abs().max())
            worst = torch.maximum(worst, torch.stack(found))
        names = ("mean", "std", "mean_32", "std_32", "exact_mean", "exact_std")
        rows[str(nfe)] = dict(zip(names, map(number, worst.tolist()), strict=True))
    return {"rows": rows}


def required(value: float | None) -> float:
    """A number that is there."""
    assert value is not None
    return value


# --- tables -----------------------------------------------------------------------------------


def w2_of(cells: Cells, nfe: int) -> float:
    """The mean over the draws of a kind."""
    found = cells.get(str(nfe), {"w2": [None]})["w2"]
    return math.inf if None in found else sum(found) / len(found)


def table(stored: dict[str, Any]) -> str:
    """Sliced W2 in markdown: one line a method, by kind 20 / 50 / 100 / 200 calls."""
    parts = ("ours", *PEERS)
    kinds = [name for name in KINDS if any(f"{part} {name}" in stored for part in parts)]
    lines = ["| method | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for part in parts:
        there = [name for name in kinds if f"{part} {name}" in stored]
        methods = stored[f"{part} {there[0]}"]["rows"] if there else {}
        for method in methods:
            cells = []
            for name in kinds:
                rows = stored.get(f"{part} {name}", {"rows": {}})["rows"].get(method, {})
                cells.append(" / ".join(short(w2_of(rows, nfe)) for nfe in NFES))
            title = method if " " in method else f"`{method}`"
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def short(value: float) -> str:
    """Two digits after the point, without the zero before it."""
    if not value < 100:
        return "-"
    return f"{value:.2f}".removeprefix("0") if value < 10 else f"{value:.0f}"


def peers_of(stored: dict[str, Any], name: str) -> dict[str, Cells]:
    """The stored methods of the peers on a kind, if ours are stored too."""
    if f"ours {name}" not in stored:
        return {}
    rows = [stored.get(f"{part} {name}", {"rows": {}})["rows"] for part in PEERS]
    return rows[0] | rows[1]


def ratios(stored: dict[str, Any]) -> dict[str, float]:
    """Geometric mean of each of our methods over the best peer of the cell, on the mixtures."""
    found: dict[str, float] = {}
    for method in POSTERIORS:
        logs = []
        for name in MIXTURES:
            if not (rows := peers_of(stored, name)):
                continue
            for nfe in JUDGED:
                peers = [w2_of(row, nfe) for row in rows.values()]
                mine = w2_of(stored[f"ours {name}"]["rows"][method], nfe)
                logs.append(math.log(mine / min(peers)))
        if logs:
            found[method] = math.exp(sum(logs) / len(logs))
    return found


def comparison(stored: dict[str, Any]) -> str:
    """twisted_smc over the best peer of each cell, in markdown."""
    lines = [
        "| kind | calls | twisted_smc | best peer | which | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name in MIXTURES:
        if not (rows := peers_of(stored, name)):
            continue
        for nfe in JUDGED:
            mine = w2_of(stored[f"ours {name}"]["rows"][SMC], nfe)
            peer = min(rows, key=lambda method: w2_of(rows[method], nfe))
            best = w2_of(rows[peer], nfe)
            cells = (name, str(nfe), short(mine), short(best), peer, f"{mine / best:.2f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bias_table(stored: dict[str, Any], nfe: int = 100) -> str:
    """Bias of the mean in deviations and ratio of deviations, in markdown."""
    kinds = [name for name in KINDS if f"ours {name}" in stored]
    lines = ["| method | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for method in (FLOOR, *POSTERIORS):
        cells = []
        for name in kinds:
            found = stored[f"ours {name}"]["rows"][method].get(str(nfe))
            if found is None or None in found["bias"]:
                cells.append("-")
                continue
            bias, ratio = (sum(found[key]) / len(found[key]) for key in ("bias", "std_ratio"))
            cells.append(f"{short(bias)}, {ratio:.2f}")
        title = method if " " in method else f"`{method}`"
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def coverage_table(stored: dict[str, Any]) -> str:
    """Coverage in per cent with its standard error, in markdown."""
    kinds = [name for name in MIXTURES if f"coverage {name}" in stored]
    lines = ["| method | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for method in (FLOOR, *POSTERIORS):
        cells = []
        for name in kinds:
            row = stored[f"coverage {name}"]["rows"][method]
            cells.append(f"{100 * row['share']:.1f} +- {100 * row['error']:.1f}")
        title = method if " " in method else f"`{method}`"
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def particles_table(stored: dict[str, Any], name: str) -> str:
    """W2 by number of particles, its range over runs, what is beyond the floor, in markdown."""
    found = stored[f"particles {name}"]
    lines = [
        f"| particles, {name} | W2, mean | W2, lowest to highest | beyond the floor | "
        "error of log p(y), root mean square | independent samples |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        w2, errors = row["w2"], row["log_evidence_errors"]
        mean = sum(w2) / len(w2)
        beyond = math.sqrt(max(0.0, mean**2 - found["floor"] ** 2))
        rms = math.sqrt(sum(e**2 for e in errors) / len(errors))
        size = sum(row["sizes"]) / len(row["sizes"])
        cells = (
            f"{short(mean)} | {short(min(w2))} to {short(max(w2))} | {short(beyond)} | {rms:.3f}"
        )
        lines.append(f"| {row['particles']} | {cells} | {size:.0f} |")
    return "\n".join(lines)


def ratios_table(stored: dict[str, Any]) -> str:
    """Our methods over the best peer of each cell, in markdown."""
    found = sorted(ratios(stored).items(), key=lambda item: item[1])
    head = " | ".join(f"`{method}`" for method, _ in found)
    cells = " | ".join(f"{ratio:.2f}" for _, ratio in found)
    return f"| {head} |\n{'|---' * len(found)}|\n| {cells} |"


def evidence_table(stored: dict[str, Any]) -> str:
    """How often log p(y) lies within 1.96 errors, and how large they are, in markdown."""
    lines = ["| kind | within 1.96 errors | error | its estimate |", "|---|---|---|---|"]
    for name in MIXTURES:
        if not (found := stored.get(f"evidence {name}")):
            continue
        errors = torch.tensor(found["errors"]).double()
        rms, told = errors.square().mean(0).sqrt().tolist()
        cells = f"{found['within']} of {found['runs']} | {rms:.3f} | {told:.3f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def slope(found: dict[str, Any], key: str) -> float | None:
    """Of log error against log particles, where W2 is above 1.5 floors; by least squares."""
    points = []
    for row in found["rows"]:
        w2 = sum(row["w2"]) / len(row["w2"])
        if key == "w2":
            if w2 < 1.5 * found["floor"]:
                continue
            error = math.sqrt(w2**2 - found["floor"] ** 2)
        else:
            error = math.sqrt(sum(e**2 for e in row[key]) / len(row[key]))
        points.append((math.log(row["particles"]), math.log(error)))
    if len(points) < 2:
        return None
    x, y = torch.tensor(points).double().T
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


# --- the run ----------------------------------------------------------------------------------


def parts(azula: bool, deepinv: bool) -> Iterator[tuple[str, Callable[[bool], dict[str, Any]]]]:
    """Everything that is measured, by name."""
    methods = {"ours": ours()}
    methods |= {"azula": azula_methods()} if azula else {}
    methods |= {"deepinv": deepinv_methods()} if deepinv else {}
    for name, kind in KINDS.items():
        for part, them in methods.items():
            nfes = NFES if part == "ours" else kind.peers
            yield (
                f"{part} {name}",
                lambda light, kind=kind, them=them, nfes=nfes: {
                    "rows": {
                        each: measured(draw, kind, nfes, light) for each, draw in them.items()
                    }
                },
            )
    for name in MIXTURES[:2]:
        yield f"particles {name}", lambda light, name=name: particles(name, light)
    for name in MIXTURES:
        yield f"evidence {name}", lambda light, name=name: evidence(name, light)
    for name in MIXTURES:
        yield f"coverage {name}", lambda light, name=name: coverage(name, light)
    for name in KINDS:
        if name not in MIXTURES:
            yield f"moments {name}", lambda light, name=name: moments(name, light)


def load() -> dict[str, Any]:
    """What is stored."""
    return json.loads(STORE.read_text()) if STORE.exists() else {}


def main() -> None:
    """Measure what is missing, store it, print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--azula", nargs="+", default=[], help="folders of azula and einops")
    parser.add_argument("--deepinv", nargs="+", default=[], help="folder of deepinv")
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of names of parts")
    parser.add_argument("--trial", action="store_true", help="light; stores nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # of particles that collapse
    sys.path.extend([*arguments.azula, *arguments.deepinv])
    stored = {} if arguments.trial else load()
    for name, measure in parts(bool(arguments.azula), bool(arguments.deepinv)):
        if name in stored or not name.startswith(tuple(arguments.only)):
            continue
        began = time.process_time()
        found = measure(arguments.trial)
        found |= {"cpu_seconds": round(time.process_time() - began, 1)}
        print(f"{name}: {found['cpu_seconds']} CPU seconds", flush=True)
        stored = stored if arguments.trial else load()  # another run may have stored some
        stored |= {name: found, "surroundings": surroundings()}
        if not arguments.trial:
            text = json.dumps(stored, indent=1)
            STORE.write_text(
                re.sub(r"\[[^][{}]*\]", lambda found: on_a_line(found[0]), text) + "\n"
            )
    report(stored)


def on_a_line(text: str) -> str:
    """A list of numbers without line breaks."""
    return re.sub(r"\s+", " ", text).replace("[ ", "[").replace(" ]", "]")


def report(stored: dict[str, Any]) -> None:
    """Print the tables."""
    for each in (table, comparison, ratios_table, bias_table, coverage_table, evidence_table):
        print(f"\n{each(stored)}")
    for name in MIXTURES:
        if found := stored.get(f"particles {name}"):
            print(f"\n{particles_table(stored, name)}\n")
            for key in ("w2", "log_evidence_errors"):
                print(f"slope of {key}: {slope(found, key)}")
    for name in KINDS:
        if found := stored.get(f"moments {name}"):
            print(f"moment_matching, {name}: {found['rows']}")


if __name__ == "__main__":
    main()
