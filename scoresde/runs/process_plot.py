"""Plot of a process, and of the times of a grid on it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scoresde.evaluation.figures import BLUE, GREY, ORANGE
from scoresde.sde import SDE

POINTS, WIDE = 400, 5.0
"""Points of a curve, and the t_max from which axes are logarithmic."""


def save_process(path: Path | str, sde: SDE, ts: Tensor, title: str = "") -> None:
    """Plot alpha and sigma with the times ``ts`` (n + 1,), and lam at every step, as a PNG."""
    from matplotlib.figure import Figure

    wide = sde.t_max > WIDE
    first, last = max(sde.t_min, 1e-3), sde.t_max
    t = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    t = first * (last / first) ** t if wide else first + (last - first) * t
    figure = Figure(figsize=(10, 3.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, of, color in (("alpha", sde.alpha, BLUE), ("sigma", sde.sigma, ORANGE)):
        left.plot(t, of(t).expand(POINTS), color=color, label=name)
        left.plot(ts, of(ts).expand(len(ts)), "o", color=color, markersize=4)
    scale = "log" if wide else "linear"
    left.set(
        xlabel="t, noise grows to the right", ylabel="coefficient", xscale=scale, yscale=scale
    )
    left.legend(frameon=False)
    lam = sde.lam(ts)
    right.plot(range(len(ts)), lam, "o-", color=BLUE, markersize=4)
    right.axhline(0, color=GREY, linewidth=0.8)
    right.set(xlabel="step", ylabel="lam = log(alpha / sigma)")
    right.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize="large")
    figure.savefig(path, format="png")
