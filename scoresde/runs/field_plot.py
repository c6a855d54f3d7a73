"""Plot of a model of points in the plane: its density and its velocity at several times."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from scoresde.denoiser import Denoiser
from scoresde.likelihood import Exact, log_likelihood

PANELS, POINTS, ARROWS = 4, 48, 16
NOISE = (2.0, 0.1)
"""sigma / alpha of the first and the last panel."""
WIDTH, TOLERANCE = 2.2, 1e-4


def save_field(
    path: Path | str,
    denoiser: Denoiser,
    done: Callable[[], object] = lambda: None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Plot log p_t and the velocity of the probability flow towards the data, as a PNG.

    ``done`` is called after every panel, and ``stopping`` before. Raises ValueError for a denoiser
    that is no score of a law, as a guided one.
    """
    from matplotlib.figure import Figure

    sde = denoiser.sde
    first, last = map(math.log, NOISE)
    lam = -torch.linspace(first, last, PANELS, dtype=torch.float64)
    figure = Figure(figsize=(4 * PANELS, 4.3), dpi=90, layout="constrained")
    for axes, t in zip(figure.subplots(1, PANELS, squeeze=False)[0], sde.time(lam), strict=True):
        if stopping():
            break
        width = WIDTH * float(sde.norm(t))
        x, y = _plane(width, POINTS), _plane(width, ARROWS)
        found = log_likelihood(
            denoiser, x, Exact(), t0=float(t), method="dopri5", rtol=TOLERANCE, atol=TOLERANCE
        )
        # A square root shows the thin tails, too.
        density = found.log_prob.reshape(POINTS, POINTS).exp().sqrt().cpu()
        with torch.no_grad():
            v = -denoiser.velocity(y, t.to(y)).cpu()
        v = v / v.norm(dim=1).quantile(0.9)
        axes.imshow(
            density.numpy(),
            extent=(-width, width) * 2,
            origin="lower",
            cmap="Blues",
            aspect="equal",
        )
        axes.quiver(*y.T.numpy(), *v.T.numpy(), color="#333333", width=0.003, scale=22)
        axes.set_title(f"t = {float(t):.3g}, sigma / alpha = {float((-sde.lam(t)).exp()):.2g}")
        done()
    figure.suptitle("Square root of the density, and the flow from noise to data, in model units")
    figure.savefig(path, format="png")


def _plane(width: float, n: int) -> torch.Tensor:
    """Points (n^2, 2) of a square, row by row."""
    side = torch.linspace(-width, width, n)
    return torch.cartesian_prod(side, side).flip(1)
