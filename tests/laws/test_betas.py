"""Variance tables against their textbook forms, and a last level without signal."""

import math

import pytest
import torch
from torch.distributions import Normal

from scoresde import Cosine, DiscreteVP, ScoreModel, betas, sample
from scoresde.config import build_sde, config_from
from scoresde.likelihood import path_log_likelihood
from scoresde.nn import MLP
from scoresde.parameterization import edm, eps, flow, score, v, x0
from scoresde.registry import STEPS, build_step, grid_steps
from scoresde.samplers import DDIM, ArctanGrid, ddpm, grids, white_noise
from scoresde.solvers import solve_sde
from scoresde.testing import Gaussian
from scoresde.training.losses import dsm_loss, held_out_times, sigma2
from scoresde.training.times import LogSNR

F64 = torch.float64
N = 400
MAKERS = [
    betas.linear(),
    betas.scaled_linear(),
    betas.quadratic(),
    betas.cosine(),
    betas.sigmoid(),
    betas.sigmoid_alpha_bar(),
    betas.const(),
    betas.exponential(),
    betas.jsd(),
    betas.warm_up(),
    betas.laplace(),
    betas.given(betas.cosine()(N)),
]
COARSE = ("euler_maruyama", "reverse_diffusion", "pc", "annealed_langevin", "dpm_adaptive")
BARE = pytest.mark.parametrize("parameterization", [v, x0, flow, edm(0.5)])


def bars(table):
    return torch.cumprod(1 - torch.tensor(table, dtype=F64), 0)


def bare():
    """The linear table without signal at its last level."""
    return DiscreteVP(betas.zero_terminal(betas.linear()(1000)))


def test_alpha_bar_is_the_textbook_function():
    t = torch.arange(1, N + 1, dtype=F64) / N

    def sigmoid(x):
        return 1 / (1 + torch.exp(-torch.as_tensor(x, dtype=F64)))

    cosine = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    cosine /= math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    scaled = (sigmoid(3) - sigmoid(6 * t - 3)) / (sigmoid(3) - sigmoid(-3))
    log_snr = -0.5 * torch.sign(0.5 - t) * torch.log(1 - 2 * (0.5 - t).abs())
    for maker, expected in (
        (betas.cosine(), cosine),
        (betas.sigmoid_alpha_bar(), scaled),
        (betas.exponential(), torch.exp(-12 * t)),
        (betas.const(0.1), 0.9 ** (N * t)),
        (betas.jsd(), 1 - t),
        (betas.laplace(), sigmoid(log_snr)),
    ):
        # The largest beta of a table with no signal at its end cuts the last entry.
        torch.testing.assert_close(bars(maker(N))[:-1], expected[:-1], rtol=1e-9, atol=1e-12)


def test_beta_rises_in_the_textbook_way():
    i = torch.arange(N, dtype=F64) / (N - 1)
    for maker, map_, ends in (
        (betas.linear(), lambda b: b, (1e-4, 0.02)),
        (betas.scaled_linear(), torch.sqrt, (0.00085**0.5, 0.012**0.5)),
        (betas.quadratic(), torch.sqrt, (0.01, 0.02**0.5)),
        (betas.sigmoid(), lambda b: torch.logit((b - 1e-4) / (0.02 - 1e-4)), (-6, 6)),
    ):
        found = map_(torch.tensor(maker(N), dtype=F64))
        torch.testing.assert_close(found, ends[0] + i * (ends[1] - ends[0]))
    for fraction in (0.1, 0.5):
        found, warm = betas.warm_up(fraction)(N), int(N * fraction)
        assert found[warm - 1 :] == (0.02,) * (N - warm + 1)
        steps = torch.tensor(found[:warm], dtype=F64).diff()
        torch.testing.assert_close(steps, torch.full_like(steps, (0.02 - 1e-4) / (warm - 1)))


@pytest.mark.parametrize("maker", MAKERS, ids=range(len(MAKERS)))
def test_the_process_has_the_table(maker):
    table = maker(N)
    sde, t = DiscreteVP(table), torch.arange(1, N + 1, dtype=F64) / N
    signal = sde.alpha(t) ** 2
    torch.testing.assert_close(signal, bars(table), rtol=1e-12, atol=1e-50)
    torch.testing.assert_close(sde.sigma(t) ** 2, 1 - bars(table), rtol=1e-9, atol=0)
    assert (sde.lam(t).diff() < 0).all()
    assert sde.lam(t).isfinite().all()


@pytest.mark.parametrize("maker", MAKERS[:8], ids=range(8))
def test_the_rescaled_table_keeps_its_start_and_ends_in_noise(maker):
    before = maker(N)
    a, b = bars(before).sqrt(), bars(betas.zero_terminal(before)).sqrt()
    assert float(b[0]) == pytest.approx(float(a[0]), rel=1e-12)
    assert float(b[-1]) == 0
    slope = (b[0] - b[-1]) / (a[0] - a[-1])  # affine in between
    torch.testing.assert_close(b, b[0] + slope * (a - a[0]), rtol=1e-9, atol=1e-12)


def test_only_the_last_beta_may_be_one():
    assert DiscreteVP((0.1, 1.0)).betas[-1] == 1
    for wrong in ((1.0, 0.1), (0.1, 0.0), (0.1, 1.5), (0.1,), ()):
        with pytest.raises(ValueError, match="betas between 0 and 1"):
            DiscreteVP(wrong)
    with pytest.raises(ValueError, match="levels=3, but betas has 2"):
        betas.given((0.1, 0.2))(3)


class TestWithoutSignal:
    def test_the_last_level_is_pure_noise_and_all_is_finite(self):
        sde, one = bare(), torch.ones(1, dtype=F64)
        x, z = 1e6 * torch.randn(1, 5, dtype=F64), torch.randn(1, 5, dtype=F64)
        assert torch.equal(sde.perturb(x, one, z), z)
        assert sde.prior().stddev == 1
        for quantity in (sde.lam, sde.f, sde.g2, sde.alpha, sde.sigma, sde.norm):
            for dtype in (torch.float32, F64):
                assert quantity(one.to(dtype)).isfinite().all()
        assert sde.time(sde.lam(one)) == 1

    @BARE
    def test_a_step_from_noise_goes_to_what_the_network_says(self, parameterization):
        """Against the step in words: alpha_s x0_hat + sigma_s times the noise itself."""
        sde, (t, s) = bare(), torch.tensor([1.0, 0.9], dtype=F64)
        model = ScoreModel(MLP(3, width=8, depth=1).double(), sde, parameterization)
        torch.nn.init.normal_(model.net.head.weight, generator=torch.Generator().manual_seed(0))
        z = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
        denoiser = model.denoiser()
        with torch.no_grad():
            said, got = denoiser(z, t), DDIM()(denoiser, z, t, s, None, white_noise())[0]
            drawn = DDIM(1.0)(denoiser, z, t, s, None, lambda x, t, s: 0 * x)[0]
        assert float(said.std()) > 0
        torch.testing.assert_close(got, sde.alpha(s) * said + sde.sigma(s) * z, rtol=1e-14, atol=0)
        # p(x_s | x_t) = q(x_s | x0_hat): nothing of x_t is left.
        torch.testing.assert_close(drawn, sde.alpha(s) * said, rtol=1e-14, atol=0)

    @BARE
    def test_training_meets_only_finite_numbers(self, parameterization):
        sde = bare()
        model = ScoreModel(MLP(3, width=8, depth=1), sde, parameterization)
        t = torch.ones(6, dtype=F64)
        for weight in (None, sigma2):
            loss = dsm_loss(model, torch.randn(6, 3), t, torch.randn(6, 3), weight)
            assert loss.isfinite().all()
        seen = torch.cat([LogSNR()(sde, torch.linspace(0, 1, 50)), held_out_times(sde, 50)])
        # The network sees one coordinate for all levels without signal, and is trained on it.
        noise = parameterization(sde, seen).noise
        assert float(noise.max()) == float(parameterization(sde, t).noise[0])
        assert noise.max() <= 5

    @pytest.mark.parametrize("parameterization", [eps, score])
    def test_what_divides_by_alpha_is_refused(self, parameterization):
        with pytest.raises(ValueError, match=r"holds no signal.*take v or x0"):
            ScoreModel(MLP(3), bare(), parameterization)

    @pytest.mark.parametrize("step", [DDIM(), ddpm()], ids=repr)
    @pytest.mark.parametrize("grid", [grids.trailing(), grids.linspace()], ids=repr)
    def test_samples_are_those_of_the_data(self, step, grid):
        """Of a mean that a table with a rest of signal misses (arXiv 2305.08891, section 3.2)."""
        mean, std = torch.tensor([40.0], dtype=F64), 0.3
        rest = DiscreteVP()
        found = {}
        for sde in (bare(), rest):
            denoiser = Gaussian(mean, torch.tensor(std**2)).denoiser(sde)
            x = torch.special.ndtri((torch.arange(2000, dtype=F64) + 0.5) / 2000)[:, None]
            noise = white_noise(torch.Generator().manual_seed(0))
            found[sde] = sample(denoiser, x, grid(sde, 100), step, noise)
        assert abs(float(found[bare()].mean()) - 40) < 0.02
        if isinstance(step, DDIM) and step.eta == 0:
            assert abs(float(found[rest].mean()) - 40) > 0.05

    @pytest.mark.parametrize("kind", [k for k in STEPS if k not in COARSE])
    @pytest.mark.parametrize("grid", [grids.trailing(), ArctanGrid()], ids=["trailing", "arctan"])
    def test_every_step_leaves_the_noise(self, kind, grid):
        """It keeps the spread of the table with a rest of signal, in float32."""
        x = torch.special.ndtri((torch.arange(200, dtype=F64) + 0.5) / 200)[:, None].float()
        step = build_step(kind, {}, 20)
        spread = []
        for sde in (bare(), DiscreteVP()):
            denoiser = Gaussian(torch.zeros(1), torch.tensor(0.25)).denoiser(sde)
            noise = white_noise(torch.Generator().manual_seed(0))
            ts = grid(sde, grid_steps(step, 20))
            spread.append(float(sample(denoiser, x, ts, step, noise).std()))
        assert spread[0] == pytest.approx(spread[1], rel=0.1)

    def test_solvers_in_lam_pass_over_the_noise(self):
        law = Gaussian(torch.tensor([0.4, -0.2], dtype=F64), torch.tensor(0.25, dtype=F64))
        denoiser = law.denoiser(bare())
        x = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
        found = path_log_likelihood(denoiser, x)
        t = torch.tensor(bare().t_min, dtype=F64)
        std = (0.25 * bare().alpha(t) ** 2 + bare().sigma(t) ** 2).sqrt()
        exact = Normal(bare().alpha(t) * law.mean, std).log_prob(x).sum(1)
        torch.testing.assert_close(found.log_prob, exact, rtol=0, atol=0.05)
        assert found.nfe < 80  # of one solve: no sample has to be solved again
        end = solve_sde(denoiser, x, 1.0, bare().t_eps, 40, seed=0)
        assert float(end.abs().max()) < 5


class TestShiftedCosine:
    @pytest.mark.parametrize("shift", [0.125, 0.5, 4.0])
    def test_lam_moves_by_the_logarithm(self, shift):
        t = torch.linspace(1e-5, 0.99, 50, dtype=F64)
        gap = Cosine(shift=shift).lam(t) - Cosine().lam(t)
        torch.testing.assert_close(gap, torch.full_like(gap, math.log(shift)))

    def test_interpolation_is_that_of_simple_diffusion(self):
        """arXiv 2301.11093, eq. 5: log SNR = -2 log tan(pi t / 2) + 2 log(m / d), mixed by t."""
        d, low, high = 512, 32, 256
        sde = Cosine(s=1e-12, shift=high / d, shift_end=low / d)
        t = torch.linspace(0.01, 0.99, 50, dtype=F64)
        plain = -2 * torch.log(torch.tan(math.pi * t / 2))
        shifted = [plain + 2 * math.log(m / d) for m in (low, high)]
        expected = t * shifted[0] + (1 - t) * shifted[1]
        torch.testing.assert_close(2 * sde.lam(t), expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(sde.alpha(t) ** 2 + sde.sigma(t) ** 2, torch.ones_like(t))

    def test_a_shift_that_rises_is_refused(self):
        with pytest.raises(ValueError, match="0 < shift_end <= shift"):
            Cosine(shift=0.5, shift_end=0.6)


def test_a_configuration_names_tables():
    tree = {"sde": {"kind": "discrete_vp", "levels": 50, "zero_terminal": True, "table": "cosine"}}
    sde = build_sde(config_from({**tree, "parameterization": "v"}, "here").sde)
    assert sde == DiscreteVP(betas.zero_terminal(betas.cosine()(50)))
    tree = {
        "sde": {"kind": "discrete_vp", "levels": 2, "table": {"kind": "given", "betas": [0.1, 1]}}
    }
    assert build_sde(config_from(tree, "here").sde).betas == (0.1, 1.0)
