"""Whether the posteriors of a method are calibrated, by measurements of known examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from scoresde.arguments import Count, Natural, NonNegative, Range, check
from scoresde.data import Scaling
from scoresde.data import examples as examples_of
from scoresde.denoiser import Denoiser
from scoresde.evaluation.calibration import (
    Calibration,
    fair_crps,
    fair_energy,
    fractional_ranks,
    linear_quantities,
)
from scoresde.parameterization import ScoreModel
from scoresde.posterior import (
    Blur,
    Downsample,
    Grey,
    LinearOperator,
    Mask,
    Method,
    Operator,
)
from scoresde.progress import Progress, silent
from scoresde.runs.draw import DEFAULT_NUM
from scoresde.runs.edit import BLUR, FACTOR, require_own
from scoresde.runs.edit_pictures import repainted
from scoresde.runs.infer import NFE, chosen_method, infer
from scoresde.sde import floating
from scoresde.training.batches import derived_seed

EXAMPLES = 100
PROBES = 64
MOST_PRIOR = 256
"""Draws of the prior that are scored, the first ones."""


def calibrate(
    denoiser: Denoiser | ScoreModel,
    operator: Operator,
    x0: Any,
    noise: NonNegative,
    *,
    method: str | Method | None = None,
    num: Annotated[int, Range(ge=2)] = DEFAULT_NUM,
    nfe: Count = NFE,
    examples: Annotated[int, Range(ge=2)] = EXAMPLES,
    prior: Tensor | None = None,
    quantities: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    label: Any = None,
    seed: Natural = 0,
    particles: int | None = None,
    batch: Count = 64,
    progress: Progress = silent,
    stopping: Callable[[], bool] = lambda: False,
) -> Calibration:
    """Compare truths x0 with draws from p(x0 | y), y = A(x0) + noise eps, as ``infer`` makes them.

    The truths must come from the law that the model has learned, and not be its training
    examples. Units are those of ``infer``; scores and default quantities are in model units.

    Args:
        denoiser: denoiser, with its conditions and guidance, or trained model.
        operator: what is measured, A; see ``scoresde.posterior``.
        x0: held-out examples (K, ...), or a function (n, generator) that draws n of them, such as
            ``testing.Mixture.sample``.
        noise: standard deviation of the error of every number of y.
        method: method or a name in ``registry.POSTERIORS``, by default that of ``infer``.
        num: number of posterior draws of each example.
        nfe: most network calls a draw.
        examples: number of examples, the first ones of x0.
        prior: draws of the prior (M, ...), for the skill over them.
        quantities: functions of samples (N, ...) that give (N,), by name, which are ranked; by
            default coordinates, random directions, and the mean of pictures.
        label: class of the examples, or of each (K,), for a ScoreModel.
        seed: seed of the measurements and of the draws.
        particles: size of the population, as in ``infer``.
        batch: draws made at a time; it does not change them.
        progress: shows how many examples are done.
        stopping: asked before every network call; True stops there, and the examples that are
            done are returned.

    Raises ValueError for arguments that do not fit, RuntimeError for draws that are not finite
    and if fewer than two examples are done.
    """
    check(calibrate, locals())
    model = denoiser if isinstance(denoiser, ScoreModel) else None
    chosen = chosen_method(method, model)
    generator = torch.Generator().manual_seed(derived_seed(seed, 0, "calibrate"))
    data = None if model is None else model.data
    scaling = None if data is None else data.scaling
    given = x0(examples, generator) if callable(x0) else x0
    if data is None:
        given = floating(torch.as_tensor(given))
    else:
        given = examples_of(given, tuple(data.shape), data.scaling).x
    if given.ndim < 2 or len(given) < 2 or not bool(given.isfinite().all()):
        raise ValueError(f"x0: need 2 or more finite examples (K, ...), got {tuple(given.shape)}")
    labels = _labels(label, len(given))
    truth = given[:examples]
    n, shape = len(truth), tuple(truth.shape[1:])
    operator.outputs(shape)  # the message of one that does not fit
    value = operator(floating(truth))
    error = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    y = operator.project(value + noise * error.to(value)).detach()
    trial = _Trial.of(operator, y, noise, shape, scaling, quantities, prior, generator)
    truth, place = truth.cpu(), y.cpu()
    trial.ranked(truth[:2])  # raises early if a quantity does not fit
    group = 1 if chosen.population else max(1, batch // num)
    seeds = range(seed * n * num, (seed + 1) * n * num)
    scores: list[dict[str, Tensor]] = []
    calls = 0.0
    with progress(n, "examples") as advance:
        for first in range(0, n, group):
            some = slice(first, min(first + group, n))
            each = some.stop - first
            drawn = infer(
                denoiser,
                operator,
                y[first] if chosen.population else y[some].repeat_interleave(num, 0),
                noise,
                method=chosen,
                nfe=nfe,
                seeds=seeds[first * num : some.stop * num],
                particles=particles,
                shape=shape,
                label=labels[some] if isinstance(labels, list) else labels,
                batch=batch,
                look=lambda _, call: advance(0, f"call {call.number}"),
                stopping=stopping,
            )
            done = (len(drawn) - drawn.unfinished) // num
            for k, x in enumerate(drawn.x[: done * num].reshape(done, num, *shape), first):
                scores.append(trial.scores(x, truth[k : k + 1], place[k]))
            calls += drawn.nfe * done
            advance(done)
            if done < each:
                break
    if len(scores) < 2:
        raise RuntimeError(f"{len(scores)} of {n} examples are done; at least 2 are needed")
    columns = {name: torch.stack([row[name] for row in scores]) for name in scores[0]}
    return Calibration(names=trial.names, draws=num, asked=n, nfe=calls / len(scores), **columns)


@dataclass(frozen=True, eq=False)
class _Trial:
    """How the draws of an example are scored; ``measured`` is the count of numbers in y."""

    operator: Operator
    noise: float
    measured: float
    scaling: Scaling | None
    names: tuple[str, ...]
    functions: Sequence[Callable[[Tensor], Tensor]]
    weights: Tensor
    prior: Tensor | None
    generator: torch.Generator

    @staticmethod
    def of(
        operator: Operator,
        y: Tensor,
        noise: float,
        shape: tuple[int, ...],
        scaling: Scaling | None,
        quantities: Mapping[str, Callable[[Tensor], Tensor]] | None,
        prior: Any,
        generator: torch.Generator,
    ) -> _Trial:
        # The trace of the projection; signs give it exactly where that is a mask.
        signs = torch.randint(2, (PROBES, *y.shape[1:]), generator=generator).to(y) * 2 - 1
        measured = float((signs * operator.project(signs)).sum()) / PROBES
        hidden = None
        if isinstance(operator, LinearOperator):
            hidden = operator.adjoint(torch.randn(y[:1].shape, generator=generator).to(y))[0] == 0
        names, weights = linear_quantities(shape, hidden)
        functions = () if quantities is None else tuple(quantities.values())
        names = names if quantities is None else tuple(quantities)
        found = _Trial(
            operator, noise, measured, scaling, names, functions, weights, None, generator
        )
        if prior is None:
            return found
        prior = torch.as_tensor(prior)
        if tuple(prior.shape[1:]) != shape or len(prior) < 2:
            raise ValueError(f"prior: need samples of shape {shape}, got {tuple(prior.shape)}")
        return replace(found, prior=found.units(prior[:MOST_PRIOR].cpu()))

    def units(self, x: Tensor) -> Tensor:
        """Samples (N, ...) in model units (N, D), in float64."""
        return (x if self.scaling is None else self.scaling.encode(x)).flatten(1).double()

    def ranked(self, x: Tensor) -> Tensor:
        """The quantities (N, Q) of samples."""
        if not self.functions:
            return self.units(x) @ self.weights.T
        found = [f(x) for f in self.functions]
        for name, part in zip(self.names, found, strict=True):
            if tuple(part.shape) != (len(x),):
                raise ValueError(
                    f"quantities: {name} gives {tuple(part.shape)} for {len(x)} samples; "
                    "need one number for each"
                )
        return torch.stack(found, 1).double()

    def scores(self, x: Tensor, truth: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The fields of a Calibration for the draws ``x`` (L, ...) of one example (1, ...)."""
        draws, target = self.units(x), self.units(truth)[0]
        found = {
            "ranks": fractional_ranks(self.ranked(x), self.ranked(truth)[0], self.generator),
            "crps": fair_crps(draws, target).mean(),
            "energy": fair_energy(draws, target),
        }
        if self.prior is not None:
            found["prior_crps"] = fair_crps(self.prior, target).mean()
        if self.noise > 0:
            gap = self.operator.project(self.operator(floating(x)) - y) / self.noise
            found["residual"] = gap.detach().double().square().sum() / (len(x) * self.measured)
        return found


def picture_operator(
    model: ScoreModel,
    operation: str,
    *,
    mask: Any = None,
    box: Sequence[int] | None = None,
    factor: int | None = None,
    blur: float | None = None,
) -> LinearOperator:
    """What is known of a picture in an operation of ``edit``, with its arguments.

    Raises ValueError for arguments of another operation, and those that do not fit the model.
    """
    given = {"mask": mask, "box": box, "factor": factor, "blur": blur}
    require_own(operation, [name for name, value in given.items() if value is not None])
    shape = () if model.data is None else tuple(model.data.shape)
    if len(shape) != 3:
        raise ValueError(f"operator: {operation} needs a model of pictures")
    found: LinearOperator
    if operation == "inpaint":
        found = Mask(~repainted(torch.empty(1, *shape), model, mask, box)[0])
    elif operation == "colourise":
        found = Grey()
    elif operation == "superres":
        found = Downsample(factor or FACTOR)
    else:
        found = Blur(blur or BLUR)
    found.outputs(shape)  # raises early if it does not fit
    return found


def _labels(label: Any, n: int) -> Any:
    """The label of all n examples, or a list of one for each."""
    if label is None or isinstance(label, str) or not hasattr(label, "__len__"):
        return label
    found = label.tolist() if isinstance(label, Tensor) else list(label)
    if len(found) != n:
        raise ValueError(f"label: {n} examples but {len(found)} labels; give one for each")
    return found
