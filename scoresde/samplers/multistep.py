"""Multistep methods: a polynomial through the evaluations of past steps, one call per step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, ClassVar, NamedTuple

from torch import Tensor

from scoresde.arguments import Range
from scoresde.denoiser import Denoiser
from scoresde.samplers.integrals import (
    BH1,
    BH2,
    EPS,
    EXACT,
    X0,
    FixedAdams,
    Interpolation,
    Point,
    Prediction,
    PublishedTaylor,
    Rule,
    Variable,
    Weights,
    advance,
    log_snr,
    ratio,
    regular,
)
from scoresde.samplers.kernels import Marginal, flow_step, marginal
from scoresde.samplers.noise import Noise
from scoresde.samplers.protocols import State
from scoresde.samplers.singlestep import LINEAR, THIRDS, TRAPEZOID, SingleStep
from scoresde.sde import SDE

History = tuple[Point, ...]  # newest first


@dataclass(frozen=True)
class Multistep:
    """Exponential Adams-Bashforth: extrapolates a prediction through up to ``points`` evaluations.

    Each step makes one call. Without ``start`` the number of evaluations grows from one, which
    limits the order to 2. With ``start``, that single step is the first one and costs one more
    call per inner node. Its last inner evaluation enters the history, so order points - 1 of
    ``start`` suffices for order ``points``. A step where x holds no signal or no noise is the DDIM
    step and clears the history.
    Raises ValueError unless 1 <= points <= 4 and ``start`` has the same prediction.
    """

    prediction: Prediction
    points: int
    rule: Rule = EXACT
    start: SingleStep | None = None
    nfe_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check(self.points, self.prediction, self.start)

    @property
    def order(self) -> int:
        return min(self.points, self.rule.cap, self.first_order + 1)

    @property
    def first_order(self) -> int:
        """Order of the first step, and of a walk that clears the history before every step."""
        return 1 if self.start is None else self.start.order

    @property
    def nfe_to_start(self) -> int:
        """Extra calls in the first step."""
        return 0 if self.start is None else self.start.nfe_per_step - 1

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = marginal(denoiser.sde, t), marginal(denoiser.sde, s)
        x0 = denoiser(x, t)
        if not regular(at, to):
            return flow_step(x, x0, at, to), None
        here = self.prediction.read(x, x0, at)
        if state is None and self.start is not None:
            return _begin(self.start, denoiser, x, s, at, to, here)
        points = (here, *(state or ()))[: self.points]
        weights = self.rule.weights(self.prediction, denoiser.sde, at, to, lams(points))
        return advance(self.prediction, x, at, to, points, weights), points[: self.points - 1]


class Pending(NamedTuple):
    """The step that UniPC corrects next: its start, its evaluations and their weights."""

    at: Marginal
    history: History
    weights: tuple[float, ...]


@dataclass(frozen=True)
class UniPC:
    """Predictor-corrector with one call per step, at the predicted state.

    The same evaluation corrects that state and predicts the next. The predictor combines
    ``points`` evaluations and the corrector one more, which gives order points + 1. The last step
    is not corrected. Without ``start`` the number of evaluations grows from one and the order is
    at most 3; ``start`` is as in Multistep.
    Raises ValueError unless 1 <= points <= 4 and ``start`` has the same prediction. UniPC,
    arXiv 2302.04867, algorithms 5-8.
    """

    prediction: Prediction
    points: int
    rule: Rule = BH2
    start: SingleStep | None = None
    nfe_per_step: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check(self.points, self.prediction, self.start)

    @property
    def order(self) -> int:
        started = 2 if self.start is None else self.start.order
        return min(self.points + 1, self.rule.cap, started + 1)

    @property
    def first_order(self) -> int:
        """Order of the first step, which is not corrected; see Multistep."""
        return 1 if self.start is None else self.start.order

    @property
    def nfe_to_start(self) -> int:
        """Extra calls in the first step."""
        return 0 if self.start is None else self.start.nfe_per_step - 1

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = marginal(denoiser.sde, t), marginal(denoiser.sde, s)
        x0 = denoiser(x, t)
        if not regular(at):
            return flow_step(x, x0, at, to), None
        here = self.prediction.read(x, x0, at)
        points: History = (here,) if state is None else (here, *state.history)
        changes = self._changes(denoiser.sde, at, here, state)
        if not regular(to):
            x = advance(self.prediction, x, at, at, points, changes) if changes else x
            return flow_step(x, x0, at, to), None
        if state is None and self.start is not None:
            end, history = _begin(self.start, denoiser, x, s, at, to, here)
            return end, Pending(at, history, ())  # already of high order: uncorrected
        history = points[: self.points]
        weights = self.rule.weights(self.prediction, denoiser.sde, at, to, lams(history))
        # Correction and prediction are linear in the same evaluations: one sum serves both.
        scale = self.prediction.unit(to) / self.prediction.unit(at)
        both = tuple(scale * c + w for c, w in zip_longest(changes, weights, fillvalue=0.0))
        end = advance(self.prediction, x, at, to, points[: len(both)], both)
        return end, Pending(at, history, weights)

    def _changes(self, sde: SDE, at: Marginal, here: Point, last: Pending | None) -> Weights:
        """Changes of the weights of (here, *history) that correct the last step.

        The corrector repeats the last step with ``here``, the evaluation at its end. Empty if
        there is no step to correct.
        """
        if last is None or not last.weights:
            return ()
        first, *older = last.history
        points = (first, here, *older)
        new = self.rule.weights(self.prediction, sde, last.at, at, lams(points))
        return (new[1], *(a - b for a, b in zip((new[0], *new[2:]), last.weights, strict=True)))


def _begin(
    start: SingleStep,
    denoiser: Denoiser,
    x: Tensor,
    s: Tensor,
    at: Marginal,
    to: Marginal,
    here: Point,
) -> tuple[Tensor, History]:
    """The first step, and its history: the last evaluation strictly inside it, and the first."""
    end, (_, *inner) = start.stages(denoiser, x, s, at, to, here)
    return end, (*(point for point in inner[-1:] if point.lam != to.lam), here)


def lams(points: History) -> tuple[float, ...]:
    """The lam of each evaluation."""
    return tuple(point.lam for point in points)


def _check(points: int, prediction: Prediction, start: SingleStep | None) -> None:
    if points not in (1, 2, 3, 4):
        raise ValueError(f"multistep methods take 1 to 4 readings, got {points}")
    if start is not None and start.prediction != prediction:
        raise ValueError(
            f"the start must read what the method reads, {prediction}, got {start.prediction}"
        )


# --- published names -------------------------------------------------------------------------


def eab(
    prediction: Prediction = X0,
    order: Annotated[int, Range(ge=1, le=4)] = 3,
    variable: Variable = log_snr,
    ramp: bool = False,
) -> Multistep:
    """Exponential Adams-Bashforth: exact integration of the polynomial through past evaluations.

    Orders 3 and 4 make 1 and 2 extra calls in the first step. ``ramp`` starts at order 1 instead,
    without extra calls; the overall order is then 2. Raises ValueError unless 1 <= order <= 4.
    Fast Sampling with Exponential Integrator, arXiv 2204.13902, eq. 14-15.

    Args:
        prediction: quantity that is extrapolated; residual is the output of EDM's network for data
            of standard deviation 0.5.
        order: order of the method, and number of network evaluations that a step combines.
        variable: variable of the polynomial: log_snr, ratio (sigma / alpha), share (sigma / (alpha
            + sigma)) or clock (t).
        ramp: start at order 1 without extra calls; the method is then of second order at most.
    """
    rule = Interpolation(variable)
    return Multistep(prediction, order, rule, None if ramp else _start(prediction, order, rule))


def lms(order: Annotated[int, Range(ge=1, le=4)] = 4, ramp: bool = False) -> Multistep:
    """The linear multistep sampler of k-diffusion: Adams-Bashforth in sigma / alpha.

    Weights are exact. ``ramp`` starts as k-diffusion does, which limits the order to 2; the
    default start is that of ``eab``.

    Args:
        order: order of the method, and number of network evaluations that a step combines.
        ramp: start at order 1 without extra calls; the method is then of second order at most.
    """
    return eab(EPS, order, ratio, ramp)


def deis(
    order: Annotated[int, Range(ge=1, le=4)] = 3, variable: Variable = log_snr, ramp: bool = False
) -> Multistep:
    """DEIS: extrapolates the noise as a polynomial in log_snr (log rho), ratio (rho) or clock (t).

    Its arguments and first step are those of ``eab``. Fast Sampling with Exponential Integrator,
    arXiv 2204.13902, section 3.

    Args:
        order: order of the method, and number of network evaluations that a step combines.
        variable: variable of the polynomial: log_snr, ratio (sigma / alpha), share (sigma / (alpha
            + sigma)) or clock (t).
        ramp: start at order 1 without extra calls; the method is then of second order at most.
    """
    return eab(EPS, order, variable, ramp)


def dpm_solver(
    order: Annotated[int, Range(ge=1, le=3)] = 3,
    prediction: Prediction = EPS,
    published: bool = False,
) -> Multistep:
    """Multistep DPM-Solver, in the noise form (eps) or as DPM-Solver++ (x0).

    The expansions of the paper equal the exact integral, so this is ``eab`` in lam. ``published``
    uses the formulas and the start of the released code, of second order at most. Raises
    ValueError unless order is 1, 2 or 3. DPM-Solver++, arXiv 2211.01095, algorithm 2.

    Args:
        order: order of the method.
        prediction: quantity that is extrapolated; residual is the output of EDM's network for data
            of standard deviation 0.5.
        published: use the formulas of the released code.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"multistep DPM-Solver has orders 1, 2 and 3, got order={order}")
    return Multistep(prediction, order, PublishedTaylor()) if published else eab(prediction, order)


def dpmpp_2m(published: bool = True) -> Multistep:
    """DPM-Solver++(2M), a second-order multistep method.

    ``published`` uses the weights (1 + h / 2h', -h / 2h'). ``published=False`` integrates the line
    through the two evaluations exactly. Both are of second order.

    Args:
        published: use the formulas of the released code.
    """
    return dpm_solver(2, X0, published)


def dpmpp_3m(published: bool = False) -> Multistep:
    """DPM-Solver++(3M), a third-order multistep method with one extra call in the first step.

    ``published`` omits the factor 2 of the third term, as all released codes do, and is of
    second order at most.

    Args:
        published: use the formulas of the released code.
    """
    return dpm_solver(3, X0, published)


def unipc(
    order: Annotated[int, Range(ge=1, le=4)] = 3,
    prediction: Prediction = X0,
    exponential: bool = True,
    published: bool = False,
) -> UniPC:
    """UniPC: a multistep predictor-corrector that reuses the evaluation of the corrector.

    Its global order is order + 1, at most 4. ``exponential`` uses B = e^h - 1 (bh2), else B = h
    (bh1). Orders 3 and 4 make 2 extra calls in the first step, unless ``published``, which starts
    from one evaluation. Raises ValueError unless 1 <= order <= 4. UniPC, arXiv 2302.04867,
    algorithms 5-8.

    Args:
        order: number of network evaluations that a step combines, one less than its order.
        prediction: quantity that is extrapolated; residual is the output of EDM's network for data
            of standard deviation 0.5.
        exponential: use B = e^h - 1 (bh2) instead of B = h (bh1).
        published: use the formulas of the released code.
    """
    start = None if published or order < 3 else SingleStep(prediction, THIRDS, EXACT)
    return UniPC(prediction, order, BH2 if exponential else BH1, start)


def ipndm(order: Annotated[int, Range(ge=1, le=4)] = 4) -> Multistep:
    """Improved PNDM: Adams-Bashforth with the weights of equal steps.

    It starts at order 1 and is of second order at most on grids that are not equal in sigma /
    alpha. Raises ValueError unless 1 <= order <= 4. Fast Sampling with Exponential Integrator,
    arXiv 2204.13902, appendix H.

    Args:
        order: order of the method, and number of network evaluations that a step combines.
    """
    return Multistep(EPS, order, FixedAdams())


def ipndm_v(order: Annotated[int, Range(ge=1, le=4)] = 4, ramp: bool = False) -> Multistep:
    """Improved PNDM with weights for unequal steps of sigma / alpha; the same method as lms.

    Args:
        order: order of the method, and number of network evaluations that a step combines.
        ramp: start at order 1 without extra calls; the method is then of second order at most.
    """
    return lms(order, ramp)


def plms(order: Annotated[int, Range(ge=1, le=4)] = 4) -> Multistep:
    """Pseudo linear multistep: ipndm after a first step of Heun, which costs one extra call.

    Raises ValueError unless 1 <= order <= 4. Pseudo Numerical Methods for Diffusion Models, arXiv
    2202.09778, algorithm 2 with the start of the latent-diffusion code.

    Args:
        order: order of the method, and number of network evaluations that a step combines.
    """
    return Multistep(EPS, order, FixedAdams(), SingleStep(EPS, TRAPEZOID, Interpolation(ratio)))


def _start(prediction: Prediction, order: int, rule: Rule) -> SingleStep | None:
    """The cheapest first step that preserves the order of the method."""
    if order < 3:
        return None
    return SingleStep(prediction, LINEAR if order == 3 else THIRDS, rule)
