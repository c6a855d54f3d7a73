"""Features: what a classifier decides by, the numbers themselves, and networks in files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from scoresde.evaluation import (
    classifier_features,
    fit_classifier,
    raw_features,
    torchscript_features,
)


def pictures(n, channels=1, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = (n, channels, side, side)
    return torch.randint(256, size, generator=generator).to(torch.uint8)


class Colours(nn.Module):
    """The mean of each colour."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((2, 3))


class Maps(nn.Module):
    """As Inception networks that average later, in a list."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x.mean((2, 3), keepdim=True)]


class Inception(nn.Module):
    """The signature of the file that StyleGAN and EDM use."""

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert return_features
        assert img.dtype == torch.uint8
        return img.float().mean((2, 3)).repeat(1, 683)[:, :2048]


class Flat(nn.Module):
    """No features at all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean()


class Unpooled(nn.Module):
    """Maps over the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Broken(nn.Module):
    """Numbers that are none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) / 0 * 0


def scripted(folder: Path, net: nn.Module) -> Path:
    file = folder / f"{type(net).__name__}.pt"
    torch.jit.script(net).save(str(file))
    return file


def test_a_classifier_decides_by_its_features():
    x, label = pictures(60), torch.arange(60) % 3
    judge = fit_classifier(x, label, 3, steps=3, batch=16)
    found = classifier_features(judge, "noise")
    assert found.name == "classifier features of noise"
    assert found.of(x).shape == (60, 64)
    assert found.of(x).dtype == torch.float64
    assert torch.allclose(found.of(x)[7:9], found.of(x[7:9]))
    with torch.no_grad():
        maps = judge.net[:-2]((x.float() - judge.mean) / judge.std)
        assert torch.equal(judge.net[-1](maps.flatten(1)).argmax(1), judge.predict(x))
    assert torch.allclose(found.of(x), maps.mean((2, 3)).double())


def test_raw_numbers_keep_their_geometry():
    train = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 4 + 7
    found = raw_features(train, "points")
    z = found.of(train)
    assert found.name == "standardised values of points"
    assert torch.allclose(z.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert float(z.var(0, correction=0).mean()) == pytest.approx(1)
    scale = torch.pdist(train.double()) / torch.pdist(z)
    assert torch.allclose(scale, scale[:1])
    assert raw_features(pictures(9), "images").name == "standardised pixels of images"


@pytest.mark.parametrize("net", [Colours(), Maps()])
def test_networks_in_files_are_given_resized_colours(tmp_path, net):
    found = torchscript_features(scripted(tmp_path, net))
    x = pictures(3).expand(-1, 1, -1, -1) // 128 * 255
    flat = torch.full_like(x, 51)
    assert found.pictures
    assert not found.inception
    assert torch.allclose(found.of(flat), torch.full((3, 3), 0.2, dtype=torch.float64))
    assert found.of(pictures(120, 3)).shape == (120, 3)


def test_the_inception_of_others_is_known_by_its_signature(tmp_path):
    found = torchscript_features(scripted(tmp_path, Inception()))
    assert found.inception
    assert found.of(pictures(2, 3)).shape == (2, 2048)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Flat(), "returns () for 2 images"),
        (Unpooled(), "average them"),
        (Broken(), "2 of 2 features are not finite"),
    ],
)
def test_networks_without_features(tmp_path, net, words):
    file = scripted(tmp_path, net)
    with pytest.raises(ValueError, match="pt: ") as error:
        torchscript_features(file).of(pictures(2))
    assert words in str(error.value)


def test_files_that_hold_no_network(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    for name in ("text.pt", "state.pt"):
        with pytest.raises(ValueError, match=f"{name}: no TorchScript file"):
            torchscript_features(tmp_path / name)
    with pytest.raises(ValueError, match="no such file"):
        torchscript_features(tmp_path / "none.pt")
