"""Every parameterisation is an exact change of variables, and costs the same loss at equal x0
weight.
"""

import pytest
import torch
from torch import nn

from scoresde import VP, ScoreModel
from scoresde import parameterization as params
from scoresde.training import losses

F64 = torch.float64
PARAMETERIZATIONS = {
    "eps": params.eps,
    "x0": params.x0,
    "v": params.v,
    "score": params.score,
    "flow": params.flow,
    "edm": params.edm(0.5),
}


@pytest.fixture(params=PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS.keys())
def parameterization(request):
    return request.param


class Constant(nn.Module):
    """A network that returns a given tensor, in its dtype."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, x, noise):
        assert noise.shape == (len(x),)
        return self.value


def draw(sde, shape=(5, 3, 2)):
    g = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(shape, generator=g, dtype=F64) for _ in range(2))
    t = sde.t_min + (sde.t_max - sde.t_min) * torch.linspace(0.01, 1, shape[0], dtype=F64)
    return x0, eps, t


def test_the_target_reconstructs_x0(sde, parameterization):
    x0, eps, t = draw(sde)
    coeffs = parameterization(sde, t)
    target = losses.network_target(sde, coeffs, x0, t, eps)
    model = ScoreModel(Constant(target), sde, parameterization)
    x = sde.perturb(x0, t, eps)
    # The noise-type targets amplify rounding by sigma / alpha.
    tolerance = 1e-13 * float((1 + sde.sigma(t) / sde.alpha(t)).max())
    torch.testing.assert_close(model.denoiser()(x, t), x0, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        losses.dsm_loss(model, x0, t, eps), torch.zeros(5, dtype=F64), rtol=0, atol=1e-20
    )


def test_reads_noise_score_and_velocity(sde, parameterization):
    """With x0 known the noise, the score and dx/dt = f x - g^2 score / 2 are known too."""
    x0, eps, t = draw(sde)
    target = losses.network_target(sde, parameterization(sde, t), x0, t, eps)
    denoiser = ScoreModel(Constant(target), sde, parameterization).denoiser()
    x = sde.perturb(x0, t, eps)
    col = lambda v: v.reshape(-1, 1, 1)  # noqa: E731
    torch.testing.assert_close(denoiser.eps(x, t), eps, rtol=1e-6, atol=1e-6)
    score = -eps / col(sde.sigma(t))
    torch.testing.assert_close(denoiser.score(x, t), score, rtol=1e-6, atol=1e-6)
    velocity = sde.drift(x, t) - col(sde.g2(t)) * score / 2
    torch.testing.assert_close(denoiser.velocity(x, t), velocity, rtol=1e-6, atol=1e-5)


def test_equal_x0_weights_give_equal_losses(sde, parameterization):
    """The loss under a weight on x0 does not depend on the parameterisation."""
    x0, eps, t = draw(sde)
    guess = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    coeffs = parameterization(sde, t)
    # The F whose x0_hat is `guess`: solve x0_hat = skip x + out F.
    x = sde.perturb(x0, t, eps)
    f = (guess - coeffs.skip.reshape(-1, 1, 1) * x) / coeffs.out.reshape(-1, 1, 1)
    model = ScoreModel(Constant(f), sde, parameterization)
    loss = losses.dsm_loss(model, x0, t, eps, weight=lambda sde, t: torch.ones_like(t))
    torch.testing.assert_close(loss, (guess - x0).square().flatten(1).mean(1), rtol=1e-6, atol=0)


def test_named_weights_on_the_noise_error(sde):
    """sigma2 is the plain noise loss; likelihood is g^2 / sigma^2 of it; EDM's is unit in its own
    network.
    """
    x0, eps, t = draw(sde)
    guess = torch.zeros_like(eps)
    model = ScoreModel(Constant(guess), sde, params.eps)
    noise_error = (guess - eps).square().flatten(1).mean(1)
    torch.testing.assert_close(losses.dsm_loss(model, x0, t, eps), noise_error)
    torch.testing.assert_close(losses.dsm_loss(model, x0, t, eps, losses.sigma2), noise_error)
    torch.testing.assert_close(
        losses.dsm_loss(model, x0, t, eps, losses.likelihood),
        sde.g2(t) / sde.sigma(t) ** 2 * noise_error,
    )
    edm = ScoreModel(Constant(guess), sde, params.edm(0.3))
    torch.testing.assert_close(
        losses.dsm_loss(edm, x0, t, eps, losses.edm(0.3)), losses.dsm_loss(edm, x0, t, eps)
    )
    clipped = losses.min_snr(5.0)(sde, t)
    torch.testing.assert_close(clipped, losses.sigma2(sde, t).clamp(max=5.0))
    torch.testing.assert_close(
        losses.dsm_loss(model, x0, t, eps, losses.p2(0.5, 2.0)),
        (2 + losses.sigma2(sde, t)) ** -0.5 * noise_error,
    )


def test_inputs_and_targets_have_unit_size_for_unit_data(sde):
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(4000, 4, generator=g, dtype=F64) for _ in range(2))
    for name, p in PARAMETERIZATIONS.items():
        for t in torch.linspace(sde.t_eps, sde.t_max, 5, dtype=F64):
            c = p(sde, t)
            size = (c.inp * sde.perturb(x0, t, eps)).std()
            assert 0.98 < size < (1.02 if name != "edm" else 2.05)
            target = losses.network_target(sde, c, x0, t, eps)
            assert 0.5 < target.std() < 2.1, (name, float(t))


def test_state_and_network_may_differ_in_dtype(sde, parameterization):
    x = torch.ones(5, 3, 2, dtype=F64)
    model = ScoreModel(Constant(torch.zeros(5, 3, 2)), sde, parameterization)
    t = torch.tensor(0.5 * sde.t_max, dtype=F64)
    assert model.denoiser()(x, t).dtype == F64
    assert model.denoiser()(x.float(), t).dtype == torch.float32
    assert model(x, t).dtype == torch.float32


def test_edm_refuses_a_deviation_that_is_not_positive():
    with pytest.raises(ValueError, match="sigma_data=0"):
        params.edm(0.0)


@pytest.mark.parametrize(
    ("sde", "parameterization", "words"),
    [
        (VP, params.v, "sde: need a process, such as VP"),
        ("vp", params.v, "sde: need a process, such as VP"),
        (VP(), "v", "parameterization: need a function"),
        (VP(), params.edm, "parameterization: need a function"),
    ],
)
def test_a_model_refuses_what_is_no_process_and_no_parameterisation(sde, parameterization, words):
    with pytest.raises(ValueError, match=words):
        ScoreModel(nn.Identity(), sde, parameterization)


def test_an_output_of_another_shape_is_refused_and_not_broadcast():
    class Wide(torch.nn.Module):
        def forward(self, x, noise):
            return x[:, :1]

    model = ScoreModel(Wide(), VP(), params.v)
    with pytest.raises(ValueError, match=r"returns \(3, 1\) for x of shape \(3, 2\)"):
        model.denoiser()(torch.zeros(3, 2), torch.tensor(0.5))
