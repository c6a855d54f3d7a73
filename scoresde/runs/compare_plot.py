"""Plot of ``scoresde compare``: error against network calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scoresde.runs.compare import Trial

# Colours that most colour-blind readers tell apart: Okabe and Ito (2008), their yellow darker.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
    "#9C8F00",
)
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")
PANELS = (
    ("relative", "relative error over all samples (L2)"),
    ("median", "median relative error of a sample"),
)


def save_plot(path: Path | str, trials: Sequence[Trial]) -> None:
    """Plot both errors as a PNG, with one colour per sampler and one line style per grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=130, layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 2), PANELS, strict=True):
        _panel(axes, trials, name, label)
    figure.suptitle("Distance of samplers from the exact paths of the model")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, format="png")


def _panel(axes: Any, trials: Sequence[Trial], name: str, label: str) -> None:
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    kinds, grids = _unique(t.sampler for t in trials), _unique(t.grid for t in trials)
    for kind, grid in dict.fromkeys((t.sampler, t.grid) for t in trials):
        mine = [t for t in trials if (t.sampler, t.grid) == (kind, grid)]
        points = [(t.nfe, e) for t in mine if (e := getattr(t, name)) is not None]
        i, j = kinds.index(kind), grids.index(grid)
        axes.plot(
            *zip(*points, strict=True) if points else ((), ()),
            LINES[j % len(LINES)],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            linewidth=1.6,
            label=kind if len(grids) == 1 else f"{kind}, {grid}",
        )
    axes.set(xscale="log", yscale="log", xlabel="network calls", ylabel=label)
    axes.set_xticks(_ticks(t.nfe for t in trials))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _ticks(calls: Iterable[int]) -> list[int]:
    """The numbers 1, 2, 5 times powers of ten around the calls."""
    found = list(calls)
    rounded = [m * 10**k for k in range(6) for m in (1, 2, 5)]
    low = max(r for r in rounded if r <= min(found))
    high = min(r for r in rounded if r >= max(found))
    return [r for r in rounded if low <= r <= high]


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
