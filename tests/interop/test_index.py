"""What a network is told of the noise, in configurations and in the networks."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde.config import ConfigError, build, build_model, config_from, load_config, to_plain
from scoresde.coordinates import Index, Time, place
from scoresde.data import Scaling
from scoresde.nn import DiT, Sinusoids, Timesteps, adm
from scoresde.nn.published import ImageV1, LucidUNet
from scoresde.parameterization import Informed, ScoreModel, eps, flow, v
from scoresde.registry import PARAMETERIZATIONS
from scoresde.sde import VP, DiscreteVP
from scoresde.training.checkpoint import DataDescription

TOLD = {"sde.kind": "discrete_vp", "sde.levels": 40, "parameterization.noise": "index"}
SMALL = {"network.kind": "adm", "network.width": 8, "network.multipliers": [1]}
SMALL |= {"network.blocks": 1, "network.attention": [], "network.head_channels": None}
PICTURES = DataDescription("toy", (1, 4, 4), Scaling(256))


def test_the_place_is_that_in_the_table_of_the_process():
    t = torch.tensor([1 / 40, 0.5, 1.0], dtype=torch.float64)
    sde = DiscreteVP(DiscreteVP().betas[:40])
    torch.testing.assert_close(place(sde, t), torch.tensor([0, 19, 39], dtype=torch.float64))
    assert torch.equal(place(sde, t), Index(40)(sde, t))
    with pytest.raises(ValueError, match="DiscreteVP"):
        place(VP(), t)


def test_a_model_is_told_the_index():
    model = build_model(load_config(None, TOLD | SMALL), PICTURES)
    assert model.parameterization == Informed(v, place)
    told = []
    model.net.register_forward_pre_hook(lambda _, given: told.append(given[1]))
    model.denoiser()(torch.zeros(2, 1, 4, 4), torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(told[0], torch.tensor([9.0, 39.0]))


def test_a_flow_is_told_its_time():
    flowing = {"sde.kind": "linear_flow", "parameterization.kind": "flow"}
    config = load_config(None, flowing | {"parameterization.noise": "time"} | SMALL)
    assert build_model(config, PICTURES).parameterization == Informed(flow, Time(1000), False)


def test_configurations_from_before_load_as_they_were():
    plain = to_plain(load_config(None, {"parameterization.kind": "eps"}))
    before = {**plain, "parameterization": {"kind": "eps"}}
    assert config_from(before, "run") == config_from(plain, "run")
    for name in ("eps", "x0", "v", "score", "flow"):
        made = PARAMETERIZATIONS[name]()
        assert PARAMETERIZATIONS.name_of(made) == name
        assert made is build(config_from({"parameterization": name}, "run").parameterization)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sde.kind": "vp"}, "set sde.kind to discrete_vp"),
        ({"parameterization.noise": "time"}, "set sde.kind to linear_flow"),
        ({"network.head": "levels", "parameterization.kind": "x0"}, "network.head"),
    ],
)
def test_a_number_that_the_process_does_not_have_is_refused(changes, words):
    found = {k: v for k, v in TOLD.items() if "sde.kind" not in changes or k != "sde.levels"}
    with pytest.raises(ConfigError, match=words):
        load_config(None, found | SMALL | changes | {"train.dither": False})


def test_a_network_of_other_frequencies_is_refused():
    config = load_config(None, TOLD | {"network.kind": "mlp"})
    with pytest.raises(ConfigError, match=r"network\.kind=mlp is made for"):
        build_model(config, PICTURES)


def test_the_frequencies_are_those_of_ddpm():
    found = Timesteps(8)(torch.tensor([1.0, 7.0]))
    w = torch.tensor([1.0, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4])
    expected = torch.cat([torch.sin(7 * w), torch.cos(7 * w)])
    torch.testing.assert_close(found[1], expected)


def test_neighbouring_places_differ_for_weights_of_half_precision():
    """999 would be 1000 in bfloat16, and a frequency of 8 bits an angle wrong by radians."""
    net = adm(
        1, width=8, multipliers=(1,), blocks=1, attention=(), head_channels=None, indexed=True
    )
    net = net.bfloat16()
    assert net.wide_noise
    features = net.condition.features(torch.tensor([998.0, 999.0]))
    assert features.dtype == torch.float32
    assert float((features[0] - features[1]).abs().max()) > 0.3
    assert math.isclose(float(features[1, 0]), math.sin(999), rel_tol=1e-3)
    assert net(torch.zeros(2, 1, 4, 4).bfloat16(), torch.tensor([998.0, 999.0])).isfinite().all()


@pytest.mark.parametrize("kind", ["adm", "dit", "lucidrains", "image_v1"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_stored_frequencies_stay_exact_in_half_precision(kind, half):
    """Imported networks have frequencies of their own, of angles up to 1000 radians."""
    sizes = {"width": 8, "multipliers": (1,)}
    net = {
        "adm": lambda: adm(1, **sizes, blocks=1, attention=(), head_channels=None),
        "dit": lambda: DiT(1, width=8, depth=1, heads=1, patch=2),
        "lucidrains": lambda: LucidUNet(1, **sizes, attention=(0,)),
        "image_v1": lambda: ImageV1(1, depths=(1,), widths=(8,), attention=()),
    }[kind]()
    (features,) = (module for module in net.modules() if isinstance(module, Sinusoids))
    features.frequencies.uniform_(0.1, 1)
    model = ScoreModel(net, DiscreteVP(), Informed(eps, Index(1000))).eval()
    seen = []
    features.register_forward_hook(lambda module, given, found: seen.append(found.float()))
    for dtype in (torch.float32, half):
        model.to(dtype)(torch.zeros(1, 1, 8, 8), torch.ones(1))
    torch.testing.assert_close(seen[1], seen[0], atol=1e-3, rtol=0)
