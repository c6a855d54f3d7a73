"""The default sampler and optimised grids on a broad family of problems, against all peers.

    python experiments/family.py [--part search|held] [--peers FILE] [--budget CALLS]

A family of problems drawn by seed: mixtures in 1 to 256 dimensions of 2 to 50 components, separate
or overlapping, isotropic, diagonal, tilted, heavy-tailed, of discrete points or with the spectrum
of images, and small trained networks. The constants of ``scoresde.samplers.recommended`` were
chosen on the problems of the part "search"; the other half, "held", took no part in any choice.
The peers are the published methods on the published grids, in this library's implementation,
which agrees with theirs (docs/parity.md). Errors are those of the ends against the exact flow to
sigma = 0: relative L2 over all starts, and the median relative error of a start. Every call
counts. The errors of the peers take most of the time and are kept in a file. Prints the tables in
markdown and stores the result in experiments/results/family.json.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import EDM, SDE, VP, Denoiser
from scoresde.samplers import (
    EPS,
    X0,
    Grid,
    Multistep,
    Residual,
    SingleStep,
    Step,
    UniPC,
    V,
    dpm_solver_singlestep,
    eab,
    grids,
    optimise_grid,
    recommended,
    sample,
)
from scoresde.samplers.integrals import (
    BH1,
    BH2,
    FixedAdams,
    Interpolation,
    PublishedTaylor,
    ratio,
    share,
)
from scoresde.samplers.noise import Noise
from scoresde.samplers.optimise import STANDARD
from scoresde.samplers.protocols import State

F64 = torch.float64
HERE = Path(__file__).parent
NFES = (5, 6, 8, 10, 13, 15, 20, 25, 35, 50)
STARTS, SEARCHED = 192, 1024  # to measure on, to search on
PROCESSES: dict[str, EDM | VP] = {"edm": EDM(), "vp": VP()}
Errors = tuple[float, float]  # relative L2, median relative error of a start

# --- the family ---------------------------------------------------------------------------------

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (B, D), alpha, sigma -> x0_hat


@dataclass(frozen=True)
class Problem:
    """A denoiser as a function of x, alpha and sigma, and the deviation of its data."""

    name: str
    dim: int
    std: float
    predict: Predict

    def denoiser(self, sde: SDE) -> Denoiser:
        """The denoiser under a process."""

        def predict(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = sde.alpha(t), sde.sigma(t)
            if alpha.ndim:
                alpha, sigma = alpha[:, None], sigma[:, None]
            return self.predict(x, alpha, sigma)

        return Denoiser(sde, predict)


def mixture(weights: Tensor, means: Tensor, stds: Tensor, axes: Tensor | None = None) -> Predict:
    """The posterior mean of a mixture with deviations ``stds`` (K, D) along ``axes`` (K, D, D)."""
    k, dim = means.shape
    log_weights, variances = (weights / weights.sum()).log(), stds.expand(k, dim) ** 2
    if axes is None:

        def diagonal(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            if alpha.ndim:  # a time per sample
                total = alpha[:, :, None] ** 2 * variances + sigma[:, :, None] ** 2
                gap = x[:, None] - alpha[:, :, None] * means
                logs = log_weights - (gap**2 / total + total.log()).sum(2) / 2
                p = logs.softmax(1)[:, :, None]
                return (p * (means + alpha[:, :, None] * variances * gap / total)).sum(1)
            a, total = float(alpha), alpha**2 * variances + sigma**2
            inverse = 1 / total
            square = x**2 @ inverse.T - 2 * a * (x @ (means * inverse).T)
            square += (a**2 * means**2 * inverse + total.log()).sum(1)
            p = (log_weights - square / 2).softmax(1)
            gain = a * variances * inverse
            return p @ (means * (1 - a * gain)) + x * (p @ gain)

        return diagonal
    flat = axes.permute(1, 0, 2).reshape(dim, k * dim)  # x @ flat: coordinates along all axes
    centres = torch.einsum("kd,kde->ke", means, axes)

    def tilted(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        a, s = (alpha[:, :, None], sigma[:, :, None]) if alpha.ndim else (alpha, sigma)
        total = a**2 * variances + s**2
        gap = (x @ flat).reshape(-1, k, dim) - a * centres
        logs = log_weights - (gap**2 / total + total.log()).sum(2) / 2
        p = logs.softmax(1)[:, :, None]
        part = p * (centres + a * variances / total * gap)
        return part.reshape(-1, k * dim) @ flat.T

    return tilted


KINDS = ("isotropic", "diagonal", "tilted", "heavy-tailed", "points", "spectrum")


def drawn(kind: str, seed: int) -> Problem:
    """A random mixture of a kind: dimension, components, weights, separation, total deviation."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=g, dtype=F64))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    most = 64 if kind == "tilted" else 256
    dim = round(most ** (uniform(0, 1) ** 0.8))
    k = round(math.exp(uniform(math.log(2), math.log(12 if kind == "tilted" else 50))))
    weights = torch.exp(uniform(0, 1.2) * normal(k))
    weights /= weights.sum()
    means, share_inside = normal(k, dim), uniform(0.02, 0.6)
    stds, axes = torch.ones(k, 1, dtype=F64), None
    if kind in ("diagonal", "tilted"):
        stds = torch.exp(uniform(0.3, 1.2) * normal(k, dim))
    if kind == "tilted":
        axes = torch.linalg.qr(normal(k, dim, dim)).Q
    if kind == "points":
        share_inside = math.exp(uniform(math.log(0.002), math.log(0.04)))
    if kind == "spectrum":  # power falls with frequency, in the means and inside the components
        falling = torch.arange(1, dim + 1, dtype=F64) ** -uniform(0.5, 1.2)
        means, stds = means * falling, falling.expand(k, dim) * torch.exp(0.3 * normal(k, 1))
    means -= weights @ means
    if kind == "heavy-tailed":  # each component a mixture of one core and wider shells
        scales = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=F64)
        shells = torch.tensor([0.4, 0.35, 0.2, 0.05], dtype=F64)
        stds = torch.exp(0.3 * normal(k, dim))[:, None] * scales[:, None]
        stds, means = stds.reshape(4 * k, dim), means.repeat_interleave(4, 0)
        weights = (weights[:, None] * shells).flatten()
    inner = (weights @ stds.expand(len(weights), dim) ** 2).mean()
    outer = (weights @ means**2).mean()
    total = 0.5 if seed % 2 else math.exp(uniform(math.log(0.25), math.log(1.0)))
    stds = stds * (share_inside * total / inner.sqrt())
    means = means * (total * math.sqrt(1 - share_inside**2) / outer.sqrt())
    name = f"{kind} {dim}-d, {k} comp., {share_inside:.2g} inside"
    return Problem(name, dim, total, mixture(weights, means, stds, axes))


class Net(nn.Module):
    """A small network of the state and the logarithm of the noise."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        sizes = [dim + 8, width, width, width]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
        self.body = nn.Sequential(*layers, nn.Linear(width, dim))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        waves = noise[:, None] * torch.tensor([0.5, 1.0, 2.0, 4.0]).to(x)
        out: Tensor = self.body(torch.cat([x, waves.sin(), waves.cos()], 1))
        return out


def trained(name: str, data: Tensor, width: int, steps: int, seed: int) -> Problem:
    """A network trained on ``data`` (N, D) for a moment, in EDM's form; evaluated in float64."""
    g, std = torch.Generator().manual_seed(seed), float(data.std())
    torch.manual_seed(seed)
    net = Net(data.shape[1], width)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    def predict(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        n2 = sigma**2 + (alpha * std) ** 2
        noise = (sigma / alpha).log().expand(len(x), 1)[:, 0].to(x) / 2
        out: Tensor = net(x / n2.sqrt(), noise)
        return alpha * std**2 / n2 * x + sigma * std / n2.sqrt() * out

    for _ in range(steps):
        x0 = data[torch.randint(len(data), (256,), generator=g)]
        log_sigma = math.log(std) - 0.3 + 1.5 * torch.randn(256, 1, generator=g)
        sigma = log_sigma.exp()
        x = x0 + sigma * torch.randn(x0.shape, generator=g)
        error = predict(x, torch.ones_like(sigma), sigma) - x0
        loss = (error**2 * (1 / sigma**2 + 1 / std**2)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    net.double().requires_grad_(False)
    return Problem(name, data.shape[1], std, predict)


def networks() -> dict[str, list[Callable[[], Problem]]]:
    """Networks of each part, trained when they are first needed."""
    from sklearn.datasets import load_digits, make_moons, make_swiss_roll

    def scaled(x: object, std: float = 0.5) -> Tensor:
        found = torch.as_tensor(x, dtype=torch.float32)
        return (found - found.mean(0)) / found.std() * std

    moons = scaled(make_moons(4000, noise=0.05, random_state=0)[0])
    roll = scaled(make_swiss_roll(4000, noise=0.3, random_state=0)[0])
    digits = scaled(load_digits().data)
    return {
        "search": [
            lambda: trained("network, moons 2-d", moons, 128, 1500, 0),
            lambda: trained("network, small digits 64-d", digits, 128, 1000, 1),
        ],
        "held": [
            lambda: trained("network, swiss roll 3-d", roll, 128, 1500, 2),
            lambda: trained("network, digits 64-d", digits, 256, 2000, 3),
        ],
    }


def family(part: str, each: int = 4) -> list[Problem]:
    """The problems of a part: ``each`` of every kind, and the networks."""
    base = 1000 if part == "search" else 7000
    found = [drawn(kind, base + 100 * i + j) for i, kind in enumerate(KINDS) for j in range(each)]
    return found + [make() for make in networks()[part]]


# --- the peers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LowerOrderFinal:
    """The last steps of a multistep method with fewer evaluations: 2, 1 (lower_order_final)."""

    method: Multistep | UniPC
    n: int

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        k, inner = state or (0, None)
        points = min(self.method.points, self.n - k)
        if isinstance(self.method, Multistep) and inner:
            inner = inner[: points - 1] if points > 1 else None
        x, inner = replace(self.method, points=points)(denoiser, x, t, s, inner, noise)
        return x, (k + 1, inner)


EVERY, USUAL, OWN = "KLlUQq", "KLU", "U"  # grids of VP that the packages of a method offer


def multisteps() -> Iterator[tuple[str, Multistep | UniPC, int, str]]:
    """Published multistep methods: steps below which the last orders fall, and grids of VP."""
    for p in (2, 3):
        yield f"DPM-Solver m{p}", Multistep(EPS, p, PublishedTaylor()), 10, EVERY
        yield f"DPM-Solver++ m{p}", Multistep(X0, p, PublishedTaylor()), 10, EVERY
        yield f"UniPC bh1 o{p}", UniPC(X0, p, BH1), 1000, EVERY
        yield f"UniPC bh2 o{p}", UniPC(X0, p, BH2), 1000, EVERY
        yield f"DEIS o{p}, azula zEAB({p})", Multistep(EPS, p), 0, USUAL
    for p in (2, 3, 4):
        yield f"azula vAB({p})", Multistep(V, p, Interpolation(share)), 0, OWN
    yield "azula zEAB(4)", Multistep(EPS, 4), 0, OWN
    yield "azula xEAB(4)", Multistep(X0, 4), 0, OWN
    yield "DPM++ 3M of k-diffusion, azula xEAB(3)", Multistep(X0, 3), 0, USUAL
    yield "LMS 4", Multistep(EPS, 4, Interpolation(ratio)), 0, USUAL
    yield "iPNDM 4", Multistep(EPS, 4, FixedAdams()), 0, USUAL


SINGLE: dict[str, SingleStep] = {
    "DPM-Solver s3": dpm_solver_singlestep(3),
    "DPM-Solver++ s2": dpm_solver_singlestep(2, X0),
    "DPM-Solver++ s3": dpm_solver_singlestep(3, X0),
}
PLACES: dict[str, dict[str, tuple[Grid, float]]] = {
    "edm": {"K": (grids.karras(), 2e-3), "L": (grids.log_snr, 2e-3)},
    "vp": {
        "K": (grids.karras(), 1e-3),
        "L": (grids.log_snr, 1e-3),
        "l": (grids.log_snr, 1e-4),
        "U": (grids.uniform, 1e-3),
        "Q": (grids.quadratic, 1e-3),
        "q": (grids.quadratic, 1e-4),
    },
}
TITLES = {"K": "karras", "L": "log_snr", "U": "uniform", "Q": "quadratic"}


def peers(process: str, nfe: int) -> Iterator[tuple[str, Step, Tensor, bool]]:
    """Name, step, grid and whether it ends by denoising, for every peer of ``nfe`` calls."""
    for place, (grid, t_eps) in PLACES[process].items():
        sde: SDE = replace(PROCESSES[process], t_eps=t_eps)
        for zero in (True, False):
            where = f"[{TITLES[place.upper()]} to {t_eps:g}{', 0' if zero else ''}]"
            n = nfe - zero
            for name, method, below, offered in multisteps():
                if process == "edm" or place in offered:
                    step: Step = LowerOrderFinal(method, n) if n < below else method
                    yield f"{name} {where}", step, grid(sde, n), zero
            for name, single in SINGLE.items():
                if n >= single.nfe_per_step:
                    yield f"{name} {where}", single, grid(sde, n // single.nfe_per_step), zero


# --- errors -------------------------------------------------------------------------------------


def starts(problem: Problem, sde: SDE, n: int, seed: int) -> Tensor:
    """n draws of the prior."""
    g = torch.Generator().manual_seed(seed)
    return sde.prior().stddev * torch.randn(n, problem.dim, generator=g, dtype=F64)


def flow_to_data(problem: Problem, sde: EDM | VP, x: Tensor) -> Tensor:
    """The exact end: 4000 steps of fourth order to sigma / alpha = 1e-5, denoised.

    Raises RuntimeError unless half the steps agree within 1e-5.
    """
    low = float(sde.time(torch.tensor(math.log(1e5), dtype=F64)))
    fine = replace(sde, t_eps=low, t_min=low)
    step = eab(Residual(problem.std), 4)
    denoiser = problem.denoiser(fine)
    coarse, end = (sample(denoiser, x, grids.log_snr(fine, n), step) for n in (2000, 4000))
    if not (gap := float((coarse - end).norm() / end.norm())) < 1e-5:
        raise RuntimeError(f"{problem.name}: the reference is off by {gap:.1e}")
    return end


def measured(end: Tensor, exact: Tensor) -> Errors:
    """Relative L2 over all starts, and the median of the relative errors of single starts."""
    error, size = (end - exact).norm(dim=1), exact.norm(dim=1)
    return float(error.norm() / size.norm()), float((error / size).median())


# --- comparison ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A problem under a process, with starts that nothing was chosen on and their exact ends."""

    problem: Problem
    sde: EDM | VP
    x: Tensor
    exact: Tensor

    def error(self, step: Step, ts: Tensor, denoise: bool = True) -> Errors:
        """The errors of a step on a grid."""
        end = sample(self.problem.denoiser(self.sde), self.x, ts, step, denoise=denoise)
        return measured(end, self.exact)


def cases(part: str, process: str) -> list[Case]:
    """All problems of a part under a process."""
    sde, found = PROCESSES[process], []
    for problem in family(part):
        x = starts(problem, sde, STARTS, seed=11)
        found.append(Case(problem, sde, x, flow_to_data(problem, sde, x)))
    return found


Table = list[list[Errors]]  # by call count, by problem


def peer_errors(process: str, among: Sequence[Case]) -> dict[str, Table]:
    """The errors of every peer that exists at all numbers of calls, and of their best."""
    found: dict[str, Table] = {}
    best: Table = []
    for nfe in NFES:
        rows: dict[str, list[Errors]] = {
            name: [case.error(step, ts, zero) for case in among]
            for name, step, ts, zero in peers(process, nfe)
        }
        for name, row in rows.items():
            found.setdefault(name, []).append(row)
        least = torch.tensor(list(rows.values()), dtype=F64).nan_to_num(math.inf).amin(0)
        best.append([(a, b) for a, b in least.tolist()])
        print(f"{process}: {len(rows)} peers at {nfe} calls", flush=True)
    whole = {name: table for name, table in found.items() if len(table) == len(NFES)}
    return {"best": best} | whole


def default(case: Case, nfe: int) -> Errors:
    """The default, told the deviation of the data."""
    step, grid = recommended(nfe, std=case.problem.std)
    return case.error(step, grid(case.sde, nfe - 1))


def optimised(case: Case, nfe: int, budget: int) -> Errors:
    """The default step on a grid found on ``SEARCHED`` other starts."""
    step, grid = recommended(nfe, std=case.problem.std)
    x = starts(case.problem, case.sde, SEARCHED, seed=5)
    among = (grid, *STANDARD[1:])
    denoiser = case.problem.denoiser(case.sde)
    ts = optimise_grid(denoiser, step, nfe - 1, x, budget=budget, candidates=among)
    return case.error(step, ts)


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", choices=("search", "held"), default="held")
    parser.add_argument("--peers", type=Path, default=Path("family-peers.json"))
    parser.add_argument("--budget", type=int, default=400, help="calls to optimise a grid")
    parser.add_argument("--optimised", type=int, nargs="*", default=(6, 10, 20))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "family.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(args.peers.read_text()) if args.peers.exists() else {}
    result: dict[str, dict[str, object]] = {}
    for process in PROCESSES:
        among = cases(args.part, process)
        if process not in stored:
            stored[process] = peer_errors(process, among)
            args.peers.write_text(json.dumps(stored))
        rows = stored[process]
        best = logs(rows.pop("best"))
        ours = logs([[default(case, nfe) for case in among] for nfe in NFES]) - best
        at = [NFES.index(nfe) for nfe in args.optimised]
        found = [[optimised(case, nfe, args.budget) for case in among] for nfe in args.optimised]
        theirs = {name: (logs(table) - best).mean((0, 1)).exp() for name, table in rows.items()}
        result[process] = {
            "problems": [case.problem.name for case in among],
            "default": ours.exp().tolist(),
            "optimised": (logs(found) - best[at]).exp().tolist(),
            "default where optimised": ours[at].exp().tolist(),
            "single": {name: pair.tolist() for name, pair in theirs.items()},
        }
    record = {
        "hardware": f"one thread of an {platform.machine()} CPU",
        "part": args.part,
        "nfe": NFES,
        "nfe optimised": args.optimised,
        "budget": args.budget,
        "starts of the search": SEARCHED,
        "ratios": "ours over the best peer of the cell: by calls, problem, measure",
        "processes": result,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(tables(record))


def logs(table: Table) -> Tensor:
    """Logarithms (calls, problems, measures); a peer that diverges has a large one."""
    return torch.tensor(table, dtype=F64).nan_to_num(1e9, 1e9).log()


def tables(record: dict[str, Any]) -> str:
    """Markdown: ours over the best peer, for all problems and by calls, and single peers."""
    lines = [
        "| | relative L2 | median | both | quartiles over problems |",
        "|---|---|---|---|---|",
    ]
    for process, part in record["processes"].items():
        for name in ("default", "optimised", "default where optimised"):
            found = torch.tensor(part[name], dtype=F64).log()
            lines.append(f"| {process}, {name} | {spread(found)} |")
        single = part["single"]
        for k, measure in enumerate(("relative L2", "median")):
            name = min(single, key=lambda name: single[name][k])
            pair = " | ".join(f"{value:.2f}" for value in single[name])
            both = math.sqrt(math.prod(single[name]))
            lines.append(
                f"| {process}, best single peer in {measure}: {name} | {pair} | {both:.2f} | |"
            )
    lines += ["", "| calls | " + " | ".join(map(str, record["nfe"])) + " |"]
    lines.append("|---" * (len(record["nfe"]) + 1) + "|")
    for process, part in record["processes"].items():
        pairs = torch.tensor(part["default"], dtype=F64).log().mean(1).exp().tolist()
        lines.append(f"| {process} | " + " | ".join(f"{a:.2f}, {b:.2f}" for a, b in pairs) + " |")
    for process, part in record["processes"].items():
        lines += [
            "",
            f"| {process}: problem | relative L2 | median | both | |",
            "|---|---|---|---|---|",
        ]
        ratios = torch.tensor(part["default"], dtype=F64).log()
        for j, name in enumerate(part["problems"]):
            lines.append(f"| {name} | {spread(ratios[:, j : j + 1])} |")
    return "\n".join(lines)


def spread(found: Tensor) -> str:
    """Geometric means of the measures and of both, and the quartiles of problems."""
    l2, median = found.mean((0, 1)).exp().tolist()
    of_problem = found.mean((0, 2)).exp()
    quartiles = torch.quantile(of_problem, torch.tensor([0.25, 0.5, 0.75], dtype=F64)).tolist()
    parts = ", ".join(f"{value:.2f}" for value in quartiles) if len(of_problem) > 1 else ""
    return f"{l2:.2f} | {median:.2f} | {math.sqrt(l2 * median):.2f} | {parts}"


if __name__ == "__main__":
    main()
