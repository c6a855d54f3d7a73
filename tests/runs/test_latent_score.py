"""``score`` of models of latents: the bound of pictures, and the latents themselves."""

import csv
import math

import pytest
import torch
from torch import nn

import scoresde as ss
from scoresde import parameterization
from scoresde.data import Scaling
from scoresde.latent import KLAutoencoder, VQAutoencoder
from scoresde.likelihood import adaptive_log_likelihood, estimators
from scoresde.runs.score import Stopped
from scoresde.runs.score_report import csv_text, page, report_of, write_report
from scoresde.testing import Gaussian, LinearCodec
from scoresde.training.checkpoint import DataDescription

F64 = torch.float64
D, BITS = 16, 16 * math.log(2)
SCALE = 0.4


class Standard(nn.Module):
    """v of the standard normal law, or by a label of the normal law around 1, under VP."""

    def forward(self, x: torch.Tensor, noise: torch.Tensor, label=None) -> torch.Tensor:
        if label is None:
            return 0 * x
        sigma = torch.sigmoid(8 * noise).sqrt()
        return 0 * x - (sigma * label).view(-1, *[1] * (x.ndim - 1))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def linear(around: float = 0.0, wider: float = 1.0) -> LinearCodec:
    """Its encoder is the posterior of latents s N(around, 1) + m, with a wider deviation."""
    s, m = torch.tensor([0.5, 1.0, 2.0], dtype=F64), normal(3, seed=1)
    w = torch.linalg.qr(normal(D, 3, seed=2))[0] * torch.tensor([2.0, 1.0, 0.5], dtype=F64)
    variance = 1 / (1 / s**2 + w.square().sum(0) / SCALE**2)
    shift = variance * (m + s * around) / s**2
    encoder = variance[:, None] * w.T / SCALE**2
    codec = LinearCodec(encoder, w, wider * variance.sqrt(), SCALE, shift=shift)
    codec.latents_mean.copy_(m)
    codec.latents_std.copy_(s)
    return codec


def latents(codec: LinearCodec, around: float = 0.0) -> Gaussian:
    s = codec.latents_std
    return Gaussian(codec.latents_mean + s * around, torch.diag(s**2))


def pictures(codec: LinearCodec, n: int = 20) -> torch.Tensor:
    x = codec.pictures(latents(codec)).sample(n, torch.Generator().manual_seed(3))
    return x.reshape(n, 1, 4, 4)


def model_of(codec: nn.Module | None) -> ss.ScoreModel:
    model = ss.ScoreModel(Standard(), ss.VP(), parameterization.v).eval()
    model.codec = codec
    return model


@pytest.fixture
def codec() -> LinearCodec:
    return linear()


def test_with_the_posterior_the_value_is_that_of_the_picture(codec):
    x = pictures(codec)
    found = ss.score(model_of(codec), x)
    exact = codec.pictures(latents(codec)).log_prob(x.flatten(1))
    torch.testing.assert_close(found.log_prob, exact, rtol=0, atol=0.002 * BITS)
    assert found.bits_per_dim == pytest.approx(float(-exact.mean()) / BITS, abs=0.002)
    assert found.standard_error == pytest.approx(float(found.bits.std()) / math.sqrt(20))
    torch.testing.assert_close(found.distortion + found.rate, -found.log_prob)
    again = ss.score(model_of(codec), x, batch=3)
    torch.testing.assert_close(again.log_prob, found.log_prob, rtol=0, atol=1e-9)


def test_values_are_in_the_units_of_the_data(codec):
    """Numbers of 10 times the size have a density of a tenth each."""
    model, x = model_of(codec), pictures(codec)
    exact = ss.score(model, x).log_prob
    model.data = DataDescription("wide", (1, 4, 4), Scaling(None, shift=(1.0,), scale=(10.0,)))
    found = ss.score(model, 1 + 10 * x).log_prob
    torch.testing.assert_close(found, exact - D * math.log(10), rtol=0, atol=1e-4)


def test_draws_average_to_the_bound_or_join_to_a_tighter_one():
    codec = linear(wider=1.3)
    x = pictures(codec, 30)
    exact = codec.pictures(latents(codec)).log_prob(x.flatten(1))
    settings = {"trace": "exact", "repeats": 16, "steps": 24}
    plain = ss.score(model_of(codec), x, **settings)
    error = float((plain.log_prob - codec.bound(x, latents(codec))).std()) / math.sqrt(30)
    gap = (plain.log_prob - codec.bound(x, latents(codec))).mean()
    assert abs(float(gap)) < 3 * error + 1e-3
    joined = ss.score(model_of(codec), x, importance=True, **settings)
    torch.testing.assert_close(joined.rate, plain.rate)
    loose, tight = ((exact - found.log_prob).mean() for found in (plain, joined))
    assert 0 < 5 * float(tight.abs()) < float(loose)


def test_latents_are_scored_in_bits_per_number_of_them(codec):
    codec.std = torch.zeros(3, dtype=F64)
    x = pictures(codec)
    found = ss.score(model_of(codec), x, of="latents")
    exact = latents(codec).log_prob(codec.encode(x).mean.flatten(1))
    torch.testing.assert_close(found.log_prob, exact, rtol=0, atol=1e-3)
    assert found.bits_per_dim == pytest.approx(float(-exact.mean()) / 3 / math.log(2), abs=1e-3)
    assert found.distortion is found.rate is None
    report = report_of(found)
    assert report["parts"] is None
    assert "log p(z)" in page(report)
    assert "real numbers, in the units of the latents" in page(report)


def test_what_is_told_conditions_the_latents():
    """With the label 1 latents are around 1, where the encoder is the posterior."""
    codec = linear(around=1.0)
    x = pictures(codec)
    model = model_of(codec)
    model.data = DataDescription("normal", (1, 4, 4), Scaling(), ("0", "1"))
    found = ss.score(model, (x, torch.ones(20, dtype=torch.long)), trace="exact")
    assert found.job.conditional
    exact = codec.pictures(latents(codec, 1.0)).log_prob(x.flatten(1))
    # Up to the prior in place of the law at t_max, which is around alpha.
    torch.testing.assert_close(found.log_prob, exact, rtol=0, atol=0.05)
    assert float((ss.score(model, x, conditional=False).log_prob - exact).abs().mean()) > 1


def test_the_report_has_the_parts_and_where_the_prior_costs(codec, tmp_path):
    found = ss.score(model_of(codec), pictures(codec), bound=True, check=4, repeats=2)
    report = report_of(found)
    parts = report["parts"]
    assert set(parts) == {"distortion", "rate", "entropy"}
    total = parts["distortion"]["bits_per_dim"] + parts["rate"]["bits_per_dim"]
    assert total == pytest.approx(report["bits_per_dim"])
    assert report["draws_se"] < 0.01
    assert report["lower_bound"]["bits_per_dim"] == pytest.approx(report["bits_per_dim"], abs=0.5)
    # KL(N(alpha w, sigma^2) | N(0, 1)), w of variance 1: alpha^2 / 2 for each of 3 latents.
    alpha = float(ss.VP().alpha(torch.tensor(1.0, dtype=F64)))
    assert report["prior_gap"] == pytest.approx(3 * alpha**2 / 2 / BITS, rel=0.3)
    assert "distortion" in page(report)
    write_report(tmp_path, found, report)
    rows = list(csv.DictReader((tmp_path / "values.csv").read_text().splitlines()))
    sums = [float(r["distortion_bits_per_dim"]) + float(r["rate_bits_per_dim"]) for r in rows]
    assert sums == pytest.approx([float(r["bits_per_dim"]) for r in rows])
    assert "entropy" not in csv_text(ss.score(model_of(codec), pictures(codec), of="latents"))


def test_levels_through_a_network():
    """Values of the same seed do not depend on the batch; the mode of the codec is kept."""
    torch.manual_seed(0)
    codec = KLAutoencoder(1, 2, widths=(8,), groups=4, law="logistic", pad=True)
    model = model_of(codec)
    model.data = DataDescription("levels", (1, 5, 5), Scaling(17))
    x = torch.randint(0, 17, (6, 1, 5, 5), dtype=torch.uint8)
    found = ss.score(model, x, method="elbo", check=2)
    assert codec.training
    alone = ss.score(model, x, method="elbo", batch=2)
    torch.testing.assert_close(found.log_prob, alone.log_prob, rtol=0, atol=1e-3)
    report = report_of(found)
    assert report["levels"] == 17
    assert report["dequantisation"] is None
    assert "17 levels" in page(report)
    assert not report["warnings"][:-1]  # only that 6 values are few
    of_latents = report_of(ss.score(model, x, of="latents"))
    assert of_latents["levels"] is None
    assert "17 levels" not in page(of_latents)


def test_a_late_example_has_a_distortion_but_no_value(codec, monkeypatch):
    short = adaptive_log_likelihood
    monkeypatch.setattr(
        estimators,
        "adaptive_log_likelihood",
        lambda *args, **rest: short(*args, **rest)._replace(
            log_prob=torch.tensor([-1.0, math.nan, -2.0], dtype=F64),
            solver_error=torch.tensor([math.nan, math.inf, math.nan], dtype=F64),
        ),
    )
    found = ss.score(model_of(codec), pictures(codec, 3), method="adaptive", trace="exact")
    assert found.log_prob.isfinite().tolist() == [True, False, True]
    assert found.rate.isfinite().tolist() == [True, False, True]
    assert found.distortion.isfinite().all()
    assert report_of(found)["parts"]["rate"]["bits_per_dim"] > 0


def test_an_interrupted_scoring_goes_on_with_the_same_codec_only(codec, tmp_path):
    x = pictures(codec, 9)
    whole = ss.score(model_of(codec), x)
    calls = iter([False, True])
    with pytest.raises(Stopped, match="of 9 examples scored"):
        ss.score(model_of(codec), x, batch=3, out=tmp_path, stopping=lambda: next(calls))
    other = linear()
    other.latents_std.mul_(1.1)
    with pytest.raises(ValueError, match="left by other weights, data or settings"):
        ss.score(model_of(other), x, batch=3, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="left by other weights, data or settings"):
        ss.score(model_of(codec), x, batch=3, out=tmp_path, resume=True, of="latents")
    found = ss.score(model_of(codec), x, batch=3, out=tmp_path, resume=True)
    for name in ("log_prob", "distortion", "rate"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), atol=1e-9, rtol=0)


class TestRefusals:
    @pytest.mark.parametrize("settings", [{"of": "latents"}, {"relative": True}])
    def test_settings_of_codecs_without_one(self, settings):
        with pytest.raises(ValueError, match=r"likelihood\.(of|relative)=\w+: this model has no"):
            ss.score(model_of(None), torch.zeros(2, 1, 4, 4), **settings)

    def test_no_law(self):
        model = model_of(KLAutoencoder(1, 2, widths=(8,), groups=4))
        with pytest.raises(ValueError, match=r"no law of a picture .* of=latents"):
            ss.score(model, torch.zeros(2, 1, 4, 4))
        assert ss.score(model, torch.zeros(2, 1, 4, 4), of="latents").log_prob.isfinite().all()

    def test_no_noise(self, codec):
        codec.std = torch.zeros(3, dtype=F64)
        with pytest.raises(ValueError, match=r"without noise.* of=latents"):
            ss.score(model_of(codec), pictures(codec))
        coded = VQAutoencoder(1, 2, codes=4, widths=(8,), groups=4)  # which no law would help
        with pytest.raises(ValueError, match=r"without noise.* of=latents"):
            ss.score(model_of(coded), torch.zeros(2, 1, 4, 4))

    def test_a_discriminator(self, codec):
        codec.adversarial = True
        x = pictures(codec)
        with pytest.raises(ValueError, match=r"a discriminator trained this codec.*relative=true"):
            ss.score(model_of(codec), x)
        found = ss.score(model_of(codec), x, relative=True)
        assert "warning: relative only" in page(report_of(found))
        codec.adversarial = False
        plain = ss.score(model_of(codec), x, relative=True)
        assert "relative only" not in page(report_of(plain))
        torch.testing.assert_close(found.log_prob, plain.log_prob)

    def test_pictures_of_another_size(self, codec):
        with pytest.raises(ValueError, match="do not divide by its factor 4"):
            ss.score(model_of(codec), torch.zeros(2, 1, 5, 5))

    def test_importance_of_what_is_no_bound(self, codec):
        with pytest.raises(ValueError, match="of=latents is no bound"):
            ss.score(model_of(codec), pictures(codec), of="latents", repeats=2, importance=True)
        with pytest.raises(ValueError, match="method=elbo estimates a bound"):
            ss.score(model_of(codec), pictures(codec), method="elbo", repeats=2, importance=True)
