"""The training of autoencoders: one update per step, and the statistics of their latents.

All random numbers are functions of (seed, step), as in ``scoresde.training``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scoresde.arguments import Count, Fraction, Positive
from scoresde.data import Examples, Scaling, batch_indices
from scoresde.data.dataset import spread
from scoresde.latent.autoencoder import Autoencoder
from scoresde.latent.codec import Codec, wide
from scoresde.latent.discriminator import Adversarial, Adversary, play
from scoresde.latent.losses import Criterion
from scoresde.sde import sent
from scoresde.training import averages
from scoresde.training.batches import ahead, derived_seed
from scoresde.training.held_out import evaluating
from scoresde.training.loop import Metrics, begin, dropout_from, is_finite, summed
from scoresde.training.plan import Records, Updates
from scoresde.training.precision import autocast, lay_out
from scoresde.training.state import State

CHUNK = 256
"""Pictures that are encoded at a time."""
UNUSED = 1e-3
"""Deviation of a channel of latents below which it carries nothing."""


@dataclass(frozen=True, kw_only=True)
class CodecPlan(Updates):
    """All settings that determine the weights of a trained autoencoder.

    Args:
        ema: decay of the averaged weights; 0 does not average

    Raises ValueError for values out of range or that exclude each other.
    """

    batch: Count = 64
    lr: Positive = 1e-3
    ema: Fraction = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment is not None and self.augment.labels is not None:
            raise ValueError(
                "augment=edm tells the network what it did, which no autoencoder takes; take plain"
            )


@dataclass(frozen=True, kw_only=True)
class CodecRecords(Records):
    """The records and checkpoints of the training of an autoencoder.

    Args:
        sample_every: steps between two pictures of reconstructions
    """


class Pictures(NamedTuple):
    """A batch: pictures in model units, the same in units of the data, and noise of latents."""

    x: Tensor
    data: Tensor
    noise: Tensor

    def rows(self, rows: Tensor, device: torch.device) -> Pictures:
        """Some of them, on a device."""
        return Pictures(*(sent(part[rows], device) for part in self))


@dataclass
class CodecState(State[Autoencoder]):
    """The state of the training of an autoencoder; ``adversary`` is its discriminator."""

    adversary: Adversary | None = None

    @property
    def acting(self) -> Adversary | None:
        """The discriminator from its start on."""
        found = self.adversary
        return found if found is not None and self.step >= found.settings.start else None

    def others(self) -> list[Tensor]:
        """The gradients of the discriminator."""
        return [] if self.acting is None else self.acting.gradients()


def state_of(
    codec: Autoencoder, plan: CodecPlan, adversarial: Adversarial | None = None
) -> CodecState:
    """The state before the first update; the average equals the weights."""
    if plan.channels_last:
        lay_out(codec)
    decay = plan.weight_decay
    optimizer = plan.optimizer(codec.parameters(), lr=plan.lr, weight_decay=decay, fused=True)
    adversary = None
    if adversarial is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(plan.seed, 0, "discriminator"))
            net = adversarial.discriminator(codec.channels).to(codec.latents_mean.device)
        adversary = Adversary(adversarial, net, plan.lr)
    return CodecState(codec, averages.averaged(codec), optimizer, adversary=adversary)


def draw_pictures(
    plan: CodecPlan, split: Examples, scaling: Scaling, codec: Codec, step: int
) -> Pictures:
    """The batch of a step, drawn on the host so that it does not depend on the device."""
    data = split.take(batch_indices(len(split), plan.batch, plan.seed, step)).x
    if plan.augment is not None:
        own = torch.Generator().manual_seed(derived_seed(plan.seed, step, "augment"))
        data = plan.augment.on_levels(data, own)
    generator = torch.Generator().manual_seed(derived_seed(plan.seed, step, "latents"))
    shape = codec.latent_shape(tuple(data.shape[1:]))
    return Pictures(
        scaling.encode(data), data, torch.randn(len(data), *shape, generator=generator)
    )


def fit_codec(
    state: CodecState,
    plan: CodecPlan,
    criterion: Criterion,
    split: Examples,
    scaling: Scaling,
) -> Iterator[Metrics]:
    """Train ``state`` in place up to ``plan.steps`` updates, yielding after each one.

    Raises TrainingError before an update with a loss or gradient that is not finite.
    """

    def draw(step: int) -> Pictures:
        return draw_pictures(plan, split, scaling, state.model, step)

    for batch in ahead(draw, range(state.step, plan.steps), plan.prefetch):
        yield _updated(state, plan, criterion, batch)


def _updated(state: CodecState, plan: CodecPlan, criterion: Criterion, batch: Pictures) -> Metrics:
    rate, adversary = begin(state, plan), state.acting
    if adversary is not None:
        adversary.begin(rate)
    scale = state.scale.value if plan.precision == "fp16" else 1.0
    model, device = state.model, state.device
    model.train()
    losses, observed = [], dict[int, Tensor]()
    parts = defaultdict[str, Tensor](lambda: torch.zeros((), device=device))
    for number, rows in plan.rank.microbatches(plan.batch, plan.accumulate):
        x, data, noise = batch.rows(rows, device)
        with dropout_from(derived_seed(plan.seed, state.step, f"dropout {number}"), device):
            with autocast(plan.precision, device):
                passed = criterion.passed(model, x, noise)
            output = wide(passed.output)
            passed = passed._replace(output=output)
            terms = criterion.terms(passed, x, data)
        loss = criterion.total(terms, state.step)
        target = loss.sum() * (scale / plan.batch)
        if adversary is not None:
            with autocast(plan.precision, device):
                played = play(
                    adversary.net,
                    x,
                    output,
                    criterion.picture(output, x),
                    loss.mean(),
                    model.last,
                    kind=adversary.settings.loss,
                    weight=adversary.settings.weight,
                    scale=scale,
                )
            share = len(rows) / plan.batch
            target = target + (played.pull + played.loss) * (scale * share)
            for name, number_of in played.numbers().items():
                parts[name] = parts[name] + share * number_of
        target.backward()
        if passed.observed is not None:
            observed[number] = passed.observed
        losses.append(loss.detach())
        for name, term in terms.items():
            parts[f"loss_{name}"] = parts[f"loss_{name}"] + term.detach().sum() / plan.batch
    if scale != 1:
        for gradient in state.gradients():
            gradient.div_(scale)
    plan.rank.add(list(parts.values()))
    found = torch.cat(losses)
    loss, norm = summed(state, plan, found.sum())
    # A gradient of the discriminator that overflows spoils it for good.
    whole = norm if adversary is None else norm + nn.utils.get_total_norm(adversary.gradients())
    if is_finite(state, plan, loss, whole, rate):
        state.optimizer.step()
        if adversary is not None:
            adversary.optimizer.step()
            model.adversarial = state.ema.adversarial = True
        if observed:
            model.learn(observed, plan.rank)
    averages.update(state.ema, model, averages.warmed_up(plan.ema, state.step))
    state.step += 1
    return Metrics(state.step, loss, norm, rate, state.scale.skipped, None, found, parts)


class Latents(NamedTuple):
    """Mean and deviation (c,) of each channel of latents, and the deviation of their means.

    The law of a picture adds its noise: std^2 = of_means^2 + the mean square of the noise.
    """

    mean: Tensor
    std: Tensor
    of_means: Tensor


@torch.no_grad()
def latents_of(
    codec: Codec, split: Examples, scaling: Scaling, most: int, batch: int = CHUNK
) -> Latents:
    """The statistics of the latents of at most ``most`` pictures, evenly spread, in float64."""
    rows = spread(len(split), most)
    device = codec.latents_mean.device
    sums, count = torch.zeros(3, codec.latent_channels, dtype=torch.float64), 0
    with evaluating(codec):
        for some in rows.split(batch):
            x = scaling.encode(split.take(some).x)
            mean, std = (part.double().cpu() for part in codec.encode(sent(x, device)))
            by_channel = (mean, mean.square(), std.square())
            sums += torch.stack([part.transpose(0, 1).flatten(1).sum(1) for part in by_channel])
            count += mean.numel() // mean.shape[1]
    mean, square, noise = sums / count
    variance = (square - mean.square()).clamp_min(0)
    return Latents(mean, (variance + noise).sqrt(), variance.sqrt())


def standardise(
    codec: Codec, split: Examples, scaling: Scaling, most: int, batch: int = CHUNK
) -> Latents:
    """Measure ``latents_mean`` and ``latents_std`` of a codec and set them, in place."""
    found = latents_of(codec, split, scaling, most, batch)
    codec.latents_mean.copy_(found.mean)
    std = found.std.square().mean().sqrt().expand_as(found.std) if codec.isotropic else found.std
    codec.latents_std.copy_(torch.where(std < UNUSED, 1.0, std))
    return found
