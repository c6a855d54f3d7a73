"""Every process against its textbook formulas, finite differences and itself."""

import math
import re

import pytest
import torch

from scoresde import EDM, VE, VP, Cosine, DiscreteVP, LinearFlow, SubVP
from scoresde.sde import derivative, linear_betas

F64 = torch.float64


def interior(sde, n=101):
    """Times strictly inside the range, away from the kinks of a table."""
    t = torch.linspace(sde.t_min, sde.t_max, n + 1, dtype=F64)
    return (t[1:] + t[:-1]) / 2 + 1e-4 / 3


def beta(sde, t):
    return sde.beta_min + t * (sde.beta_max - sde.beta_min)


TEXTBOOK = {
    VP: lambda sde, t: (-beta(sde, t) / 2, beta(sde, t)),
    SubVP: lambda sde, t: (
        -beta(sde, t) / 2,
        beta(sde, t) * -torch.expm1(-2 * sde.beta_min * t - (sde.beta_max - sde.beta_min) * t**2),
    ),
    VE: lambda sde, t: (
        0 * t,
        2
        * math.log(sde.sigma_max / sde.sigma_min)
        * (sde.sigma_min * (sde.sigma_max / sde.sigma_min) ** t) ** 2,
    ),
    EDM: lambda sde, t: (0 * t, 2 * t),
    LinearFlow: lambda sde, t: (-1 / (1 - t), 2 * t / (1 - t)),
    Cosine: lambda sde, t: (
        -math.pi / 2 / (1 + sde.s) * torch.tan((t + sde.s) / (1 + sde.s) * math.pi / 2),
        math.pi / (1 + sde.s) * torch.tan((t + sde.s) / (1 + sde.s) * math.pi / 2),
    ),
    DiscreteVP: lambda sde, t: (
        1000 * torch.log1p(-torch.tensor(sde.betas, dtype=F64))[(t * 1000).long()] / 2,
        -1000 * torch.log1p(-torch.tensor(sde.betas, dtype=F64))[(t * 1000).long()],
    ),
}


def test_drift_and_diffusion_are_the_textbook_ones(sde):
    t = interior(sde)
    f, g2 = TEXTBOOK[type(sde)](sde, t)
    torch.testing.assert_close(sde.f(t), f, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sde.g2(t), g2, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sde.diffusion(t) ** 2, sde.g2(t))
    x = torch.randn(len(t), 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sde.drift(x, t), sde.f(t)[:, None] * x)


def test_moment_equations_hold_by_finite_differences(sde):
    """alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2: the marginal solves the SDE."""
    t = interior(sde)
    h = 1e-6 * t
    slope = lambda fn: (fn(t + h) - fn(t - h)) / (2 * h)  # noqa: E731 - a difference quotient
    variance = lambda s: sde.sigma(s) ** 2  # noqa: E731
    torch.testing.assert_close(slope(sde.alpha), sde.f(t) * sde.alpha(t), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        slope(variance), 2 * sde.f(t) * variance(t) + sde.g2(t), rtol=1e-5, atol=1e-7
    )


def test_log_snr_decreases_and_inverts(sde):
    t = torch.logspace(math.log10(sde.t_min), math.log10(sde.t_max), 200, dtype=F64)
    assert (sde.lam(t).diff() < 0).all()
    torch.testing.assert_close(sde.time(sde.lam(t)), t, rtol=1e-9, atol=0)


def test_schedules_hold_in_float32_down_to_1e_6(sde):
    t = torch.logspace(-6, math.log10(sde.t_max), 400, dtype=F64).float()
    for name in ("alpha", "sigma", "lam", "f", "g2"):
        low, high = getattr(sde, name)(t), getattr(sde, name)(t.double().clamp(max=sde.t_max))
        assert low.dtype == torch.float32
        torch.testing.assert_close(low.double(), high, rtol=1e-6, atol=1e-6 * (name == "lam"))


def test_perturb_has_the_marginal_moments(sde):
    g = torch.Generator().manual_seed(0)
    x0 = torch.tensor([0.7, -1.2], dtype=F64).expand(20_000, 2)
    t = torch.tensor(0.3 * sde.t_max, dtype=F64)
    mean, std = sde.marginal(x0, t)
    x = sde.perturb(x0, t, torch.randn(x0.shape, generator=g, dtype=F64))
    torch.testing.assert_close(
        (x - mean).std(0) / std, torch.ones(2, dtype=F64), rtol=0.02, atol=0
    )
    assert ((x.mean(0) - mean[0]).abs() < 5 * std / math.sqrt(len(x))).all()


def test_forward_euler_maruyama_reaches_the_marginal(sde):
    """Mean and variance of the forward chain, by exact affine propagation, converge to (alpha,
    sigma).
    """
    start, end = torch.tensor([sde.t_eps, 0.5 * sde.t_max], dtype=F64)
    errors = []
    for n in (2000, 4000):
        t = start * (end / start) ** torch.linspace(0, 1, n + 1, dtype=F64)
        h, f, g2 = t.diff(), sde.f(t[:-1]), sde.g2(t[:-1])
        mean, var = sde.alpha(start), sde.sigma(start) ** 2
        for k in range(n):
            mean, var = mean * (1 + f[k] * h[k]), var * (1 + f[k] * h[k]) ** 2 + g2[k] * h[k]
        errors.append((abs(mean / sde.alpha(end) - 1), abs(var / sde.sigma(end) ** 2 - 1)))
    assert max(errors[1]) < 0.02
    assert errors[1][1] < 0.6 * errors[0][1]


def test_prior_stands_for_the_noisiest_marginal(sde):
    t = torch.tensor(sde.t_max, dtype=F64)
    assert float(sde.prior().stddev) == pytest.approx(float(sde.sigma(t)), rel=1e-6)
    assert float(sde.alpha(t) / sde.sigma(t)) < 0.05


def test_any_shape_of_time_and_state(sde):
    t = torch.tensor([0.2, 0.5, 0.9]) * sde.t_max
    x0, eps = torch.ones(3, 2, 4, 5), torch.zeros(3, 2, 4, 5)
    assert sde.perturb(x0, t, eps).shape == x0.shape
    assert sde.perturb(x0, t[0], eps).dtype == torch.float32
    torch.testing.assert_close(sde.perturb(x0, t, eps)[:, 0, 0, 0], sde.alpha(t))


def test_works_in_inference_mode_and_after_it(sde):
    fresh = type(sde)()
    t = torch.tensor(0.5 * sde.t_max)
    with torch.inference_mode():
        inside = fresh.alpha(t) + fresh.time(fresh.lam(t)) + fresh.f(t) + fresh.g2(t)
    outside = fresh.alpha(t) + fresh.time(fresh.lam(t)) + fresh.f(t) + fresh.g2(t)
    assert torch.equal(inside, outside)


def test_the_rate_at_a_level_of_the_table_is_its_own():
    sde = DiscreteVP()
    i = torch.arange(1, 1001, dtype=F64)
    rate = 1000 * torch.log1p(-torch.tensor(sde.betas, dtype=F64))
    torch.testing.assert_close(sde.f(i / 1000), rate / 2, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "sde",
    [
        LinearFlow(t_max=1 - 1e-9),
        Cosine(t_max=1 - 1e-9),
        VP(beta_max=80),
        DiscreteVP((0.5, 0.01)),
    ],
    ids=repr,
)
def test_time_inverts_lam_at_the_extremes(sde):
    near = sde.t_max - (sde.t_max - sde.t_eps) * torch.logspace(-12, 0, 300, dtype=F64)
    far = torch.logspace(-7, 0, 300, dtype=F64) * sde.t_max
    for t in (near, far):
        torch.testing.assert_close(sde.lam(sde.time(sde.lam(t))), sde.lam(t), rtol=0, atol=1e-6)
    # Beyond the noisiest level there is no time: the answer is t_max.
    beyond = sde.lam(torch.tensor(sde.t_max, dtype=F64)) - 1
    assert float(sde.time(beyond)) == pytest.approx(sde.t_max)


def test_an_integer_time_is_not_rounded():
    assert float(VP().alpha(torch.tensor(1))) == pytest.approx(0.0065716, rel=1e-4)


def test_published_constants():
    """alpha(1), sigma(1) of VP; the published grids of VP and VE; sub-VP's deviation is 1 -
    alpha^2.
    """
    one = torch.tensor(1.0, dtype=F64)
    assert float(VP().alpha(one)) == pytest.approx(0.0065716, rel=1e-4)
    assert float(VP().sigma(one)) == pytest.approx(0.9999784, rel=1e-7)
    assert (VP().t_min, VP().t_eps, VE().t_eps, SubVP().t_eps) == (1e-5, 1e-3, 1e-5, 1e-3)
    t = torch.linspace(1e-5, 1, 50, dtype=F64)
    torch.testing.assert_close(SubVP().sigma(t), 1 - VP().alpha(t) ** 2, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(VE().sigma(t)[-1], torch.tensor(50.0, dtype=F64))


def test_discrete_levels_are_the_table():
    betas = torch.tensor(linear_betas(), dtype=F64)
    alpha_bar = torch.cumprod(1 - betas, 0)
    t = torch.arange(1, 1001, dtype=F64) / 1000
    torch.testing.assert_close(DiscreteVP().alpha(t) ** 2, alpha_bar, rtol=1e-12, atol=0)
    torch.testing.assert_close(DiscreteVP().sigma(t) ** 2, 1 - alpha_bar, rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: VP(beta_min=20, beta_max=0.1), ("beta_min=20", "beta_max=0.1")),
        (lambda: VE(sigma_min=50, sigma_max=0.01), ("sigma_min=50", "sigma_max=0.01")),
        (lambda: EDM(t_min=-1), ("t_min=-1",)),
        (lambda: EDM(t_max=math.inf), ("t_max=inf",)),
        (lambda: VE(sigma_max=math.inf), ("sigma_max=inf",)),
        (lambda: LinearFlow(t_max=1.5), ("t_max=1.5",)),
        (lambda: Cosine(t_max=1.5), ("t_max=1.5",)),
        (lambda: DiscreteVP(betas=(0.5, 2.0)), ("betas",)),
    ],
)
def test_inconsistent_constants_are_refused(make, names):
    with pytest.raises(ValueError, match="need") as error:
        make()
    assert all(name in str(error.value) for name in names)


def test_a_process_that_leaves_no_signal_is_refused():
    with pytest.raises(ValueError, match="no signal is left at t_max"):
        VP(beta_max=4000.0)


# --- any legal parameters ---

LOST = r"no signal is left|that float32 can hold"
QUANTITIES = ("alpha", "sigma", "lam", "f", "g2", "norm")


def legal(*makes):
    """The processes that are made; the others are refused in words."""
    for make in makes:
        try:
            yield make()
        except ValueError as error:
            if not re.search(LOST, str(error)):
                raise


def random_processes(seed):
    """One process of every kind with random parameters over many decades, and two tables."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low, high):
        return low + (high - low) * float(torch.rand((), generator=g, dtype=F64))

    def decades(low, high):
        return 10 ** uniform(low, high)

    def rates():
        low = decades(-6, 1)
        return {"beta_min": low, "beta_max": low * decades(0.01, 3), "t_max": uniform(0.01, 1)}

    size, spread = int(uniform(2, 400)), uniform(0.1, 10)
    jumps = 10 ** (torch.rand(size, generator=g, dtype=F64) * spread - 12)
    weak, tiny = decades(-12, 2), decades(-15, -3)
    return legal(
        lambda: VP(**rates()),
        lambda: SubVP(**rates()),
        lambda: VE(sigma_min=weak, sigma_max=weak * decades(0.01, 15)),
        lambda: EDM(t_min=weak, t_eps=weak, t_max=weak * decades(0.01, 15)),
        lambda: Cosine(s=decades(-6, 2), t_max=1 - decades(-14, -0.3)),
        lambda: LinearFlow(t_min=tiny, t_eps=tiny, t_max=1 - decades(-15, -0.3)),
        lambda: DiscreteVP(tuple(jumps.clamp(max=0.9).tolist())),
        lambda: DiscreteVP(tuple(torch.rand(size // 10 + 2, generator=g).double().tolist())),
    )


@pytest.mark.parametrize("seed", range(12))
def test_everything_is_finite_at_every_time_in_every_dtype(seed):
    g, tried = torch.Generator().manual_seed(seed), 0
    for sde in random_processes(seed):
        tried += 1
        u = torch.rand(40, generator=g, dtype=F64)
        ends = torch.tensor([sde.t_min, sde.t_max], dtype=F64)
        t = torch.cat([ends, torch.lerp(*ends, u), ends[0] * (ends[1] / ends[0]) ** u])
        for dtype in (F64, torch.float32, torch.bfloat16, torch.float16):
            held = t.to(dtype)
            held = held[(held > 0) & held.isfinite()]  # a dtype may hold no such time
            for name in QUANTITIES:
                value = getattr(sde, name)(held)
                assert value.isfinite().all(), (sde, name, dtype)
                assert (value > 0).all() or name in ("lam", "f", "g2"), (sde, name, dtype)
                assert value.dtype == (F64 if dtype is F64 else torch.float32)
    assert tried >= 5


@pytest.mark.parametrize("seed", range(12))
def test_time_inverts_lam_as_far_as_times_can_be_told_apart(seed):
    g = torch.Generator().manual_seed(seed)
    for sde in random_processes(seed):
        ends = sde.lam(torch.tensor([sde.t_min, sde.t_max], dtype=F64))
        lam = torch.lerp(*ends, torch.rand(100, generator=g, dtype=F64))
        t = sde.time(lam)
        rounding = 2.0**-50 * t * derivative(sde.lam, t).abs()
        assert ((sde.lam(t) - lam).abs() <= 1e-9 + rounding).all(), sde


@pytest.mark.parametrize("n", [2, 3, 10, 49, 365, 1000, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_the_rates_at_the_levels_of_any_table_are_its_own(n, dtype):
    """Betas that jump by up to 1000 times, and times as anybody may write them."""
    g = torch.Generator().manual_seed(n)
    betas = 10 ** (-5 + 3.47 * torch.rand(n, generator=g, dtype=F64))
    sde, k = DiscreteVP(tuple(betas.tolist())), torch.arange(1, n + 1)
    rate = n * torch.log1p(-betas) / 2
    for t in (
        k.to(dtype) / n,
        k.to(dtype) * torch.tensor(1 / n, dtype=dtype),
        torch.linspace(0, 1, n + 1, dtype=dtype)[1:],
        torch.linspace(1 / n, 1, n, dtype=dtype),
        1 - torch.arange(n - 1, -1, -1).to(dtype) / n,
        (k.float() / n).to(dtype),  # a float32 grid in float64
    ):
        for each, own in ((t, rate), (t[1::3], rate[1::3])):
            torch.testing.assert_close(sde.f(each).double(), own, rtol=1e-6, atol=0)
            torch.testing.assert_close(sde.g2(each).double(), -2 * own, rtol=1e-6, atol=0)
    lam = torch.lerp(sde.lam(k[0] / n), sde.lam(k[-1] / n), torch.rand(1000, generator=g)).double()
    assert (sde.lam(sde.time(lam)) - lam).abs().max() < 1e-9


@pytest.mark.parametrize(
    "make",
    [
        lambda: VP(beta_min=1e-3, beta_max=2800.0),
        lambda: SubVP(beta_max=1e5),
        lambda: VE(sigma_max=1e30),
        lambda: EDM(t_max=1e39),
        lambda: EDM(t_min=1e-60),
        lambda: DiscreteVP((0.5,) * 300),
        lambda: DiscreteVP((1e-90, 1e-90)),
    ],
)
def test_what_float32_cannot_hold_is_refused(make):
    with pytest.raises(ValueError, match=LOST):
        make()
