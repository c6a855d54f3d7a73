"""Classifier-free guidance, its variants, and sums of conditions.

    c = u + sum_i w_i (c_i - u),        x0_hat = u + s (c - u)

u is the prediction with nothing said, or with what is said against, and c_i that of a condition.
The scale s has one meaning everywhere: 1 is the plain conditional, 0 the unconditional.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scoresde.arguments import Positive, Probability, check
from scoresde.denoiser import Denoiser
from scoresde.parameterization import Bound, ScoreModel, both
from scoresde.sde import FAINTEST, SDE, match

Said = Mapping[str, Any]
Scale = float | Callable[[Tensor], Tensor | float]
ALL = (-math.inf, math.inf)  # times


def free(
    model: ScoreModel,
    cond: Said | Sequence[tuple[Said, float]] | None,
    negative: Said | None = None,
    scale: Scale = 1.0,
    *,
    interval: tuple[float, float] | None = None,
    rescale: Probability = 0.0,
    parallel: Probability = 1.0,
    norm: Positive = math.inf,
    weaker: ScoreModel | Denoiser | None = None,
) -> Denoiser:
    """Guidance by the model itself: x0_hat = u + s (c - u), one network call a step.

    s = 1 is the plain conditional and s = 0 the unconditional; each costs a call of the batch
    itself, and is the model's own denoiser if nothing else is asked. Any other s is a call of the
    batch once for u and once for each condition. Raises ValueError for what the model does not
    take, for a condition that it never learned to do without, and for settings without effect.

    Classifier-Free Diffusion Guidance, arXiv 2207.12598, eq. 6, where w = s - 1. The momentum of
    projected guidance is left out: it is a memory of earlier steps, and a denoiser has none.

    Args:
        model: the model, trained with dropout of what is said.
        cond: what is said, by name, or several of them, each with its weight; None says nothing.
        negative: what is said against, in the place of u; what it leaves out is not said.
        scale: s, or a function of sigma / alpha, elementwise.
        interval: lowest and highest sigma / alpha of guidance; elsewhere s = 1. Applying Guidance
            in a Limited Interval Improves Sample and Distribution Quality, arXiv 2404.07724.
        rescale: share of x0_hat that gets the standard deviation of c, sample by sample. Common
            Diffusion Noise Schedules, arXiv 2305.08891, eq. 15-16, there of the network's output.
        parallel: share kept of the part of c - u along c, sample by sample; this part makes
            colours too strong. Eliminating Oversaturation and Artifacts of High Guidance Scales,
            arXiv 2410.02416 (APG), its eta.
        norm: largest norm of c - u, sample by sample; r of the same.
        weaker: a weaker model of the same process in the place of u, told what is said, or its
            denoiser. Guiding a Diffusion Model with a Bad Version of Itself, arXiv 2406.02507.
    """
    check(free, {"rescale": rescale, "parallel": parallel, "norm": norm})
    sde = model.sde
    _check_scale(scale)
    scale = scale if callable(scale) else float(scale)
    times = ALL if interval is None else _times(sde, interval)
    several = not (cond is None or isinstance(cond, Mapping))
    said: Any = cond if several else [(cond, 1.0)]
    if weaker is not None:
        if negative is not None:
            raise ValueError("negative: the weaker model stands in its place; give one of them")
        if several:
            raise ValueError("cond: a weaker model is told one condition; leave out the weights")
        if (theirs := weaker.sde) != sde:
            raise ValueError(f"weaker: need a model of the process {sde}, got one of {theirs}")
    if scale != 1 or math.fsum(w for _, w in said) != 1:
        _require_learned(model, [each for each, _ in said], negative, weaker is None)
    conds = [(_denoiser(model, each, "cond"), w) for each, w in said]
    if isinstance(weaker, ScoreModel):
        uncond = _denoiser(weaker, said[0][0], "weaker")
    else:
        uncond = _denoiser(model, negative, "negative") if weaker is None else weaker
    plain = combine(uncond, conds)
    used = tuple((denoiser, float(weight)) for denoiser, weight in conds if weight)
    guided = Guided(uncond, used, scale, times, float(rescale), float(parallel), float(norm))
    if scale == 1 or not used:
        return plain
    if scale == 0 and guided.linear and times == ALL:
        return uncond
    return replace(plain, predict=guided, normalised=False)


def combine(uncond: Denoiser, conds: Sequence[tuple[Denoiser, float]]) -> Denoiser:
    """The composition u + sum_i w_i (c_i - u) of denoisers of one process.

    With w_i = 1 it is the score of p(x) prod_i p(x | y_i) / p(x), of conditions that are
    independent given x_t. Denoisers of one model share a network call. The reverse variance is
    that of the first. Raises ValueError for denoisers of different processes or batches, and for
    weights that are not finite. Compositional Visual Generation with Composable Diffusion Models,
    arXiv 2206.01714, eq. 11.
    """
    batch = uncond.batch
    for denoiser, weight in conds:
        if denoiser.sde != uncond.sde:
            raise ValueError(f"combine: need one process, got {uncond.sde} and {denoiser.sde}")
        if not math.isfinite(weight):
            raise ValueError(f"combine: need finite weights, got {weight}")
        if None not in (batch, denoiser.batch) and batch != denoiser.batch:
            raise ValueError(
                f"conditions of {batch} samples beside conditions of {denoiser.batch}; give one "
                "for all, or one of each"
            )
        batch = denoiser.batch if batch is None else batch
    used = [(denoiser, float(weight)) for denoiser, weight in conds if weight]
    if not used:
        return replace(uncond, batch=batch)
    first = used[0][0]
    if len(used) == 1 and used[0][1] == 1:
        return replace(first, batch=batch)
    return replace(first, predict=Guided(uncond, tuple(used)), normalised=False, batch=batch)


@dataclass(frozen=True)
class Guided:
    """The prediction of ``free`` and ``combine``; it calls what its scale needs, and no more."""

    uncond: Denoiser
    conds: tuple[tuple[Denoiser, float], ...]
    scale: Scale = 1.0
    times: tuple[float, float] = ALL
    rescale: float = 0.0
    parallel: float = 1.0
    norm: float = math.inf

    @property
    def linear(self) -> bool:
        """Whether x0_hat is a sum of predictions."""
        return self.rescale == 0 and self.parallel == 1 and self.norm == math.inf

    @property
    def variance_mix(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """That of the first condition."""
        return self.conds[0][0].variance_mix

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._evaluated(x, t)[0]

    def both(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """x0_hat and the mix of the reverse variance of the first condition, in one call."""
        value, mix = self._evaluated(x, t)
        own = self.variance_mix
        return value, own(x, t) if mix is None and own is not None else mix

    def _evaluated(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        scale, rest = self._scale_at(t), 1 - math.fsum([w for _, w in self.conds])
        number = isinstance(scale, float)
        if number and scale == 0 and self.linear:
            return self.uncond.predict(x, t), None
        alone = number and scale == 1 and rest == 0
        parts = [*self.conds] if alone else [(self.uncond, rest), *self.conds]
        found = together([denoiser for denoiser, _ in parts], x, t)
        mix = found[len(parts) - len(self.conds)][1]
        weighted = ((w, x0) for (_, w), (x0, _) in zip(parts, found, strict=True) if w)
        first, *others = (x0 if w == 1 else w * x0 for w, x0 in weighted)
        c = sum(others, first)
        if number and scale == 1:
            return c, mix
        u = found[0][0]
        if isinstance(scale, float) and self.linear:
            return torch.lerp(u, c, scale), mix
        gain = scale - 1 if isinstance(scale, float) else match(scale, x) - 1
        guided = c + gain * self._projected(c - u, c)
        if self.rescale == 0:
            return guided, mix
        wanted, own = (
            x0.std(tuple(range(1, x.ndim)), correction=0, keepdim=True) for x0 in (c, guided)
        )
        factor = (wanted / own).nan_to_num(1.0, 1.0)  # nothing varies
        return torch.lerp(guided, factor * guided, self.rescale), mix

    def among(self, rows: Tensor) -> Guided:
        """The prediction for some samples of the batch."""

        def some(denoiser: Denoiser) -> Denoiser:
            return denoiser.among(rows, denoiser.batch or 0)

        conds = tuple((some(denoiser), weight) for denoiser, weight in self.conds)
        return replace(self, uncond=some(self.uncond), conds=conds)

    def _scale_at(self, t: Tensor) -> float | Tensor:
        """s: a number if it is known on the host, else a tensor, 0-dim or (B,)."""
        # In compiled code a time is an input: one graph for all of them.
        known = t.ndim == 0 and t.device.type == "cpu" and not torch.compiler.is_compiling()
        low, high = self.times
        if self.times == ALL and not callable(self.scale):
            return self.scale
        if known and not low <= float(t) <= high:
            return 1.0
        scale: Any = self.scale
        if callable(scale):
            lam = self.uncond.sde.lam(t.double()).clamp(min=FAINTEST)
            scale = scale(torch.exp(-lam))
        if known:
            return float(scale)
        t = t.double()
        found: Tensor = scale if isinstance(scale, Tensor) else torch.full_like(t, scale)
        return torch.where((t >= low) & (t <= high), found, 1.0)

    def _projected(self, gap: Tensor, c: Tensor) -> Tensor:
        """c - u of limited norm, with a share of its part along c."""
        over = tuple(range(1, c.ndim))
        if self.norm < math.inf:
            size = torch.linalg.vector_norm(gap, dim=over, keepdim=True)
            gap = gap * (self.norm / size).clamp(max=1)
        if self.parallel < 1:
            square = c.square().sum(over, keepdim=True).clamp(min=torch.finfo(c.dtype).tiny)
            along = (gap * c).sum(over, keepdim=True) / square
            gap = gap - (1 - self.parallel) * along * c
        return gap


def together(
    denoisers: Sequence[Denoiser], x: Tensor, t: Tensor
) -> list[tuple[Tensor, Tensor | None]]:
    """x0_hat of each, and the mix of a learned variance where the same call gives it.

    There is one network call for all that are bound to one model.
    """
    found: dict[int, tuple[Tensor, Tensor | None]] = {}
    for i, denoiser in enumerate(denoisers):
        if i in found:
            continue
        if not isinstance(denoiser.predict, Bound):
            found[i] = denoiser.predict(x, t), None
            continue
        model, alike = denoiser.predict.model, {}
        for j, other in enumerate(denoisers):
            if isinstance(other.predict, Bound) and other.predict.model is model:
                alike[j] = other.predict
        found |= dict(zip(alike, both(list(alike.values()), x, t), strict=True))
    return [found[i] for i in range(len(denoisers))]


# What is said ------------------------------------------------------------------------------------


def _denoiser(model: ScoreModel, said: Said | None, name: str) -> Denoiser:
    try:
        return model.denoiser(**(said or {}))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _times(sde: SDE, interval: Sequence[float]) -> tuple[float, float]:
    """The times of an interval of sigma / alpha; infinite where it reaches beyond t_max."""
    low, high = interval if len(interval) == 2 else (math.nan, math.nan)
    if not 0 <= low < high:
        raise ValueError(f"interval: need 0 <= low < high in sigma / alpha, got {interval}")
    lams = -torch.tensor([low, high], dtype=torch.float64).log()
    end = sde.lam(torch.tensor(sde.t_max, dtype=torch.float64))
    times = sde.time(lams).masked_fill(lams <= end, math.inf)
    return float(times[0]) if low else -math.inf, float(times[1])


def _names(said: Said | None) -> frozenset[str]:
    return frozenset(name for name, value in (said or {}).items() if value is not None)


def _check_scale(scale: Scale) -> None:
    """Raise ValueError for a scale that is not finite, or a function that is not elementwise."""
    if not callable(scale):
        if isinstance(scale, str) or not hasattr(scale, "__float__") or not math.isfinite(scale):
            raise ValueError(f"scale: need a finite number, got {scale!r}")
        return
    ratios = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    for ratio in (ratios[1], ratios):
        found = torch.as_tensor(scale(ratio))
        if found.shape not in ((), ratio.shape) or not bool(found.isfinite().all()):
            raise ValueError(
                "scale: need a function of sigma / alpha, elementwise and finite, got "
                f"{found.tolist()} for {ratio.tolist()}"
            )


def _require_learned(
    model: ScoreModel, said: Sequence[Said | None], negative: Said | None, itself: bool
) -> None:
    """Raise ValueError for guidance without effect, or against what was never trained."""
    spoken = [*map(_names, said), *([_names(negative)] if itself else [])]
    if itself and not any(spoken):
        raise ValueError("scale: guidance needs a condition; give cond, or leave the scale at 1")
    dropout = {name: condition.dropout for name, condition in model.conditions.items()}
    if getattr(model.config, "conditional", False):
        dropout["label"] = model.config.train.label_dropout
    if model.needs_label:
        dropout["label"] = 0
    for name, fraction in dropout.items():
        if fraction == 0 and not all(name in names for names in spoken):
            raise ValueError(
                f"{name}: this model was trained without dropout of it and cannot do without; say "
                "it in negative as well, or train with dropout"
            )
