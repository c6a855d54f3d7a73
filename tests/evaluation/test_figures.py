"""Pictures: every pixel of a grid, the timing of a GIF, and what the curves are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.evaluation import (
    captioned,
    image_grid,
    loss_curve,
    neighbour_grid,
    sample_grid,
    save_film,
    save_gif,
    save_png,
    scatter,
)
from scoresde.evaluation.figures import histogram, smoothed


def images(n, channels=1, shape=(8, 8)):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, channels, *shape), generator=generator).to(torch.uint8)


@pytest.mark.parametrize(("channels", "shape", "zoom"), [(1, (8, 8), 3), (3, (5, 7), 1)])
def test_every_image_can_be_read_back_from_the_grid(channels, shape, zoom):
    x, margin, columns = images(7, channels, shape), 4, 3
    grid = image_grid(x, columns, zoom, margin)
    height, width = (side * zoom + margin for side in shape)
    assert grid.shape == (margin + 3 * height, margin + 3 * width, 3)
    for k, image in enumerate(x):
        top, left = margin + k // columns * height, margin + k % columns * width
        tile = grid[top : top + height - margin : zoom, left : left + width - margin : zoom]
        assert np.array_equal(np.moveaxis(tile, -1, 0), image.expand(3, -1, -1))
    assert (grid[-height:, -width:] == 255).all()


def test_small_images_are_enlarged_and_large_ones_are_not():
    assert image_grid(images(1), 1, margin=0).shape == (48, 48, 3)
    assert image_grid(images(1, shape=(64, 64)), 1, margin=0).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("x", "columns"),
    [
        (images(4).float(), 2),
        (images(4)[:, 0], 2),
        (images(4, 2), 2),
        (images(0), 2),
        (images(4), 0),
    ],
)
def test_grids_that_cannot_be_drawn(x, columns):
    with pytest.raises(ValueError, match="images"):
        image_grid(x, columns)


def test_captions_go_around_the_picture():
    """The picture is untouched, long titles take more lines, and rows have names."""
    grid = image_grid(images(6), columns=3)
    height, width, _ = grid.shape
    plain, titled = captioned(grid), captioned(grid, "samples")
    assert np.array_equal(plain[-height:, -width:], grid)
    assert np.array_equal(titled[-height:], grid)
    longer = captioned(grid, "samples of a data set with a name that takes some more lines")
    assert longer.shape[1] == width
    assert longer.shape[0] > titled.shape[0] > plain.shape[0]
    named = captioned(grid, "samples", ("cat", "dog"))
    assert np.array_equal(named[-height:, -width:], grid)
    left = named[-height:, :-width]
    for half in (left[: height // 2], left[height // 2 :]):
        assert (half < 128).any()


def test_long_names_are_cut():
    grid = image_grid(images(2), columns=1)
    some, more = (captioned(grid, rows=("x", "n" * n)).shape[1] for n in (40, 400))
    assert some == more


def test_a_row_of_samples_is_a_class():
    x, label = images(10), torch.tensor([2, 0, 2, 0, 2, 0, 2, 0, 2, 2])
    grid = sample_grid(x, label, ("cat", "dog", "eel"), "samples")
    expected = image_grid(torch.cat([x[label == 0], x[label == 2][:4]]), columns=4)
    height, width, _ = expected.shape
    assert np.array_equal(grid[-height:, -width:], expected)
    assert grid.shape[1] > width


@pytest.mark.parametrize("label", [None, torch.full((9,), 3)])
def test_samples_of_one_class_make_a_square(label):
    x = images(9)
    expected = image_grid(x, columns=3)
    assert np.array_equal(sample_grid(x, label)[-len(expected) :], expected)


def test_a_film_has_a_frame_a_network_call(tmp_path):
    calls = [*[images(4)] * 10, images(4).flip(3)]
    save_film(tmp_path / "film.gif", calls)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 11
        film.seek(10)
        last = np.asarray(film.convert("L"), dtype=int)
    expected = image_grid(calls[-1], columns=2)[..., 0].astype(int)
    assert abs(last[-len(expected) :, : expected.shape[1]] - expected).max() < 16


def test_a_film_has_room_for_the_longest_title(tmp_path):
    """This picture is wide enough for "network call 9 of 12", and not for "10 of 12"."""
    x = images(1, shape=(136, 136))
    heights = {
        len(sample_grid(x, title=f"denoised estimate, network call {k} of 12")) for k in (9, 10)
    }
    assert len(heights) == 2
    save_film(tmp_path / "film.gif", [x] * 12)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 12
        assert film.height == max(heights)


def test_neighbours_stand_beside_their_images():
    left, right = images(5, shape=(4, 6)), images(5, shape=(4, 6)).flip(0)
    grid, zoom = neighbour_grid(left, right, columns=2), 8
    height, width, margin = 4 * zoom, 13 * zoom, 4 * zoom
    assert grid.shape == (margin + 3 * (height + margin), margin + 2 * (width + margin), 3)
    for k in range(5):
        top = margin + k // 2 * (height + margin)
        start = margin + k % 2 * (width + margin)
        pair = grid[top : top + height : zoom, start : start + width : zoom, 0]
        assert np.array_equal(pair[:, :6], left[k, 0])
        assert np.array_equal(pair[:, 7:], right[k, 0])
    with pytest.raises(ValueError, match="as many alike"):
        neighbour_grid(left, right[:3])


def test_png_is_lossless(tmp_path):
    grid = image_grid(images(6, 3), 3)
    save_png(tmp_path / "grid.png", grid)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), grid)


def test_gif_plays_in_time_and_holds_the_last_frame(tmp_path):
    x = images(20)
    frames = [image_grid(x[k : k + 1], 1) for k in range(20)]
    save_gif(tmp_path / "a.gif", frames, seconds=2.0, hold=1.5)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 20
        assert gif.info["loop"] == 0
        times = []
        for k, frame in enumerate(frames):
            gif.seek(k)
            times.append(gif.info["duration"])
            assert np.array_equal(np.asarray(gif.convert("RGB")), frame)
    assert times == [100] * 19 + [1600]
    with pytest.raises(ValueError, match="at least one frame"):
        save_gif(tmp_path / "b.gif", [])


def test_smoothing_keeps_constants_and_removes_noise():
    assert smoothed(np.full(100, 3.0)) == pytest.approx(np.full(100, 3.0))
    noisy = 1 + np.random.default_rng(0).normal(size=3000)
    assert smoothed(noisy)[300:].std() < 0.2
    assert smoothed(np.array([2.0])) == pytest.approx([2.0])
    assert smoothed(np.array([2.0, 5.0]), window=1) == pytest.approx([2.0, 5.0])


def test_loss_curve_takes_what_it_finds(tmp_path):
    records = [{"step": k, "loss": 1 / (k + 1)} for k in range(50)]
    records += [
        {"step": 50, "loss": float("nan")},
        {"step": 50, "held_out_loss": 0.1},
        {"note": 1},
    ]
    loss_curve(tmp_path / "loss.png", records)
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 400
    for nothing in ([], [{"step": 1}], [{"step": 1, "loss": float("nan")}]):
        with pytest.raises(ValueError, match="nothing to draw"):
            loss_curve(tmp_path / "none.png", nothing)


def test_held_out_losses_have_a_panel_of_their_own(tmp_path):
    records = [{"step": k, "loss": 1 / k} for k in range(1, 50)]
    loss_curve(tmp_path / "one.png", records)
    loss_curve(tmp_path / "two.png", [*records, {"step": 50, "held_out": 0.4}])
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.height > 1.5 * one.height
        below = np.asarray(two.convert("RGB"))[one.height :]
    assert (below == [0xD9, 0x68, 0x0D]).all(-1).any()  # the one held-out loss is a mark


def test_scatter_draws_every_set(tmp_path):
    points = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    for n in (1, 3):
        scatter(tmp_path / f"{n}.png", {f"set {k}": points for k in range(n)})
    with Image.open(tmp_path / "1.png") as one, Image.open(tmp_path / "3.png") as three:
        assert three.width == 3 * one.width
    for bad in ({}, {"a": points[:, :1]}, {"a": points[:0]}):
        with pytest.raises(ValueError, match="points"):
            scatter(tmp_path / "bad.png", bad)


def test_every_set_of_points_is_in_the_frame(tmp_path):
    """With the frame of all sets the second has as many dark pixels as the first, else none."""
    sets = {"a": torch.tensor([[0.0, 0.0], [1.0, 1.0]]), "b": torch.tensor([[9.0, 9.0]] * 2)}
    dots = []
    for frame in (None, torch.cat(list(sets.values()))):
        scatter(tmp_path / "a.png", sets, frame=frame)
        with Image.open(tmp_path / "a.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        right = pixels[:, pixels.shape[1] // 2 :]
        dots.append((right[..., 2] - right[..., 0] > 60).sum())
    assert dots[0] == 0 < dots[1]


def test_every_class_of_points_has_its_colour(tmp_path):
    """Blue and orange are the first colours of matplotlib; few points are large enough to see."""
    points, label = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 2, 0])
    scatter(tmp_path / "a.png", {"points": points}, label=label, classes=("x", "y", "z"))
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for k, colour in ((0, (31, 119, 180)), (2, (44, 160, 44))):
        mixed = 0.9 * np.array(colour) + 0.1 * 255
        count = (abs(pixels - mixed) < 2).all(-1).sum()
        assert count >= 12, k


def test_histograms_of_two_sets(tmp_path):
    histogram(tmp_path / "h.png", {"a": torch.randn(200), "b": torch.ones(3)}, "bits")
    with Image.open(tmp_path / "h.png") as picture:
        assert picture.size == (840, 420)
    for empty in ({}, {"a": torch.ones(0)}):
        with pytest.raises(ValueError, match="at least one"):
            histogram(tmp_path / "h.png", empty, "bits")
