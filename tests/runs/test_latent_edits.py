"""Edits, measurements, classifiers and judgements of models of latents."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import scoresde as ss
from scoresde import parameterization
from scoresde.data import Scaling
from scoresde.nn import UNet
from scoresde.posterior import Blur, Downsample, Mask
from scoresde.registry import POSTERIORS
from scoresde.runs.edit import _filled, edit
from scoresde.runs.editor import Editor, read_codes
from scoresde.runs.infer import infer
from scoresde.runs.log import Quiet
from scoresde.runs.results import save_arrays
from scoresde.runs.space import pictures, to_data, to_state
from scoresde.training.checkpoint import DataDescription
from tests.runs.test_latents import Identity, Stacked, kl, small

SHAPE = (3, 8, 8)
LEVELS = Scaling(256)
BOX = {"box": (3, 2, 7, 5)}


def model(codec=None, channels: int = 3) -> ss.ScoreModel:
    """Near the exact denoiser of standard normal data, so that little amplifies rounding."""
    net = UNet(channels, width=8, multipliers=(1,), blocks=1, attention=(), heads=1)
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.data = 0.03 * torch.randn(weight.shape, generator=generator)
    made = ss.ScoreModel(net, ss.VP(), parameterization.v).requires_grad_(False)
    made.data = DataDescription("made", SHAPE, LEVELS, None, 0.5)
    made.codec = codec
    return made


def some(n: int = 2, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *SHAPE), generator=generator).to(torch.uint8)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("img2img", {"strength": 0.5, "nfe": 4}),
        ("inpaint", BOX | {"nfe": 4, "method": "replacement"}),
        ("inpaint", BOX | {"nfe": 8, "method": "repaint"}),
        ("inpaint", BOX | {"nfe": 4}),
        ("outpaint", {"margins": (2, 0, 0, 3), "nfe": 4}),
        ("superres", {"factor": 2, "nfe": 4}),
        ("colourise", {"nfe": 4, "method": "diffpir"}),
        ("deblur", {"degrade": True, "nfe": 4, "method": "diffpir"}),
        ("deblur", {"degrade": True, "nfe": 4, "method": "pigdm"}),
        ("invert", {"tolerance": 1e-3}),
        ("interpolate", {"tolerance": 1e-3, "columns": 3}),
    ],
)
def test_an_identity_codec_edits_as_a_model_of_pixels(operation, arguments):
    found = [edit(model(codec), some(), operation, **arguments) for codec in (None, Identity(3))]
    assert found[0].x.dtype == found[1].x.dtype == torch.uint8
    away = (found[0].x.int() - found[1].x.int()).abs()
    # Conjugate gradients multiply rounding, and adaptive solvers err by their tolerance.
    solved = operation in ("deblur", "invert", "interpolate")
    assert away.max() <= (3 if solved else 1)
    assert solved or (away > 0).double().mean() < 0.01
    assert found[0].settings == found[1].settings


def test_no_strength_returns_the_picture_exactly_and_all_of_it_is_a_sample():
    made, x = model(kl3(), 2), some()
    assert torch.equal(edit(made, x, "img2img", strength=0).x, x)
    whole = edit(made, x, "img2img", strength=1, seeds=[4], nfe=3)
    assert torch.equal(whole.x, ss.draw(made, seeds=[4, 4], nfe=3).x)


def kl3():
    torch.manual_seed(0)
    return ss.latent.KLAutoencoder(3, 2, patch=1, widths=(8, 8), groups=4)


@pytest.mark.parametrize("method", ["replacement", "dps"])
def test_known_pixels_come_back_exactly_and_painted_ones_do_not_matter(method):
    made, x = model(kl3(), 2), some()
    other = x.clone()
    other[..., 2:5, 3:7] = some(seed=8)[..., 2:5, 3:7]
    a, b = (edit(made, each, "inpaint", **BOX, method=method, nfe=4) for each in (x, other))
    assert torch.equal(a.x, b.x)
    kept = torch.ones(8, 8, dtype=torch.bool)
    kept[2:5, 3:7] = False
    assert torch.equal(a.x[..., kept], x[..., kept])
    assert not torch.equal(a.x, x)


def test_a_latent_is_known_if_all_its_pixels_are():
    codec, seen = Stacked(3), []
    made = model(codec, 12)

    class Method(POSTERIORS["replacement"]):
        def __call__(self, denoiser, measurement, x, noise, nfe):
            seen.append(measurement)
            return super().__call__(denoiser, measurement, x, noise, nfe)

    x = some(1)
    edit(made, x, "inpaint", box=(3, 2, 7, 5), method=Method(), nfe=4)
    known = torch.ones(4, 4, dtype=torch.bool)
    known[1:3, 1:4] = False  # rows 2 to 4 and columns 3 to 6 of pixels
    assert torch.equal(seen[0].operator.mask.expand(1, 4, 4)[0], known)
    want = F.pixel_unshuffle(LEVELS.encode(x), 2) * known
    torch.testing.assert_close(seen[0].y, want, atol=1e-5, rtol=0)
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[0, 1] = mask[4, 4] = False
    with pytest.raises(ValueError, match=r"no square of 2 x 2 pixels is kept.*choose dps"):
        edit(made, x, "inpaint", mask=mask, method="replacement")
    with pytest.raises(ValueError, match="noise: replacement replaces latents"):
        edit(made, x, "inpaint", **BOX, noise=3, method="replacement")


def test_painted_pixels_are_filled_by_means_of_known_ones():
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    known = torch.ones(1, 1, 8, 8)
    known[..., 2:4, 2:4] = 0
    found = _filled(x, known)
    assert torch.equal(found[known > 0], x[known > 0])
    around = x[..., :4, :4][known[..., :4, :4] > 0]
    torch.testing.assert_close(found[..., 2:4, 2:4], around.mean().expand(1, 1, 2, 2))
    one = torch.zeros(1, 1, 7, 5)
    one[..., 6, 0] = 1
    assert torch.equal(_filled(torch.full((1, 1, 7, 5), 3.0), one), torch.full((1, 1, 7, 5), 3.0))


def test_methods_of_linear_operators_alone_are_refused_after_a_decoder():
    made, x = model(kl3(), 2), some()
    for name in ("replacement", "repaint", "langevin_replacement"):
        with pytest.raises(ValueError, match=f"{name} needs a linear operator.*choose dps, daps"):
            edit(made, x, "superres", factor=2, method=name)
        with pytest.raises(ValueError, match="needs a linear operator"):
            infer(made, Downsample(2), torch.zeros(3, 4, 4), 1.0, method=name)


def test_dps_is_the_default_after_a_decoder():
    arguments = {"nfe": 3, "degrade": True}
    assert edit(model(), some(1), "deblur", **arguments).settings["method"] == "diffpir"
    assert edit(model(kl3(), 2), some(1), "deblur", **arguments).settings["method"] == "dps"
    y = torch.zeros(3, 4, 4)
    a, b = (
        infer(model(kl3(), 2), Downsample(2), y, 1.0, num=1, nfe=3, method=method)
        for method in (None, "dps")
    )
    assert torch.equal(a.x, b.x)


def test_a_measurement_is_made_of_the_decoded_picture_in_units_of_the_data():
    """With an invertible codec the posterior of latents is that of pictures."""
    x = some(1).float()
    operator, noise = Blur(0.7), 2.0
    y = operator(x)[0]
    codec = Stacked(3)
    made = model(codec, 12)
    found = infer(made, operator, y, noise, num=2, nfe=20, method="dps")
    assert found.x.shape == (2, *SHAPE)
    assert found.x.dtype == torch.uint8
    far = ss.draw(made, 2, nfe=20)
    near, away = (float((operator(s.x.float()) - y).square().mean()) for s in (found, far))
    assert near < away / 4
    # The gradient of the misfit goes through the decoder: it is that of the pixels.
    w = to_state(made, some(1)).requires_grad_()
    pictures(made, w).square().sum().backward()
    want = F.pixel_unshuffle(2 * LEVELS.encode(some(1)), 2)
    torch.testing.assert_close(w.grad, want, atol=1e-4, rtol=1e-4)


def test_masks_hide_pixels_of_the_decoded_picture():
    made = model(kl3(), 2)
    mask = torch.ones(SHAPE)
    mask[..., 4:] = 0
    found = infer(made, Mask(mask), some(1)[0].float() * mask, 1.0, num=2, nfe=3, method="dps")
    assert found.x.shape == (2, *SHAPE)


def test_codes_are_those_of_latents(tmp_path):
    made, x = model(Stacked(3), 12), some()
    editor = Editor(made, tolerance=1e-4)
    z = editor.encode(x)
    assert z.shape == (2, 12, 4, 4)
    assert (editor.decode(z).int() - x.int()).abs().max() <= 1
    save_arrays(tmp_path / "codes.npz", z=z.numpy())
    assert torch.equal(read_codes(tmp_path / "codes.npz", made)[0], z)
    with pytest.raises(ValueError, match=r"needs \(N, 3, 8, 8\)"):
        read_codes(tmp_path / "codes.npz", model())


def test_a_classifier_of_noisy_latents_guides(tmp_path):
    run = ss.train(small(conditional=True), codec=kl(), steps=2, listener=Quiet())
    quiet = ss.progress.silent
    found = ss.train_classifier(run.model, steps=6, batch=16, width=8, progress=quiet)
    assert found.model(torch.zeros(2, 2, 4, 4), torch.tensor([0.5, 0.5])).shape == (2, 10)
    same = ss.train_classifier(
        run.model, steps=6, batch=16, width=8, progress=quiet, out=tmp_path / "c.pt"
    )
    states = zip(found.model.state_dict().values(), same.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


def test_samples_of_latents_are_judged_as_pictures():
    run = ss.train(small(), codec=kl(), steps=2, listener=Quiet())
    drawn = ss.draw(run.model, 20, nfe=3)
    rows = ss.evaluate(drawn, drawn.x, ("frechet",), features="pixels", resamples=0)
    assert rows["frechet"].value == pytest.approx(0, abs=1e-3)


def test_a_state_of_another_dtype_or_device_keeps_it():
    made = model(kl3(), 2)
    w = to_state(made, some(), dtype=torch.float64)
    assert w.dtype == torch.float64
    assert pictures(made, w).dtype == torch.float64
    assert to_data(made, w).dtype == torch.uint8
