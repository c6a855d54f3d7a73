"""Codes are the nearest and the means of their latents; unused ones start anew."""

import copy

import pytest
import torch

from scoresde.latent import VQAutoencoder
from scoresde.latent.quantise import Codebook, perplexity, shares
from scoresde.training.distributed import Rank

F64 = torch.float64
SMALL = {"widths": (8, 8), "patch": 2, "groups": 4, "codes": 16, "wait": 0}
MOVES = {"decay": 0.9, "restart": 0.1}


def keys(z: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.rand(z[:, 0].shape, generator=torch.Generator().manual_seed(seed))


def latents(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rows(z: torch.Tensor) -> torch.Tensor:
    return z.movedim(1, -1).flatten(0, -2)


def seen(book: Codebook, z: torch.Tensor, seed: int = 0) -> None:
    """One update on a batch."""
    book.update(book.observed(z, book(z).number, keys(z, seed)))


@pytest.fixture
def started() -> tuple[Codebook, torch.Tensor]:
    book, z = Codebook(6, 3, **MOVES).to(F64), latents(4, 3, 5, 5)
    seen(book, z)
    return book, z


@pytest.mark.parametrize(("dtype", "shift"), [(F64, 0), (F64, 1e4), (torch.float32, 100)])
def test_the_nearest_code_is_taken_wherever_the_latents_lie(dtype, shift):
    book, z = Codebook(40, 3, **MOVES), latents(2, 3, 4, 6, dtype=dtype) + shift
    book.to(dtype).codes.copy_(latents(40, 3, seed=1, dtype=dtype) + shift)
    book.counts.fill_(1)
    found = book(z)
    exact = (rows(z).double()[:, None] - book.codes.double()).square().sum(-1)
    assert found.number.shape == (2, 4, 6)
    assert torch.equal(found.number.flatten(), exact.argmin(1))
    assert torch.equal(rows(found.z), book.codes[found.number.flatten()])


def test_latents_stay_as_they_are_until_codes_start_from_some_of_the_first_batch():
    book, z = Codebook(6, 3, **MOVES).to(F64), latents(4, 3, 5, 5)
    assert torch.equal(book(z).z, z)
    seen(book, z)
    nearest = (book.codes[:, None] - rows(z)).abs().amax(-1).min(1)
    torch.testing.assert_close(nearest.values, torch.zeros(6, dtype=F64), atol=1e-12, rtol=0)
    assert len(set(nearest.indices.tolist())) == 6, "a latent was drawn twice"


def test_codes_wait_for_the_steps_that_are_asked():
    book, z = Codebook(6, 3, **MOVES, wait=2).to(F64), latents(4, 3, 5, 5)
    for _ in range(2):
        seen(book, z)
        assert torch.equal(book(z).z, z)
    seen(book, z)
    assert not torch.equal(book(z).z, z)


def test_averages_follow_their_recursion(started):
    book, z = started
    counts, sums = book.counts.clone(), book.sums.clone()
    index = book(z).number.flatten()
    seen(book, z)
    for k in range(6):
        mine = rows(z)[index == k]
        counts[k] = 0.9 * counts[k] + 0.1 * len(mine)
        sums[k] = 0.9 * sums[k] + 0.1 * mine.sum(0)
    torch.testing.assert_close(book.counts, counts)
    torch.testing.assert_close(book.codes, sums / counts[:, None])


def test_codes_of_a_fixed_set_become_the_means_of_their_clusters(started):
    book, z = started
    for step in range(400):
        seen(book, z, step)
    index = book(z).number.flatten()
    means = torch.stack([rows(z)[index == k].mean(0) for k in range(6)])
    torch.testing.assert_close(book.codes, means)
    torch.testing.assert_close(book.counts, shares(index, 6) * len(index))


def test_a_dead_code_starts_anew_from_a_latent_and_is_used(started):
    book, z = started
    book.codes[2], book.sums[2], book.counts[2] = 1e3, 0, 0
    assert not (book(z).number == 2).any()
    seen(book, z, seed=5)
    away = (rows(z) - book.codes[2]).abs().amax(1)
    assert away.min() < 1e-12
    assert (book(z).number == 2).any()


def test_parts_of_a_batch_teach_as_the_whole():
    codec = VQAutoencoder(3, 4, **SMALL).double()
    parts = copy.deepcopy(codec)
    x, noise = latents(4, 3, 16, 16), latents(4, 4, 4, 4, seed=1)
    codec.learn({0: codec.passed(x, noise).observed}, Rank())
    parts.load_state_dict(codec.state_dict())
    codec.codebook.counts[3] = parts.codebook.counts[3] = 0
    codec.learn({0: codec.passed(x, noise).observed}, Rank())
    seen = {k: parts.passed(x[2 * k :][:2], noise[2 * k :][:2]).observed for k in (1, 0)}
    parts.learn(seen, Rank())
    torch.testing.assert_close(parts.codebook.counts, codec.codebook.counts)
    others = torch.arange(16) != 3
    torch.testing.assert_close(parts.codebook.codes[others], codec.codebook.codes[others])
    first = rows(parts.encode(x[:2]).mean)
    assert (first - parts.codebook.codes[3]).abs().amax(1).min() < 1e-12


def test_more_codes_than_latents_still_start_from_latents():
    book, z = Codebook(50, 3, **MOVES).to(F64), latents(1, 3, 2, 2)
    seen(book, z)
    assert (book.codes[:, None] - rows(z)).abs().amax(-1).min(1).values.max() < 1e-12
    seen(book, z, 1)
    assert book.codes.isfinite().all()


def test_the_gradient_goes_through_and_the_commitment_has_its_own():
    codec = VQAutoencoder(3, 4, **SMALL).double()
    x, noise = latents(2, 3, 16, 16), latents(2, 4, 4, 4, seed=1)
    codec.codebook.update(codec.passed(x, noise).observed)
    passed = codec.passed(x + 0.1, noise)
    v = latents(*passed.z.shape, seed=2)
    (straight,) = torch.autograd.grad((passed.z * v).sum(), codec.moments.bias, retain_graph=True)
    torch.testing.assert_close(straight, v.sum((0, 2, 3)))
    z = codec.encode(x + 0.1).mean
    codes = codec.codebook(z).z
    (pulled,) = torch.autograd.grad(passed.penalty.sum(), codec.moments.bias)
    torch.testing.assert_close(pulled, 2 * (z - codes).sum((0, 2, 3)))
    torch.testing.assert_close(passed.z, codes)
    torch.testing.assert_close(passed.output, codec.decode(z))
    assert (codec.encode(x).std == 0).all()


def test_a_copy_of_the_state_goes_on_alike():
    codec = VQAutoencoder(3, 4, **SMALL)
    x, noise = latents(2, 3, 16, 16).float(), latents(2, 4, 4, 4).float()
    codec.codebook.update(codec.passed(x, noise).observed)
    other = VQAutoencoder(3, 4, **SMALL)
    other.load_state_dict(copy.deepcopy(codec.state_dict()))
    for one in (codec, other):
        one.codebook.update(one.passed(x, noise).observed)
    assert all(
        torch.equal(a, b)
        for a, b in zip(codec.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("used", [1, 2, 7])
def test_perplexity_counts_codes_of_equal_use(used):
    share = shares(torch.arange(used).repeat(3), 10)
    torch.testing.assert_close(perplexity(share).item(), float(used))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="0 < decay < 1"):
        VQAutoencoder(3, decay=1.0)
    with pytest.raises(ValueError, match="0 < restart < 1"):
        Codebook(4, 2, decay=0.9, restart=0.0)
