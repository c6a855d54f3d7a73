"""Plot of the loss by noise level at several steps of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MOST = 5


def levels_plot(path: Path | str, records: Sequence[Mapping[str, Any]]) -> None:
    """Plot the loss against lam as a PNG, with one curve for each of up to five records.

    ``records`` are the lines of ``metrics.jsonl``. Raises ValueError if none has the key
    ``loss_by_lam``.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    found = [record for record in records if record.get("loss_by_lam")]
    if not found:
        raise ValueError(f"no 'loss_by_lam' in {len(records)} records; nothing to draw")
    count = min(MOST, len(found))
    chosen = [found[round((k + 1) * len(found) / count) - 1] for k in range(count)]
    figure = Figure(figsize=(7, 3.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for k, record in enumerate(chosen):
        lam, loss = zip(*record["loss_by_lam"], strict=True)
        shade = colormaps["viridis_r"]((k + 1) / count)
        axes.plot(lam, loss, "o-", color=shade, markersize=3.5, label=f"step {record['step']}")
    axes.set(
        xlabel="half log signal-to-noise ratio, from noise to data",
        ylabel="training loss",
        yscale="log",
    )
    figure.suptitle("Training loss by noise level", fontsize="large")
    # Above the axes, because finding a free place among the curves is slow.
    axes.legend(
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=len(axes.lines),
        handlelength=1.2,
        columnspacing=1.0,
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png")
