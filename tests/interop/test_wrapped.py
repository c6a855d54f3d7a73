"""``wrap``: networks of others, with exact answers."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from scoresde import EDM, VP, DiscreteVP, ScoreModel, draw, log_likelihood, sample, wrap
from scoresde.coordinates import Time, ratio
from scoresde.interop.schedulers import Schedule, schedule_of
from scoresde.parameterization import v, x0
from scoresde.samplers import ddpm, dpmpp_2m, grids
from scoresde.testing import Gaussian
from tests.test_readme import ROOT, blocks

F64 = torch.float64
TABLE = DiscreteVP().betas


def problem():
    return Gaussian(torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([0.3, 0.8], dtype=F64))


class ByIndex(nn.Module):
    """The exact noise of the problem, of x and of a place in the table, with a fraction."""

    def __init__(self, prediction="epsilon"):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=F64))
        self.prediction = prediction
        bars = np.cumprod(1 - np.array(TABLE))
        self.lam = np.log(bars / (1 - bars)) / 2
        self.told = []

    def forward(self, x, timestep):
        self.told.append(timestep)
        lam = np.interp(timestep.detach().numpy(), np.arange(len(TABLE)), self.lam)
        lam = torch.from_numpy(lam).reshape(-1, 1)
        alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
        law = problem()
        share = alpha * law.cov / (alpha**2 * law.cov + sigma**2)
        clean = law.mean + share * (x - alpha * law.mean)
        noise = (x - alpha * clean) / sigma
        return (
            self.scale
            * {
                "epsilon": noise,
                "sample": clean,
                "v_prediction": alpha * noise - sigma * clean,
            }[self.prediction]
        )


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_an_exact_network_is_the_denoiser(prediction):
    model = wrap(ByIndex(prediction), TABLE, prediction)
    exact = problem().denoiser(model.sde)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for t in (1e-3, 0.01, 0.2004, 0.77777, 1.0):
        t = torch.tensor(t, dtype=F64)
        torch.testing.assert_close(model.denoiser()(x, t), exact(x, t), rtol=1e-8, atol=1e-8)
    ts = torch.linspace(0.01, 1, 6, dtype=F64)
    torch.testing.assert_close(model.denoiser()(x, ts), exact(x, ts), rtol=1e-8, atol=1e-8)


def test_it_draws_the_law_and_has_its_density():
    model = wrap(ByIndex(), TABLE)
    law, denoiser = problem(), model.denoiser()
    x = torch.randn(10000, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    ts = grids.log_snr(model.sde, 60)
    end = sample(denoiser, x, ts, dpmpp_2m())
    torch.testing.assert_close(end.mean(0), law.mean, rtol=0, atol=0.04)
    torch.testing.assert_close(end.var(0), law.cov, rtol=0.08, atol=0)
    t = torch.tensor(model.sde.t_min, dtype=F64)
    y = law.sample(4, torch.Generator().manual_seed(1))
    prior = lambda x: law.log_prob(x, model.sde, torch.tensor(1.0, dtype=F64))  # noqa: E731
    found = log_likelihood(denoiser, y, prior=prior).log_prob
    torch.testing.assert_close(found, law.log_prob(y, model.sde, t), rtol=0, atol=1e-4)


def test_ways_to_say_the_process(tmp_path):
    config = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon"}
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(config))

    class DDIMScheduler:
        def __init__(self):
            self.config = config

    same = wrap(ByIndex(), DiscreteVP())
    for said in (
        list(TABLE),
        np.array(TABLE),
        torch.tensor(TABLE, dtype=F64),
        config,
        DDIMScheduler(),
        file,
        str(tmp_path),
        tmp_path / "scheduler",
        schedule_of(config),
        same,
    ):
        model = wrap(ByIndex(), said)
        assert model.sde == same.sde
        assert model.parameterization == same.parameterization


def test_a_function_of_x_and_sigma():
    law = problem()

    def k_diffusion(x, sigma):
        share = law.cov / (law.cov + sigma.reshape(-1, 1) ** 2)
        return law.mean + share * (x - law.mean)

    model = wrap(k_diffusion, EDM(), "sample", noise=ratio, scaled=False)
    x, t = torch.randn(5, 2, dtype=F64), torch.tensor(0.7, dtype=F64)
    torch.testing.assert_close(
        model.denoiser()(x, t), law.denoiser(EDM())(x, t), rtol=1e-6, atol=1e-6
    )
    assert draw(model, 3, nfe=4, shape=(2,)).x.shape == (3, 2)


def test_what_a_network_returns():
    class Found:
        def __init__(self, sample):
            self.sample = sample

    x, t = torch.randn(3, 2), torch.tensor(0.5)
    for wrapped in (lambda y: y, lambda y: (y, "more"), Found):
        model = wrap(lambda x, t, wrapped=wrapped: wrapped(0.5 * x), VP(), x0)
        torch.testing.assert_close(model.denoiser()(x, t), 0.5 * x)


def test_a_learned_variance():
    model = wrap(lambda x, t: torch.cat([x, 0 * x - 1], 1), TABLE, variance=True)
    x, t = torch.randn(3, 2), torch.tensor(0.5)
    assert model.denoiser().with_variance(x, t)[1].abs().max() == 0
    assert (
        sample(model.denoiser(), x, grids.uniform(model.sde, 4), ddpm("learned")).shape == x.shape
    )


def test_nearest_levels_are_integers():
    net = ByIndex()
    model = wrap(net, TABLE, nearest=True)
    model.denoiser()(
        torch.zeros(2, 2, dtype=F64), torch.tensor([0.30014, 0.30016], dtype=F64).flip(0)
    )
    assert net.told[-1].tolist() == [299, 299]
    assert net.told[-1].dtype == torch.int64
    wrap(ByIndex(), TABLE)
    for level in (0, 499, 576, 999):
        t = torch.tensor((level + 1) / 1000, dtype=F64)
        told = wrap(ByIndex(), TABLE).parameterization(DiscreteVP(), t).noise
        assert told.item() == level


def test_classes_and_conditions():
    seen = []

    def net(x, t, class_labels=None):
        seen.append(class_labels)
        return x

    model = wrap(net, TABLE, classes=5)
    x, t = torch.zeros(3, 2), torch.tensor(0.5)
    model.denoiser(label=2)(x, t)
    assert seen[-1].tolist() == [2, 2, 2]
    model.denoiser()(x, t)
    assert seen[-1].tolist() == [5, 5, 5]
    with pytest.raises(ValueError, match="label"):
        model.denoiser(label=5)

    def text(x, timestep, encoder_hidden_states):
        seen.append(encoder_hidden_states)
        return x

    wrap(text, TABLE).denoiser(context=torch.ones(1, 4, 8))(x, t)
    assert seen[-1].shape == (3, 4, 8)
    with pytest.raises(ValueError, match="mask: this network has no such input"):
        wrap(text, TABLE).denoiser(mask=torch.ones(1, 4))(x, t)


def test_pixels_by_shape():
    model = wrap(lambda x, t: x, TABLE, shape=(3, 4, 4))
    assert draw(model, 2, nfe=3).x.shape == (2, 3, 4, 4)
    assert model.data.scaling.levels == 256


def test_a_distilled_network_has_no_likelihood():
    model = wrap(ByIndex(), {"_class_name": "LCMScheduler"})
    with pytest.raises(ValueError, match="distilled"):
        log_likelihood(model.denoiser(), torch.zeros(1, 2, dtype=F64))


def test_other_coordinates():
    found = wrap(ByIndex(), VP(), "v_prediction", noise=Time(999.0))
    t = torch.tensor(0.5, dtype=F64)
    assert found.parameterization(VP(), t).noise == 499.5
    assert found.parameterization(VP(), t)[:3] == v(VP(), t)[:3]


@pytest.mark.parametrize(
    ("schedule", "said", "message"),
    [
        (
            {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
            "epsilon",
            "says v_",
        ),
        ({"_class_name": "EDMEulerScheduler"}, "v_prediction", "says Preconditioned"),
        (TABLE, "noise", "unknown 'noise'"),
        (3.0, None, "schedule: need variances"),
        ("no/such/file", None, "no/such/file"),
        (object(), None, "schedule: need variances"),
        ([0.1, 2.0], None, "betas between 0 and 1"),
    ],
)
def test_what_is_refused(schedule, said, message):
    with pytest.raises(ValueError, match=message):
        wrap(ByIndex(), schedule, said)


def test_more_that_is_refused():
    with pytest.raises(ValueError, match="module: need a network"):
        wrap(3, TABLE)
    with pytest.raises(ValueError, match="nearest"):
        wrap(ByIndex(), VP(), nearest=True)
    with pytest.raises(ValueError, match="nearest"):
        wrap(ByIndex(), {"_class_name": "EDMEulerScheduler"}, nearest=True)
    with pytest.raises(ValueError, match="variance"):
        wrap(
            ByIndex(), {"_class_name": "DDPMScheduler", "variance_type": "learned"}, variance=False
        )


def test_a_file_that_does_not_say_what_is_predicted_leaves_it_open():
    assert isinstance(
        wrap(ByIndex(), {"_class_name": "DDIMScheduler"}, "v_prediction"), ScoreModel
    )
    assert isinstance(schedule_of({"_class_name": "DDIMScheduler"}), Schedule)


def test_the_example_of_the_page():
    (block,) = blocks(ROOT / "docs" / "parity.md", "python")
    found = {}
    exec(block, found)
    assert found["drawn"].x.shape == found["theirs"].shape == found["x0_hat"].shape == (2, 3, 8, 8)
    assert len(found["scheduler"].timesteps) == 10


def test_a_wrapped_model_can_be_copied_and_pickled():
    model = wrap(nn.Identity(), TABLE)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.net.module) is nn.Identity
        assert other.sde == model.sde


def test_guidance_of_a_network_that_needs_a_class_is_refused():
    class Needy(nn.Module):
        def forward(self, x, noise, label):
            return x

    model = ScoreModel(Needy(), DiscreteVP(), v)
    with pytest.raises(ValueError, match="say it in negative"):
        draw(model, 2, label=1, guidance=2, shape=(2,), nfe=3)
    assert draw(model, 2, label=1, guidance=2, negative={"label": 0}, shape=(2,), nfe=3).nfe == 3


def test_a_reversed_view_of_a_table_is_a_table():
    assert wrap(nn.Identity(), np.array(TABLE[::-1])[::-1]).sde == DiscreteVP(TABLE)


def test_messages_do_not_list_a_whole_table():
    with pytest.raises(ValueError, match="1000 betas") as error:
        wrap(nn.Identity(), [0.5] * 1000)
    assert len(str(error.value)) < 200
    with pytest.raises(ValueError, match="eps divides by alpha"):
        wrap(nn.Identity(), {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True})
