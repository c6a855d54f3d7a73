"""Noise: distribution, independence of the batch, and one path however it is walked."""

import math
from itertools import pairwise

import pytest
import torch

from scoresde import VP, sample
from scoresde.registry import STEPS, build_step
from scoresde.samplers import DDIM, BrownianPath, grids, per_sample_noise
from scoresde.samplers.noise import Purpose, _Draws, _mix, _signed
from scoresde.testing import Gaussian, grid25

F64 = torch.float64


def test_hashed_draws_are_standard_normal_and_independent():
    noise = per_sample_noise(range(400))
    x = torch.empty(400, 999, dtype=F64)
    first, second = noise(x), noise(x)
    for z in (first, second):
        n = z.numel()
        assert abs(z.mean()) < 5 / math.sqrt(n)
        assert abs(z.var() - 1) < 5 * math.sqrt(2 / n)
        assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)
        inside = (z.abs() < 1).double().mean()
        assert abs(inside - 0.682689) < 5 * math.sqrt(0.25 / n)
    flat = 5 / math.sqrt(first.numel())
    assert abs((first * second).mean()) < flat  # over calls
    assert abs((first[:-1] * first[1:]).mean()) < flat  # over neighbouring seeds
    assert abs((first[:, :-1] * first[:, 1:]).mean()) < flat  # over positions
    assert abs((first[:, :-2] * first[:, 2:]).mean()) < flat  # the two pairs of a word
    assert abs((first[:, :499] * first[:, 500:]).mean()) < flat  # the two halves of a sample
    for a, b in ((first, second), (first[:-1], first[1:]), (first[:, :499], first[:, 500:])):
        assert abs((a.square() * b.square()).mean() - 1) < 5 * math.sqrt(8 / a.numel())


def test_the_whole_distribution_is_normal():
    """Kolmogorov's distance, at the 1e-6 level, in both precisions; the extremes are finite."""
    for dtype in (torch.float32, F64):
        z = per_sample_noise(range(100))(torch.empty(100, 10_001, dtype=dtype))
        p = torch.special.ndtr(z.double().flatten().sort().values)
        gap = (p - (torch.arange(len(p)) + 0.5) / len(p)).abs().max()
        assert gap * math.sqrt(len(p)) < 2.7
        assert 4 < z.abs().max() < 7


def test_the_tails_have_their_weight():
    """P(|z| > c) over 2e7 draws, within the error of a sample, and so the moments to the sixth."""
    noise, x = per_sample_noise(range(200)), torch.empty(200, 10_000)
    beyond, moments, draws = dict.fromkeys((2, 3, 3.5, 4, 4.5, 5), 0), torch.zeros(3, dtype=F64), 0
    for _ in range(10):
        z = noise(x)
        draws += z.numel()
        size = z.abs()
        for c in beyond:
            beyond[c] += int((size > c).sum())
        square = z.double().square()
        moments += torch.stack([(square**k).sum() for k in (1, 2, 3)])
    for c, count in beyond.items():
        mean = draws * math.erfc(c / math.sqrt(2))
        assert abs(count - mean) < 4.5 * math.sqrt(mean), c
    for m, exact, variance in zip(
        (moments / draws).tolist(), (1, 3, 15), (2, 96, 10_170), strict=True
    ):
        assert abs(m - exact) < 4.5 * math.sqrt(variance / draws)


def test_numbers_of_one_word_are_independent():
    """Two numbers share a hashed word: their joint law, and that of two words, in 32 x 32 cells,
    and far out, also along the diagonal.
    """
    noise, x = per_sample_noise(range(100)), torch.empty(100, 20_000)
    z = torch.cat([noise(x) for _ in range(5)]).double().view(-1, 4)
    n = len(z)
    cells = (32 * torch.special.ndtr(z)).long().clamp(max=31)
    size, square = z.abs(), z.square()
    cube = (size**3 - 4 / math.sqrt(2 * math.pi)) / math.sqrt(15 - 8 / math.pi)
    for i in range(4):
        for j in range(i):
            counts = torch.bincount(32 * cells[:, i] + cells[:, j], minlength=1024)
            chi2 = float(((counts - n / 1024) ** 2).sum() / (n / 1024))
            assert abs(chi2 - 1023) < 4.5 * math.sqrt(2 * 1023)
            for a, b in ((z, z), ((square - 1) / math.sqrt(2),) * 2, (cube, cube), (z, cube)):
                assert abs((a[:, i] * b[:, j]).mean()) < 4.5 / math.sqrt(n)
            both = int(((size[:, i] > 2.5) & (size[:, j] > 2.5)).sum())
            mean = n * math.erfc(2.5 / math.sqrt(2)) ** 2
            assert abs(both - mean) < 4.5 * math.sqrt(mean)
            along = (z[:, i] + z[:, j]).abs() / math.sqrt(2)
            mean = n * math.erfc(4 / math.sqrt(2))
            assert abs(int((along > 4).sum()) - mean) < 4.5 * math.sqrt(mean)


def test_the_hash_is_splitmix64():
    """The first outputs for the seed 1234567, as published with ports of the generator."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    states = [1234567 + k * 0x9E3779B97F4A7C15 for k in (1, 2, 3)]
    words = _mix(torch.tensor([_signed(state) for state in states])).tolist()
    assert [word % 2**64 for word in words] == expected


def test_a_seed_and_a_position_do_not_change_places():
    """Seed i at position j is not seed j at position i, also where the counter is zero."""
    zeros = torch.zeros(64, dtype=torch.int64)
    z = BrownianPath(range(64)).cells(torch.empty(64, 256, dtype=F64), zeros, zeros)
    assert len(z.view(-1, 4).unique(dim=0)) == 64 * 64


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_purposes_and_counters_of_one_seed_are_independent(dtype):
    """Every two of (purpose, counter): no correlation of the draws, nor of their squares."""
    draws, x = _Draws(range(500)), torch.empty(500, 40, dtype=dtype)
    z = torch.stack([draws(x, p, k).flatten() for p in Purpose for k in (0, 1, 2, 2**62, -1)])
    flat = 5 / math.sqrt(z.shape[1])
    for part, size in ((z.double(), 1), (z.double().square() - 1, 2)):
        covariance = part @ part.T / part.shape[1]
        assert (covariance - size * torch.eye(len(z), dtype=F64)).triu(1).abs().max() < size * flat


def test_a_path_repeats_no_draw_of_the_stream_of_its_seed():
    """Fixed-time noise, increments and cells against the draws a start is made of."""
    x, zeros = torch.empty(200, 6, dtype=F64), torch.zeros(200, dtype=torch.int64)
    t, s = torch.tensor([1.0, 0.5], dtype=F64)
    stream, path = per_sample_noise(range(200)), BrownianPath(range(200))
    drawn = [stream(x) for _ in range(3)]
    drawn += [path(x, t, t), path(x, t, t), path(x, t, s), path.cells(x, zeros, zeros)]
    numbers = torch.stack(drawn).flatten()
    assert len(numbers.unique()) == len(numbers)


@pytest.mark.parametrize(
    ("kind", "options"), [("pc", {}), ("heun", {"s_churn": 40.0}), ("restart", {})]
)
def test_start_and_path_of_the_same_seeds_give_the_right_variance(kind, options):
    """As with other seeds for the path: what the start was made of is not added again."""
    n, sde = 20_000, VP()
    data = Gaussian(torch.zeros(2, dtype=F64), torch.tensor(0.25, dtype=F64))
    step = build_step(kind, options, 18)
    x = per_sample_noise(range(n))(torch.empty(n, 2, dtype=F64)) * sde.prior().stddev
    ts = grids.karras()(sde, 18)
    run = lambda seeds: float(  # noqa: E731
        sample(data.denoiser(sde), x, ts, step, BrownianPath(seeds)).var()
    )
    same, other = run(range(n)), run(range(10**9, 10**9 + n))
    assert abs(same / other - 1) < 5 * math.sqrt(2 / n)


def test_no_two_streams_share_a_draw():
    """Of 400 seeds and 50 calls: equal first words would mean overlapping streams."""
    noise, x = per_sample_noise(range(400)), torch.empty(400, 4, dtype=F64)
    rows = torch.cat([noise(x) for _ in range(50)])
    assert len(rows.unique(dim=0)) == len(rows)
    assert len(rows.flatten().unique()) > rows.numel() * (1 - 2e-4)


@pytest.mark.parametrize("shape", [(), (2,), (1, 8, 8), (3, 9, 7)], ids=str)
def test_a_draw_depends_on_its_seed_and_call_only(shape):
    seeds = [5, 2**63 + 11, -4, 0, 2**64 - 17]
    together = per_sample_noise(seeds)
    draws = [together(torch.empty(5, *shape)) for _ in range(3)]
    for i, seed in enumerate(seeds):
        alone = per_sample_noise([seed])
        for draw in draws:
            assert torch.equal(alone(torch.empty(1, *shape))[0], draw[i])


def test_precision_changes_the_rounding_only():
    low, high = (
        per_sample_noise([1, 2])(torch.empty(2, 50, dtype=d)) for d in (torch.float32, F64)
    )
    u_low, u_high = (torch.erf(z.double() / math.sqrt(2)) for z in (low, high))
    torch.testing.assert_close(u_low, u_high, rtol=0, atol=2**-20)


def test_half_precision_and_empty_states():
    for dtype in (torch.float16, torch.bfloat16):
        z = per_sample_noise([1, 2])(torch.empty(2, 50, dtype=dtype))
        assert z.dtype == dtype
        assert torch.equal(z, per_sample_noise([1, 2])(torch.empty(2, 50)).to(dtype))
    assert per_sample_noise([])(torch.empty(0, 3)).shape == (0, 3)
    assert per_sample_noise([1, 2])(torch.empty(2, 0)).shape == (2, 0)


def test_noise_outlives_inference_mode():
    x = torch.empty(1, 6)
    with torch.inference_mode():
        noise = per_sample_noise([1])
        noise(x)
    again = per_sample_noise([1])
    again(x)
    assert torch.equal(noise(x), again(x))


def test_one_seed_a_sample():
    t, s = torch.tensor([1.0, 0.5])
    path = BrownianPath([1, 2])
    path(torch.empty(2, 2), t, s)
    for noise in (per_sample_noise([1, 2]), path):
        with pytest.raises(ValueError, match="2 seeds for a batch of 3"):
            noise(torch.empty(3, 2), t, s / 2)


def test_brownian_increments_add_up_in_any_order_of_questions():
    """W(c) - W(a) = (W(b) - W(a)) + (W(c) - W(b)), whether b is asked before or after."""
    x = torch.empty(3, 4, dtype=F64)
    a, b, c = torch.tensor([1.0, 0.35, 0.2], dtype=F64)
    whole_first, parts_first = BrownianPath([1, 2, 3]), BrownianPath([1, 2, 3])
    whole = whole_first(x, a, c) * (a - c).sqrt()
    parts = whole_first(x, a, b) * (a - b).sqrt() + whole_first(x, b, c) * (b - c).sqrt()
    torch.testing.assert_close(whole, parts)
    parts = parts_first(x, a, b) * (a - b).sqrt() + parts_first(x, b, c) * (b - c).sqrt()
    torch.testing.assert_close(parts_first(x, a, c) * (a - c).sqrt(), parts)


def test_brownian_increments_have_their_law_after_refinement():
    """Quarters of an interval drawn by bridges: unit variance each, independent of each other."""
    path, x = BrownianPath(range(20_000)), torch.empty(20_000, 1, dtype=F64)
    times = torch.tensor([1.0, 0.0, 0.5, 0.75, 0.25], dtype=F64)
    path(x, times[0], times[1])
    grid = times.sort().values
    quarters = torch.cat([path(x, a, b) for a, b in pairwise(grid)], 1)
    covariance = quarters.T @ quarters / len(x)
    torch.testing.assert_close(covariance, torch.eye(4, dtype=F64), rtol=0, atol=0.04)
    assert quarters.mean(0).abs().max() < 0.03


def test_few_and_many_steps_follow_one_path():
    """On one path 10 and 40 steps end near each other; on independent noise they do not."""
    sde, data = VP(), grid25(std=0.3)
    clock = lambda t: (2 * sde.lam(t)).exp()  # noqa: E731
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    run = lambda n, noise: sample(  # noqa: E731
        data.denoiser(sde), x, grids.log_snr(sde, n), DDIM(1.0), noise
    )
    path = BrownianPath(range(200), clock)
    fine, finer = run(80, path), run(160, path)
    apart = run(160, per_sample_noise(range(200)))
    gap = lambda a, b: float((a - b).norm(dim=1).median())  # noqa: E731
    assert gap(fine, finer) < 0.3 * gap(fine, apart)


def test_a_path_needs_an_interval():
    path, x = BrownianPath([0]), torch.empty(1, 2)
    with pytest.raises(ValueError, match="needs the interval"):
        path(x)


def test_at_fixed_time_a_path_gives_fresh_draws_and_stays_itself():
    """Churn and correctors ask for noise over an empty interval: no part of the path."""
    a, b = torch.tensor([1.0, 0.5], dtype=F64)
    x = torch.empty(4000, 2, dtype=F64)
    plain, asked = BrownianPath(range(4000)), BrownianPath(range(4000))
    draws = [asked(x, b, b), asked(x, a, b), asked(x, b, b), asked(x, b, b)]
    assert torch.equal(draws[1], plain(x, a, b))
    covariance = torch.stack([d.flatten() for d in draws]).cov()
    torch.testing.assert_close(covariance, torch.eye(4, dtype=F64), rtol=0, atol=0.06)
    again = BrownianPath(range(4000))
    assert torch.equal(again(x, b, b), draws[0])


@pytest.mark.parametrize("kind", sorted(STEPS))
def test_every_stochastic_step_follows_a_path(kind):
    sde = VP()
    step = build_step(kind, {"s_churn": 5.0} if kind in ("heun", "euler") else {}, 8)
    x = 2 * torch.ones(3, 2, dtype=F64)
    run = lambda: sample(  # noqa: E731
        grid25().denoiser(sde), x, grids.log_snr(sde, 8), step, BrownianPath([1, 2, 3])
    )
    assert run().isfinite().all()
    assert torch.equal(run(), run())
