"""``ss.edit``: strengths, exact pixels, every sampler, batches, codes, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import scoresde as ss
from scoresde import parameterization, registry
from scoresde.data import Scaling
from scoresde.nn import UNet
from scoresde.posterior import Blur, Downsample, Grey, PiGDM, Population, PopulationMethod
from scoresde.registry import GridSampler, build_step
from scoresde.runs.draw import draw
from scoresde.runs.edit import METHODS, Squeezed, edit, start_of
from scoresde.samplers import grids, suited_grid
from scoresde.sde import Until
from scoresde.training.checkpoint import DataDescription

SHAPE = (3, 8, 8)
SDES = [ss.VP(), ss.SubVP(), ss.VE(), ss.EDM(), ss.Cosine(), ss.LinearFlow()]
LEVELS, REAL = Scaling(256), Scaling()


def model(scaling: Scaling = LEVELS, spread: float = 0.0, sde: ss.SDE | None = None, classes=None):
    """A network that gives 0: with v under VP the exact denoiser of standard normal data.

    ``spread`` disturbs its weights.
    """
    torch.manual_seed(0)
    net = UNet(3, width=8, multipliers=(1,), blocks=1, attention=(), heads=1, classes=classes)
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data.copy_(weight.data + spread * noise if spread else torch.zeros_like(weight))
    made = ss.ScoreModel(net, sde or ss.VP(), parameterization.v).requires_grad_(False)
    names = None if classes is None else tuple("abcdef"[:classes])
    made.data = DataDescription("made", SHAPE, scaling, names)
    return made


def pictures(n: int = 3, scaling: Scaling = LEVELS, shape: tuple[int, ...] = SHAPE):
    generator = torch.Generator().manual_seed(7)
    if scaling.levels is None:
        return torch.randn(n, *shape, generator=generator)
    return torch.randint(0, 256, (n, *shape), generator=generator).to(torch.uint8)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


BOX = {"box": (2, 1, 6, 8)}
ARGUMENTS = {"inpaint": BOX, "outpaint": {"margins": (2, 0, 0, 3)}, "superres": {"factor": 2}}
ARGUMENTS["deblur"] = {"blur": 0.5, "degrade": True}


class TestStrength:
    def test_none_returns_the_pictures_without_a_network_call(self):
        x = pictures()
        found = edit(model(spread=0.3), x, "img2img", strength=0, num=2)
        assert found.nfe == 0
        assert torch.equal(found.x, x.repeat_interleave(2, 0))
        assert found.drawn.seeds == (0, 1, 2, 3, 4, 5)
        found = edit(model(), x, "img2img", strength=0, seeds=[7, 9])
        assert found.drawn.seeds == (7, 9) * 3

    def test_all_of_it_is_a_sample_of_the_seed(self):
        made, x = model(spread=0.3), pictures()
        found = edit(made, x, "img2img", strength=1, seeds=[4, 9])
        assert torch.equal(found.x, draw(made, seeds=[4, 9] * 3).x)

    def test_all_of_it_does_not_depend_on_the_picture(self):
        made, x = model(REAL), pictures(40, REAL)
        found = edit(made, x, "img2img", strength=1, seeds=[3])
        assert torch.equal(found.x[0], found.x[1])
        assert abs(correlation(found.x, x)) < 0.05

    @pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
    def test_of_standard_normal_data_as_much_is_left_as_at_the_start(self, strength):
        """Their flow stands still at unit variance: what is left of a picture is alpha x."""
        x = pictures(2, REAL)
        found = edit(
            model(REAL), x, "img2img", strength=strength, nfe=30, denoise=False, seeds=[1]
        ).x
        alpha = (1 - strength) / math.hypot(1 - strength, strength)
        assert torch.allclose(found[0] - found[1], alpha * (x[0] - x[1]), rtol=0, atol=0.02)

    @pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
    def test_it_is_the_share_of_noise_of_every_process(self, sde):
        for strength in (0.1, 0.5, 0.9):
            t = torch.tensor(start_of(sde, strength, 0.7), dtype=torch.float64)
            alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
            assert sigma / (sigma + 0.7 * alpha) == pytest.approx(strength, rel=1e-6)
        assert sde.t_min < start_of(sde, 1e-9, 0.7) < start_of(sde, 1 - 1e-9, 0.7) <= sde.t_max

    def test_a_weak_one_changes_little(self):
        x = pictures()
        found = edit(model(spread=0.1), x, "img2img", strength=1e-6)
        assert int((found.x.int() - x.int()).abs().max()) <= 1

    @pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
    def test_others_are_refused(self, value):
        with pytest.raises(ValueError, match="0 <= strength <= 1"):
            edit(model(), pictures(), "img2img", strength=value)


STEPPED = [name for name in registry.STEPS if name not in registry.SELF_PACED]


class TestSamplers:
    @pytest.mark.parametrize("name", STEPPED)
    @pytest.mark.parametrize("steps", [1, 5])
    def test_every_one_walks_the_shorter_way_in_as_many_calls(self, name, steps):
        made, x = model(spread=0.1), pictures(2)
        step = build_step(name, {}, steps, made.std)
        sampler = GridSampler(suited_grid(step, made.std), step, steps)
        found = [edit(made, x, "img2img", strength=s, sampler=sampler) for s in (0.3, 0.7, 1)]
        calls = {each.nfe for each in found}
        assert (
            len(calls) == 1 or name == "restart"
        )  # which adds its own steps where it starts anew

    @pytest.mark.parametrize("name", ["dpm_adaptive", "ode"])
    def test_one_that_paces_itself_takes_fewer_calls(self, name):
        pytest.importorskip("torchdiffeq")
        made, x = model(spread=0.1), pictures(2)
        short, long = (edit(made, x, "img2img", strength=s, step=name).nfe for s in (0.3, 1))
        assert short < long

    @pytest.mark.parametrize("grid", [*registry.GRIDS])
    def test_every_grid_starts_at_the_strength(self, grid):
        if grid in registry.NEEDY_GRIDS and grid != "optimised":
            return
        made, starts = model(), []

        def look(first, call):
            starts.append(float(call.t))

        edit(made, pictures(1), "img2img", strength=0.5, step="heun", nfe=11, grid=grid, look=look)
        leads = {"leading": 0.8}.get(grid, 1.0)  # it starts below t_max
        expected = start_of(made.sde, 0.5, made.std)
        assert leads * expected <= starts[0] <= expected * (1 + 1e-9)
        assert min(starts) >= made.sde.t_min

    def test_fixed_times_are_moved_to_the_shorter_way(self):
        sde, times = ss.VP(), grids.Fixed((1.0, 0.7, 0.3, 0.01))
        part = Until(sde, 0.5)
        found = Squeezed(times, sde)(part, 3)
        whole = sde.lam(times(sde, 3))
        lam = sde.lam(found)
        assert float(found[0]) == 0.5
        assert torch.allclose(
            (lam - lam[0]) / (lam[-1] - lam[0]), (whole - whole[0]) / (whole[-1] - whole[0])
        )
        assert float(lam[-1]) == pytest.approx(float(whole[-1]))

    def test_a_process_ends_within_itself(self):
        with pytest.raises(ValueError, match="t_max"):
            Until(ss.VP(), 1.5)
        with pytest.raises(ValueError, match="t_max"):
            Until(ss.VP(), 1e-6)


class TestPixels:
    @pytest.mark.parametrize("scaling", [LEVELS, Scaling(17), REAL])
    def test_known_ones_come_back_exactly(self, scaling):
        x = pictures(2, scaling)
        x = x % 17 if scaling.levels == 17 else x
        keep = torch.ones(8, 8, dtype=torch.bool)
        keep[1:8, 2:6] = False
        found = edit(model(scaling, 0.1), x, "inpaint", **BOX, num=2, nfe=5)
        before = x.repeat_interleave(2, 0)
        assert torch.equal(found.x[..., keep], before[..., keep])
        assert not torch.equal(found.x, before)
        assert found.x.dtype == x.dtype

    def test_a_mask_and_a_box_and_a_colour_say_the_same(self, tmp_path):
        made, x = model(spread=0.1), pictures(2)
        mask = np.zeros((8, 8), np.uint8)
        mask[1:8, 2:6] = 255
        Image.fromarray(mask).save(tmp_path / "mask.png")
        colour = torch.tensor([1, 2, 3], dtype=torch.uint8)
        over = torch.where(torch.from_numpy(mask > 0), colour[:, None, None], x)
        ways = [BOX, {"mask": mask > 0}, {"mask": tmp_path / "mask.png"}]
        found = [edit(made, over, "inpaint", **way, nfe=4).x for way in ways]
        found.append(edit(made, over, "inpaint", painted=(1, 2, 3), nfe=4).x)
        for other in found[1:]:
            assert torch.equal(other, found[0])

    def test_every_picture_has_its_own_painted_pixels(self):
        x = pictures(2)
        x[0, :, 0, :3], x[1, :, 4:6] = 0, 0
        found = edit(model(), x, "inpaint", painted=(0, 0, 0), num=3, nfe=4, batch=2)
        changed = (found.x != x.repeat_interleave(3, 0)).any(1)
        assert not changed[:3, 1:].any()
        assert not changed[3:, :4].any()
        assert changed[:3, 0, :3].any()
        assert changed[3:, 4:6].any()

    def test_a_smaller_picture_is_placed_within_the_margins(self):
        made, whole = model(spread=0.1), pictures(2)
        inner = whole[..., :5, 2:]
        found = edit(made, inner, "outpaint", margins=(2, 0, 0, 3), nfe=4)
        assert torch.equal(found.x[..., :5, 2:], inner)
        again = edit(made, whole, "outpaint", margins=(2, 0, 0, 3), nfe=4)
        assert torch.equal(found.x, again.x)

    def test_the_unfinished_ones_keep_them_too(self):
        x, calls = pictures(3), []
        found = edit(
            model(spread=0.1),
            x,
            "inpaint",
            **BOX,
            nfe=5,
            batch=2,
            look=lambda first, call: calls.append(first),
            stopping=lambda: len(calls) == 5 + 2,
        )
        assert (len(found), found.drawn.unfinished) == (3, 1)
        keep = torch.ones(8, 8, dtype=torch.bool)
        keep[1:8, 2:6] = False
        assert torch.equal(found.x[..., keep], x[..., keep])


class TestKnown:
    """Of standard normal data with an exact denoiser, what is known of a picture stays so."""

    @pytest.mark.parametrize(
        ("operation", "operator", "arguments"),
        [
            ("colourise", Grey(), {}),
            ("superres", Downsample(4), {}),
            ("superres", Downsample(2), {"factor": 2}),
            ("deblur", Blur(0.7), {"blur": 0.7, "degrade": True}),
        ],
    )
    def test_results_have_the_grey_small_or_blurred_picture(self, operation, operator, arguments):
        x = pictures(2, REAL)
        arguments = {**arguments, "method": PiGDM(std=1.0), "noise": 0.01}
        found = edit(model(REAL), x, operation, **arguments, nfe=30, num=2)
        known = operator(x).repeat_interleave(2, 0)
        assert torch.allclose(operator(found.x), known, rtol=0, atol=0.06)
        assert torch.allclose(found.seen, operator(x))

    @pytest.mark.parametrize(
        ("operation", "operator"), [("colourise", Grey()), ("superres", Downsample(2))]
    )
    def test_it_may_be_given_itself(self, operation, operator):
        x = pictures(2, REAL)
        made = model(REAL)
        found = edit(made, operator(x), operation, nfe=4)
        assert found.before is None
        more = {"factor": 2} if operation == "superres" else {}
        assert torch.allclose(found.x, edit(made, x, operation, nfe=4, **more).x, atol=1e-5)

    def test_a_picture_to_deblur_is_blurred_already(self):
        x, made = pictures(2, REAL), model(REAL)
        found = edit(made, Blur(1.0)(x), "deblur", nfe=4)
        assert torch.allclose(found.x, edit(made, x, "deblur", degrade=True, nfe=4).x, atol=1e-4)


@pytest.mark.parametrize("num", [1, 6])
def test_a_population_is_of_one_picture(num):
    sizes = []

    class Together(PopulationMethod):
        name = "together"

        def populate(self, denoiser, measurement, x, noise, nfe):
            sizes.append(len(x))
            return Population(x, 0.0, 0.0, 1.0)

    ask = (model(), pictures(3), "inpaint")
    found = edit(*ask, **BOX, method=Together(), num=num, batch=4)
    assert sizes == [256] * 3
    assert found.drawn.rows == tuple(range(3 * num))
    assert found.drawn.seeds == tuple(range(3 * num))
    alone = edit(
        model(),
        pictures(3)[1],
        "inpaint",
        **BOX,
        method=Together(),
        seeds=found.drawn.seeds[num : 2 * num],
    )
    assert torch.equal(alone.x, found.x[num : 2 * num])


def test_particles_paint_and_keep_what_is_known():
    x, known = pictures(2), torch.ones(SHAPE, dtype=torch.bool)
    found = edit(model(), x, "inpaint", **BOX, method="twisted_smc", num=3, nfe=3)
    assert found.x.shape == (6, *SHAPE)
    assert found.nfe == 3
    x0, y0, x1, y1 = BOX["box"]
    known[:, y0:y1, x0:x1] = False
    assert (found.x[:, known] == x.repeat_interleave(3, 0)[:, known]).all()
    calls = iter(range(100))
    stopped = edit(
        model(), x, "inpaint", **BOX, method="twisted_smc", num=3, nfe=3,
        stopping=lambda: next(calls) >= 5,
    )  # fmt: skip
    assert (len(stopped), stopped.drawn.unfinished, stopped.drawn.rows) == (6, 3, tuple(range(6)))
    assert torch.equal(stopped.x[:3], found.x[:3])


@pytest.mark.parametrize("operation", [*METHODS, "img2img"])
def test_batches_do_not_change_the_results(operation):
    made, x = model(spread=0.1), pictures(3)
    more = {"seeds": [3, 8], "nfe": 5} | ARGUMENTS.get(operation, {})
    whole = edit(made, x, operation, **more).x
    parts = edit(made, x, operation, **more, batch=1).x
    alone = edit(made, x[1], operation, **more).x
    n = len(whole) // 3
    assert int((whole.int() - parts.int()).abs().max()) <= 1
    assert int((whole[n : 2 * n].int() - alone.int()).abs().max()) <= 1


class Smooth(nn.Module):
    """A network of slow changes, whose flow a solver follows in few calls."""

    def forward(self, x, noise, label=None):
        found = 0.3 * torch.sin(x.flip(-1))
        return found if label is None else found + 0.3 * label.to(x)[:, None, None, None]


def smooth() -> ss.ScoreModel:
    made = ss.ScoreModel(Smooth(), ss.VP(), parameterization.v)
    made.data = DataDescription("made", SHAPE, LEVELS, ("a", "b"))
    return made


class TestFlow:
    def test_inversion_goes_there_and_back(self):
        x = pictures(3)
        found = edit(smooth(), x, "invert", batch=2)
        assert torch.equal(found.x, x)
        assert found.z.shape == x.shape

    def test_another_class_changes_the_picture(self):
        made, x = smooth(), pictures(2)
        same = edit(made, x, "invert", source="b", label="b")
        other = edit(made, x, "invert", source="a", label="b", guidance=2.0)
        assert torch.equal(same.x, x)
        assert not torch.equal(other.x, x)
        assert other.drawn.label.tolist() == [1, 1]

    def test_paths_end_at_the_pictures(self):
        x = pictures(2)
        found = edit(smooth(), x, "interpolate", columns=3, label=["a", "b"])
        assert torch.equal(found.x[[0, 2]], x)

    def test_a_stop_keeps_the_pictures_that_are_done(self):
        asked = []
        found = edit(
            smooth(), pictures(3), "invert", batch=1,
            stopping=lambda: asked.append(1) or len(asked) > 2,
        )  # fmt: skip
        assert torch.equal(found.x, pictures(3)[:2])


class TestFiles:
    def test_pictures_are_read_from_files_and_folders(self, tmp_path):
        made, x = model(), pictures(2)
        files = [tmp_path / f"{k}.png" for k in range(2)]
        for file, each in zip(files, x, strict=True):
            Image.fromarray(each.permute(1, 2, 0).numpy()).save(file)
        for source in (files, tmp_path, str(tmp_path)):
            assert torch.equal(edit(made, source, "img2img", strength=0).x, x)
        assert torch.equal(edit(made, files[1], "img2img", strength=0).x, x[1:])


MASK = torch.zeros(8, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("operation", "arguments", "words"),
    [
        ("inpant", {}, "operation: unknown name 'inpant'; did you mean 'inpaint'?"),
        ("inpaint", {}, "mask: say what to paint by one of mask, box and painted"),
        ("inpaint", {"box": (0, 0, 9, 2)}, "box: 0,0,9,2 is not inside 8 x 8 pixels"),
        ("inpaint", {"box": (3, 0, 3, 2)}, "box: 3,0,3,2 is not inside"),
        ("inpaint", {"mask": MASK}, "mask: nothing to paint"),
        ("inpaint", {"mask": ~MASK}, "mask: no pixel is kept"),
        ("inpaint", {"mask": MASK[:4]}, "mask: the mask has 8 x 4 pixels and the picture 8 x 8"),
        ("inpaint", {"mask": MASK + 0.5}, "mask: need True or 1"),
        ("inpaint", {**BOX, "mask": MASK}, "by one of mask, box and painted"),
        ("inpaint", {**BOX, "strength": 0.5}, "strength: is for img2img; leave it out"),
        ("inpaint", {**BOX, "method": "dpss"}, "unknown .*'dpss'.*did you mean 'dps'"),
        ("inpaint", {**BOX, "label": 1}, "without classes"),
        ("outpaint", {}, "margins is missing"),
        ("outpaint", {"margins": (4, 0, 4, 0)}, "margins: .* leave 0 x 8 of 8 x 8 pixels"),
        ("outpaint", {"margins": (0, 0, 0, 0)}, "margins: "),
        ("superres", {"factor": 3}, "factor: 3 does not divide 8 x 8 pixels"),
        ("img2img", {"mask": MASK}, "mask: is for inpaint; leave it out"),
        ("img2img", {"sampler": 3}, "sampler: need an object that can be called"),
        ("invert", {"num": 2}, "num: invert draws no noise"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_call(operation, arguments, words):
    def look(first, call):
        raise AssertionError("called")

    with pytest.raises(ValueError, match=words) as caught:
        edit(model(), pictures(2), operation, **arguments, look=look)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (pictures(1, shape=(3, 9, 8)), "8 x 9 pixels and 3 channels; this model needs 8 x 8"),
        (pictures(1, shape=(1, 8, 8)), "8 x 8 pixels and 1 channel; this model needs 8 x 8"),
        (pictures(1).float(), "picture: "),
        (pictures(1).int() + 256, "picture: "),
        (torch.zeros(0, *SHAPE, dtype=torch.uint8), "picture: "),
    ],
)
def test_other_pictures_are_refused(picture, words):
    with pytest.raises(ValueError, match=words):
        edit(model(), picture, "inpaint", **BOX)


def test_a_model_of_vectors_has_variations_but_no_pictures():
    net = nn.Linear(1, 1)
    made = ss.ScoreModel(net, ss.VP(), parameterization.v)
    made.data = DataDescription("made", (2,), REAL, None)
    with pytest.raises(ValueError, match="colourise needs a model of pictures"):
        edit(made, torch.zeros(1, 2), "colourise")
