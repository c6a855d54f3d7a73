"""Latents from a codebook: the nearest codes, and the averages that the codes follow."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from scoresde.arguments import Count, Natural, Open, check
from scoresde.latent.codec import wide


class Quantised(NamedTuple):
    """Codes (B, c, h, w) in the place of latents, and their numbers (B, h, w)."""

    z: Tensor
    number: Tensor


@final
class Codebook(nn.Module):
    """K codes e_k of c numbers, each the mean of the latents that it is nearest to.

    Moving averages over the batches count the n_k latents z of a code and add them up:

        N_k <- decay N_k + (1 - decay) n_k
        m_k <- decay m_k + (1 - decay) sum z
        e_k = m_k / N_k

    A code with N_k below ``restart`` times the mean of all codes becomes a latent that is drawn
    from the batch, and counts as the mean. All codes start so after ``wait`` batches, because N
    is 0; until then latents stay as they are. All this is buffers, and gradients do not reach it.
    Neural Discrete Representation Learning, arXiv 1711.00937, appendix A.1; Jukebox, arXiv
    2005.00341, section 3.1.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor
    waited: Tensor

    def __init__(
        self, codes: Count, channels: Count, *, decay: Open, restart: Open, wait: Natural = 0
    ) -> None:
        super().__init__()
        check(Codebook, locals())
        self.decay, self.restart, self.wait = decay, restart, wait
        self.register_buffer("waited", torch.zeros((), dtype=torch.int64))
        self.register_buffer("codes", torch.zeros(codes, channels))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, channels))

    @property
    def started(self) -> Tensor:
        """Whether there are codes, on the device."""
        return self.counts.sum() > 0

    def forward(self, z: Tensor) -> Quantised:
        """The nearest code of each latent, in float32 at least."""
        with torch.autocast(z.device.type, enabled=False):
            flat = wide(z.detach()).movedim(1, -1)
            codes = self.codes.to(flat)
            # |z - e|^2 = |z|^2 + |e|^2 - 2 <z, e>, about the centre, where less cancels.
            centre = codes.mean(0)
            away = codes - centre
            flat = flat - centre
            index = (away.square().sum(1) - 2 * flat @ away.T).argmin(-1)
        return Quantised(
            torch.where(self.started, codes[index].movedim(-1, 1), z.to(codes)), index
        )

    def observed(self, z: Tensor, index: Tensor, keys: Tensor) -> Tensor:
        """What a batch tells (K, 1 + 2 c): counts, sums, and latents to restart from.

        The latents with the largest of random ``keys`` (B, h, w) are drawn, without replacement.
        """
        with torch.autocast(z.device.type, enabled=False):
            rows = z.detach().movedim(1, -1).flatten(0, -2).to(self.sums)
            # A product with zeros and ones adds up in the same order on every device.
            belongs = index.flatten() == torch.arange(len(self.codes), device=z.device)[:, None]
            told = belongs.to(rows) @ torch.cat([torch.ones_like(rows[:, :1]), rows], 1)
        drawn = keys.flatten().argsort(descending=True)
        drawn = drawn.repeat(-(-len(self.codes) // len(drawn)))[: len(self.codes)]
        return torch.cat([told, rows[drawn]], 1)

    @torch.no_grad()
    def update(self, observed: Tensor) -> None:
        """Move the averages by what all of a batch tells, and restart codes hardly used."""
        if self.waited < self.wait:
            self.waited += 1
            return
        number, total, fresh = observed.split([1, *2 * [self.sums.shape[1]]], 1)
        dead = self.counts <= self.restart * self.counts.mean()
        self.counts.lerp_(number[:, 0], 1 - self.decay)
        self.sums.lerp_(total, 1 - self.decay)
        mean = self.counts.mean()
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.sums.copy_(torch.where(dead[:, None], mean * fresh, self.sums))
        self.codes.copy_(self.sums / self.counts[:, None])


def shares(index: Tensor, codes: int) -> Tensor:
    """The share of each code (K,) among numbers of codes."""
    counted = torch.bincount(index.flatten(), minlength=codes).double()
    return counted / counted.sum()


def perplexity(share: Tensor) -> Tensor:
    """exp(-sum p log p): the number of codes, if all were used equally, with this entropy."""
    found: Tensor = torch.special.entr(share).sum().exp()
    return found
