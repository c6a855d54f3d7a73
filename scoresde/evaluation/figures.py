"""Figures of a run: image grids, a trajectory as a GIF, the loss, points in the plane."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TILE = 48
FEW, FEW_POINTS = 30, 1000
MOST_ROWS = MOST_COLUMNS = 16
FONT_SIZE, LONGEST_NAME = 14, 32
BACKGROUND = 255
BLUE, ORANGE, GREY = "#1f5fa8", "#d9680d", "#9aa5b1"
INK = (40, 40, 40)


def image_grid(
    images: Tensor, columns: int, zoom: int | None = None, margin: int = 4
) -> np.ndarray:
    """One picture, uint8 (height, width, 3), of images (N, C, H, W) in rows of ``columns``.

    ``images`` are uint8 as from ``Scaling.to_uint8``, grey (C = 1) or RGB. Each pixel becomes a
    square of ``zoom`` pixels; None enlarges small images to about 48 pixels. Raises ValueError for
    other types and shapes.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        found = f"{images.dtype} {tuple(images.shape)}"
        raise ValueError(f"images are {found}; expected uint8 (N, 1 or 3, H, W)")
    if len(images) == 0 or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns; give at least one of each")
    zoom = zoom or max(1, round(TILE / max(images.shape[2:])))
    tiles = np.moveaxis(images.expand(-1, 3, -1, -1).cpu().numpy(), 1, -1)
    tiles = tiles.repeat(zoom, 1).repeat(zoom, 2)
    _, height, width, _ = tiles.shape
    rows = math.ceil(len(tiles) / columns)
    size = (margin + rows * (height + margin), margin + columns * (width + margin), 3)
    grid = np.full(size, BACKGROUND, np.uint8)
    for k, tile in enumerate(tiles):
        top = margin + k // columns * (height + margin)
        left = margin + k % columns * (width + margin)
        grid[top : top + height, left : left + width] = tile
    return grid


def captioned(grid: np.ndarray, title: str = "", rows: Sequence[str] = ()) -> np.ndarray:
    """A picture with a wrapped title above it and a name to the left of each row.

    The rows have equal heights. Names are cut to two lines of 32 characters.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT_SIZE)
    line, space = round(1.3 * FONT_SIZE), FONT_SIZE // 2
    names = [textwrap.wrap(n, LONGEST_NAME, max_lines=2, placeholder="...") for n in rows]
    lengths = [font.getlength(part) for name in names for part in name]
    left = math.ceil(max(lengths, default=-space)) + space
    width = left + grid.shape[1]
    lines: list[str] = []
    for word in title.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width - 2 * space:
            lines[-1] = longer
        else:
            lines.append(word)
    top = space + line * len(lines) if lines else 0
    page = Image.new("RGB", (width, top + grid.shape[0]), (BACKGROUND,) * 3)
    page.paste(Image.fromarray(grid), (left, top))
    draw = ImageDraw.Draw(page)
    for k, text in enumerate(lines):
        draw.text((space, space + k * line), text, font=font, fill=INK)
    for k, name in enumerate(names):
        middle = top + (k + 0.5) * grid.shape[0] / len(names)
        place, text = (left - space / 2, middle), "\n".join(name)
        draw.multiline_text(place, text, font=font, fill=INK, anchor="rm", align="right")
    return np.asarray(page)


def sample_grid(
    images: Tensor,
    label: Tensor | None = None,
    classes: Sequence[str] | None = None,
    title: str = "",
) -> np.ndarray:
    """One picture of uint8 samples (N, C, H, W): one named row per class, or else a square.

    At most 16 rows of 16 are shown. ``label`` (N,) holds indices into ``classes``.
    """
    if label is None or len(found := label.unique()) == 1:
        if label is not None and title:
            k = int(label[0])
            title = f"{title}, class {k if classes is None else classes[k]}"
        columns = min(math.ceil(math.sqrt(len(images))), MOST_COLUMNS)
        return captioned(image_grid(images[: columns * MOST_ROWS], columns), title)
    found = found[:MOST_ROWS]
    members = [torch.nonzero(label == k).flatten() for k in found]
    columns = min(MOST_COLUMNS, *(len(rows) for rows in members))
    names = [str(int(k)) if classes is None else classes[k] for k in found]
    shown = images[torch.cat([rows[:columns] for rows in members])]
    return captioned(image_grid(shown, columns), title, names)


def save_film(
    path: Path | str,
    estimates: Sequence[Tensor],
    label: Tensor | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write the denoised estimates of a trajectory as a GIF, one frame per network call.

    ``estimates`` are uint8 (N, C, H, W), one for each call; ``sample_grid`` draws each frame.
    """
    n = len(estimates)
    frames = [
        sample_grid(images, label, classes, f"denoised estimate, network call {k} of {n}")
        for k, images in enumerate(estimates, start=1)
    ]
    height = max(map(len, frames))  # a longer title may take another line
    room = [((height - len(frame), 0), (0, 0), (0, 0)) for frame in frames]
    pairs = zip(frames, room, strict=True)
    save_gif(path, [np.pad(frame, r, constant_values=BACKGROUND) for frame, r in pairs])


def neighbour_grid(samples: Tensor, neighbours: Tensor, columns: int = 6) -> np.ndarray:
    """One picture of pairs, ``columns`` per row: each sample with its neighbour to the right.

    Both are uint8 (N, C, H, W). Raises ValueError as ``image_grid`` does, and if shapes differ.
    """
    if samples.shape != neighbours.shape:
        shapes = f"{tuple(samples.shape)} and {tuple(neighbours.shape)}"
        raise ValueError(f"images and their neighbours are {shapes}; expected as many alike")
    gap = samples.new_full((*samples.shape[:3], 1), BACKGROUND)
    zoom = max(1, round(TILE / max(samples.shape[2:])))
    pairs = torch.cat([samples, gap, neighbours], dim=3)
    return image_grid(pairs, columns, zoom, margin=4 * zoom)


def save_png(path: Path | str, picture: np.ndarray) -> None:
    """Write a picture, uint8 (height, width, 3), as a PNG."""
    from PIL import Image

    Image.fromarray(picture).save(path, format="PNG")


def save_gif(
    path: Path | str, frames: Sequence[np.ndarray], seconds: float = 4.0, hold: float = 2.0
) -> None:
    """Write pictures of one size as an endless GIF of ``seconds``, plus ``hold`` on the last one.

    Raises ValueError for no frames.
    """
    from PIL import Image

    if not frames:
        raise ValueError("a GIF needs at least one frame")
    # GIF counts in hundredths of a second, and viewers slow down frames shorter than 0.02 s.
    each = max(20, round(100 * seconds / len(frames)) * 10)
    times = [each] * (len(frames) - 1) + [each + round(1000 * hold)]
    first, *rest = (Image.fromarray(frame).quantize() for frame in frames)
    first.save(path, "GIF", save_all=True, append_images=rest, duration=times, loop=0)


def loss_curve(
    path: Path | str,
    records: Sequence[Mapping[str, Any]],
    train: str = "loss",
    held_out: str = "held_out",
) -> None:
    """Plot the training loss, raw and smoothed, and the held-out loss against the step, as a PNG.

    They have separate panels, because they weight the noise levels differently. ``records`` are
    the lines of ``metrics.jsonl``: mappings with ``step`` and any of the keys ``train`` and
    ``held_out``. Values that are not finite are skipped. Raises ValueError if no training loss
    remains.
    """
    from matplotlib.figure import Figure

    steps, losses = _series(records, train)
    if not len(losses):
        raise ValueError(f"no finite {train!r} in {len(records)} records; nothing to draw")
    held_steps, held = _series(records, held_out)
    count = 2 if len(held) else 1
    figure = Figure(figsize=(7, 1 + 2.5 * count), dpi=120, layout="constrained")
    top, *rest = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    if len(losses) > FEW:
        top.plot(steps, losses, color=GREY, linewidth=0.6, alpha=0.8, label="each record")
        top.plot(steps, smoothed(losses), color=BLUE, linewidth=1.8, label="smoothed")
        top.legend(frameon=False)
    else:
        top.plot(steps, losses, "o-", color=BLUE, markersize=3.5, linewidth=1.8)
    for axes in rest:
        axes.plot(held_steps, held, "o-", color=ORANGE, markersize=3.5, linewidth=1.8)
    top.set_title("Loss in training")
    panels = zip((top, *rest), ("training", "held-out"), (losses, held), strict=False)
    for axes, name, values in panels:
        # The large losses of the first steps would flatten the rest of the curve.
        later = values[len(values) // 20 :]
        low, high = later.min(), np.quantile(later, 0.995 if len(later) > FEW else 1.0)
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)
        axes.set(ylabel=f"{name} loss")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(alpha=0.3)
    axes.set(xlabel="training step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, format="png")


def smoothed(values: np.ndarray, window: int | None = None) -> np.ndarray:
    """Exponential average over about ``window`` values (1/30 of all), corrected for its bias."""
    decay = 1 - 1 / (window or max(1, len(values) // 30))
    total, weight, out = 0.0, 0.0, []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        out.append(total / weight)
    return np.array(out)


def scatter(
    path: Path | str,
    panels: Mapping[str, Tensor],
    limit: int = 5000,
    label: Tensor | None = None,
    classes: Sequence[str] | None = None,
    frame: Tensor | None = None,
    columns: int | None = None,
) -> None:
    """Draw sets of points (N, 2) side by side on equal axes, each under its name, as a PNG.

    They stand in rows of ``columns`` sets, by default in one row.

    At most ``limit`` points of each set, the first ones, are drawn. Those of ``frame``, by
    default the first set, fix the frame.
    With the ``label`` (N,) of each point of it, an index into ``classes``, up to ten classes have
    a colour each and a legend. Raises ValueError for no sets or another shape.
    """
    from matplotlib.figure import Figure

    points = {name: x.detach().cpu().double().numpy()[:limit] for name, x in panels.items()}
    for name, x in points.items():
        if x.ndim != 2 or x.shape[1] != 2 or len(x) == 0:
            raise ValueError(f"{name}: points are {x.shape}; expected (N, 2)")
    if not points:
        raise ValueError("a scatter plot needs at least one set of points")
    first = next(iter(points.values()))
    found = np.zeros(0, int) if label is None else np.unique(label.numpy()[: len(first)])
    within = first if frame is None else frame.double().numpy()
    centre, half = (within.max(0) + within.min(0)) / 2, 0.55 * np.ptp(within, 0).max() or 1.0
    columns = min(columns or len(points), len(points))
    rows = -(-len(points) // columns)
    figure = Figure(figsize=(4 * columns, 4.2 * rows), dpi=120, layout="constrained")
    panes = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for (name, x), axes in zip(points.items(), panes, strict=False):
        few = min(1.0, len(x) / FEW_POINTS)  # few points are drawn larger and darker
        style = {"markersize": 8 - 5 * few, "alpha": 0.9 - 0.4 * few, "markeredgewidth": 0}
        if x is first and label is not None and classes is not None and len(found) <= 10:
            for k in found:
                some, colour = x[label.numpy()[: len(x)] == k], f"C{k % 10}"
                axes.plot(some[:, 0], some[:, 1], ".", color=colour, label=classes[k], **style)
            scale = 8 / style["markersize"]
            figure.legend(loc="outside lower center", ncols=5, frameon=False, markerscale=scale)
        else:
            axes.plot(x[:, 0], x[:, 1], ".", color=BLUE, **style)
        axes.set(
            xlim=centre[0] + half * np.array([-1, 1]), ylim=centre[1] + half * np.array([-1, 1])
        )
        axes.set(aspect="equal", xlabel="first coordinate", ylabel="second coordinate")
        axes.set_title(textwrap.fill(name, 44), fontsize=10)
    for axes in panes:
        axes.remove()
    figure.savefig(path, format="png")


def histogram(
    path: Path | str, sets: Mapping[str, Tensor], label: str, marks: Mapping[str, float] = {}
) -> None:
    """Plot histograms of named sets of numbers (N,) with their means on common axes, as a PNG.

    ``marks`` are single numbers, by name. Raises ValueError for no sets or empty ones.
    """
    from matplotlib.figure import Figure

    found = {name: x.detach().cpu().double().numpy().ravel() for name, x in sets.items()}
    if not found or not all(len(x) for x in found.values()):
        raise ValueError("a histogram needs at least one set of numbers, none of them empty")
    everything = np.concatenate(list(found.values()))
    edges = np.histogram_bin_edges(everything, min(60, 4 + math.isqrt(2 * len(everything))))
    figure = Figure(figsize=(7, 3.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, x), color in zip(found.items(), (BLUE, ORANGE, GREY), strict=False):
        axes.hist(
            x, list(edges), density=True, alpha=0.6, color=color, label=f"{name}: {x.mean():.3f}"
        )
        axes.axvline(x.mean(), color=color, linewidth=1.2)
    for name, mark in marks.items():
        axes.axvline(mark, color=ORANGE, linewidth=2, label=f"{name}: {mark:.3f}")
    axes.set(xlabel=label, ylabel="density")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png")


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(r["step"], r[key]) for r in records if "step" in r and r.get(key) is not None]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    steps, values = np.array(pairs, dtype=float).reshape(-1, 2).T
    return steps, values
