"""Training with a codebook, a discriminator, a perceptual distance and scale equivariance."""

from typing import Any

import pytest
import torch
from torch import nn

import scoresde as ss
from scoresde.data import Scaling
from scoresde.latent import KLAutoencoder, Loss, VQAutoencoder
from scoresde.latent.discriminator import Adversarial
from scoresde.latent.losses import Criterion
from scoresde.progress import silent
from scoresde.runs.log import Quiet
from scoresde.training import checkpoint as checkpoints

KIND = "scoresde-autoencoder"
KL = {"kind": "kl", "widths": [8, 8], "groups": 4}
VQ = {"kind": "vq", "widths": [8, 8], "groups": 4, "codes": 16, "wait": 2}
PATCH = {"kind": "patch", "layers": 1, "width": 4, "start": 3}


class Maps(nn.Module):
    """A network of features that a program gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.conv(x)]


class Said(Quiet):
    """A listener that keeps the remarks."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def pictures(n: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 3, 16, 16), generator=generator).to(torch.uint8)


def train(autoencoder: Any, out: Any = None, **settings: Any) -> Any:
    given: dict[str, Any] = {"batch": 8, "holdout": 0.25, "steps": 6}
    given |= {"log_every": 2, "validate_every": 6, "checkpoint_every": 3, "keep": 9}
    given |= {"listener": Quiet(), "device": "cpu", **settings}
    made = {"autoencoder": autoencoder} if isinstance(autoencoder, dict) else autoencoder
    return ss.train_autoencoder(made, pictures(), out=out, progress=silent, **given)


def numbers(path: Any) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint of a run, by group and name."""
    found = checkpoints.load(checkpoints.step_files(path / "checkpoints")[0], kind=KIND)
    groups = {"model": found.model, "ema": found.ema, "net": found.learned.get("net", {})}
    groups["optimizer"] = checkpoints._tensors(found.optimizer)
    groups["other"] = checkpoints._tensors(found.learned.get("optimizer", {}))
    return {f"{g} {name}": t for g, group in groups.items() for name, t in group.items()}


@pytest.mark.parametrize(("autoencoder", "start"), [(VQ, 1), (KL, 4)])
def test_a_resumed_run_has_the_same_bits(tmp_path, autoencoder, start):
    """Resumed at step 3, after the discriminator and the codes began, and before it."""
    told = {"discriminator": {**PATCH, "start": start}, "accumulate": 2}
    train(autoencoder, tmp_path / "whole", **told)
    train(autoencoder, tmp_path / "parts", **told, steps=3)
    train(autoencoder, tmp_path / "parts", **told, resume=True)
    whole, parts = numbers(tmp_path / "whole"), numbers(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert any(name.startswith("other") for name in whole)
    assert ("model codebook.codes" in whole) == (autoencoder is VQ)
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_a_discriminator_costs_and_changes_nothing_before_its_start(tmp_path):
    late = train(KL, tmp_path / "late", discriminator={**PATCH, "start": 6})
    plain = train(KL, tmp_path / "plain")
    assert not late.codec.adversarial
    assert not any("discriminator" in name for record in late.records for name in record)
    for a, b in zip(late.codec.parameters(), plain.codec.parameters(), strict=True):
        assert torch.equal(a, b)
    acted = train(KL, discriminator={**PATCH, "start": 5})
    assert acted.codec.adversarial
    assert "discriminator_right" in acted.records[-1]
    pairs = zip(acted.codec.parameters(), plain.codec.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_files_say_that_a_discriminator_has_acted(tmp_path):
    train(KL, tmp_path, discriminator=Adversarial(layers=1, width=4, start=4))
    assert ss.load_codec(tmp_path).adversarial
    before, after = (tmp_path / "checkpoints" / f"step-{n:08d}.pt" for n in (3, 6))
    assert ss.load_codec(after).adversarial
    assert not ss.load_codec(before).adversarial


def test_a_codec_stays_adversarial_that_is_trained_further_without_a_discriminator(tmp_path):
    made = train(KL, discriminator={**PATCH, "start": 4}).codec
    train(made, tmp_path, steps=2)
    resumed = train(KL, tmp_path, steps=4, resume=True)  # which knows it from the checkpoint alone
    assert resumed.codec.adversarial
    for step in (2, 4):
        assert ss.load_codec(tmp_path / "checkpoints" / f"step-{step:08d}.pt").adversarial


def test_a_discriminator_that_wins_is_named():
    said = Said()
    settings = {**PATCH, "start": 0, "rate": 10.0, "width": 16}
    train(KL, discriminator=settings, steps=40, listener=said)
    (line,) = (line for line in said.lines if "wins" in line)
    assert "lower discriminator.rate" in line


def test_a_discriminator_that_never_acts_is_named():
    said = Said()
    train(KL, discriminator={**PATCH, "start": 6}, listener=said)
    assert any("the discriminator never acts" in line for line in said.lines)


def test_the_log_has_the_codes_that_are_used():
    record = train(VQ).records[-1]
    assert 1 <= record["perplexity"] <= record["codes"] <= 16
    bits = torch.tensor(record["perplexity"]).log2() * 16 / (3 * 16 * 16)
    assert record["rate"] == pytest.approx(bits.item())
    said = Said()
    assert train({**VQ, "wait": 6}, listener=said).records[-1]["codes"] == 0
    assert any("there will be no codes" in line for line in said.lines)


def test_features_of_a_program_are_a_term_of_the_loss(tmp_path):
    found = train(KL, tmp_path, perceptual=0.5, features=Maps())
    record = found.records[-1]
    terms = {"l1": 1.0, "l2": 1.0, "kl": 0.1, "perceptual": 0.5}
    assert record["loss"] == pytest.approx(sum(w * record[f"loss_{n}"] for n, w in terms.items()))
    with pytest.raises(ValueError, match="a module that a program gave; give it again"):
        train(KL, tmp_path, perceptual=0.5, features="own", steps=7, resume=True)


@pytest.mark.parametrize("law", ["none", "gaussian"])
@pytest.mark.parametrize("size", [16, 14, 12])
def test_latents_of_half_the_size_decode_to_the_halved_picture(law, size):
    """The term is the error at half the size, for sizes that do not divide too."""
    torch.manual_seed(0)
    codec = KLAutoencoder(3, widths=(8, 8), groups=4, law=law, pad=True)
    x, noise = torch.rand(2, 3, size, size), torch.randn(2, 4, -(-size // 4), -(-size // 4))
    criterion = Criterion(Loss(scale=0.5, l2=1), codec, Scaling(256))
    passed = criterion.passed(codec, x, noise)
    found = criterion.terms(passed, x, x * 255)["scale"]
    half = nn.functional.interpolate
    z = half(passed.z, scale_factor=0.5, mode="bilinear")
    small = half(x, scale_factor=0.5, mode="bilinear")
    picture = codec.decode(z)
    side = min(picture.shape[-1], small.shape[-1])
    error = picture[..., :side, :side] - small[..., :side, :side]
    expected = (error.abs() + error.square()).flatten(1).mean(1)
    torch.testing.assert_close(found, expected)


def test_the_commitment_is_a_mean_over_the_numbers_of_a_latent():
    codec = VQAutoencoder(3, widths=(8, 8), groups=4, codes=8, wait=0)
    x, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 4, 4, 4)
    codec.codebook.update(codec.passed(x, noise).observed)
    criterion = Criterion(Loss(), codec, Scaling(256))
    assert criterion.weights["commitment"] == 0.25
    passed = codec.passed(x, noise)
    z = codec.encode(x).mean
    expected = (z - codec.codebook(z).z).square().flatten(1).mean(1)
    torch.testing.assert_close(criterion.terms(passed, x, x)["commitment"], expected)


@pytest.mark.parametrize(
    ("autoencoder", "settings", "words"),
    [
        (KL, {"commitment": 0.5}, "has no effect"),
        (VQ, {"kl": 0.5}, "has no effect"),
        (KL, {"perceptual": 1.0}, "give both"),
        (KL, {"perceptual": 1.0, "features": "lite9"}, "did you mean 'lite0'"),
        (KL, {"discriminator": {**PATCH, "layers": 3}}, "set fewer layers"),
        (KL, {"discriminator": "patches"}, "did you mean 'patch'"),
        (KL, {"discriminator": {**PATCH, "groups": 5}}, "does not divide twice the width"),
        ({**KL, "patch": 8}, {"scale": 1.0}, "have no half size"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_time(tmp_path, autoencoder, settings, words):
    with pytest.raises(ValueError, match=words) as error:
        train(autoencoder, tmp_path / "run", **settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kl", [0.0, 1.0])
def test_latents_that_a_decoded_picture_moves_beyond_their_noise_are_named(kl):
    said = Said()
    trip = train(KL, kl=kl, lr=3e-2, warmup=0, steps=40, listener=said).records[-1]["round_trip"]
    assert (trip > 1) == (kl == 0)
    lines = [line for line in said.lines if "raise loss.kl" in line]
    assert [f"by {trip:.2f} of their noise" in line for line in lines] == [True] * (kl == 0)
