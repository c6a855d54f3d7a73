"""Single steps of higher order: the denoiser is called again inside the step.

A scheme places the calls and says which readings each of them uses; with a rule of ``integrals``
and a choice of what is integrated, it is a Runge-Kutta method, classical or exponential.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from scoresde.arguments import Range
from scoresde.denoiser import Denoiser
from scoresde.samplers.integrals import (
    EPS,
    EXACT,
    X0,
    Point,
    Prediction,
    Rule,
    advance,
    regular,
)
from scoresde.samplers.kernels import Marginal, flow_step, marginal, time_at
from scoresde.samplers.noise import Noise
from scoresde.samplers.protocols import State
from scoresde.sde import SDE


@dataclass(frozen=True)
class Scheme:
    """Inner calls at fractions ``nodes`` of the step in lam; ``uses[i]`` lists the readings that
    stage i integrates (0 is the start, j the j-th inner call), the last entry those of the end.
    """

    order: int
    nodes: tuple[float, ...]
    uses: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        known = all(max(used) <= i for i, used in enumerate(self.uses))
        if len(self.uses) != len(self.nodes) + 1 or not known:
            raise ValueError(
                f"a scheme of {len(self.nodes)} inner calls lists the readings of each and of "
                f"the end, from earlier calls, got {self.uses}"
            )


ONE_CALL = Scheme(1, (), ((0,),))
MIDPOINT = Scheme(2, (0.5,), ((0,), (1,)))
LINEAR = Scheme(2, (0.5,), ((0,), (0, 1)))
TRAPEZOID = Scheme(2, (1.0,), ((0,), (0, 1)))
THIRDS = Scheme(3, (1 / 3, 2 / 3), ((0,), (0, 1), (0, 2)))


@dataclass(frozen=True)
class SingleStep:
    """A scheme on the probability flow, in the frame of a prediction.

    A step that starts or ends at alpha = 0 or sigma = 0 is the DDIM step, with one call.
    """

    prediction: Prediction
    scheme: Scheme
    rule: Rule = EXACT

    @property
    def order(self) -> int:
        return self.scheme.order

    @property
    def nfe_per_step(self) -> int:
        return len(self.scheme.uses)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        at, to = marginal(denoiser.sde, t), marginal(denoiser.sde, s)
        x0 = denoiser(x, t)
        if not regular(at, to):
            return flow_step(x, x0, at, to), None
        here = self.prediction.read(x, x0, at)
        return self.stages(denoiser, x, s, at, to, here)[0], None

    def stages(
        self, denoiser: Denoiser, x: Tensor, s: Tensor, at: Marginal, to: Marginal, here: Point
    ) -> tuple[Tensor, list[Point]]:
        """The end of the step that starts with the reading ``here``, and all its readings."""
        points, nodes = [here], self.scheme.nodes
        for node, used in zip(nodes, self.scheme.uses[:-1], strict=True):
            u, stage = _inner(denoiser.sde, at, to, s, node)
            y = self._reach(denoiser, x, at, stage, [points[j] for j in used])
            points.append(self.prediction.read(y, denoiser(y, u), stage))
        return self._reach(denoiser, x, at, to, [points[j] for j in self.scheme.uses[-1]]), points

    def _reach(
        self, denoiser: Denoiser, x: Tensor, at: Marginal, to: Marginal, points: list[Point]
    ) -> Tensor:
        lams = tuple(point.lam for point in points)
        weights = self.rule.weights(self.prediction, denoiser.sde, at, to, lams)
        return advance(self.prediction, x, at, to, points, weights)


@dataclass(frozen=True)
class StepSequence:
    """One step after another, each for its own interval; a longer grid goes on with the last.

    ``order`` is that of the bulk, or one more than that of the weakest of a few others;
    ``nfe_per_step`` is the bulk's, ``nfe`` what a grid of ``len(steps)`` steps costs.
    """

    steps: tuple[SingleStep, ...]

    @property
    def order(self) -> int:
        orders = [step.order for step in self.steps]
        return min(max(orders), min(orders) + 1)

    @property
    def nfe_per_step(self) -> int:
        return max(step.nfe_per_step for step in self.steps)

    @property
    def nfe(self) -> int:
        return sum(step.nfe_per_step for step in self.steps)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        i = state or 0
        return self.steps[min(i, len(self.steps) - 1)](denoiser, x, t, s, None, noise)[0], i + 1


def _inner(
    sde: SDE, at: Marginal, to: Marginal, s: Tensor, node: float
) -> tuple[Tensor, Marginal]:
    if node == 1:
        return s, to
    t = time_at(sde, at.lam + node * (to.lam - at.lam))
    return t, marginal(sde, t)


# --- published names -------------------------------------------------------------------------


def dpm_2() -> SingleStep:
    """k-diffusion's DPM-2: the noise at the middle of the step in lam, for the whole step.

    EDM, arXiv 2206.00364, algorithm 1 with a midpoint of log sigma; DPM-Solver-2 in noise form.
    """
    return SingleStep(EPS, MIDPOINT)


def dpmpp_2s() -> SingleStep:
    """DPM-Solver++(2S): x0_hat at the middle of the step in lam, for the whole step.

    DPM-Solver++, arXiv 2211.01095, algorithm 1 with r = 1 / 2.
    """
    return SingleStep(X0, MIDPOINT)


def dpm_solver_singlestep(
    order: Annotated[int, Range(ge=1, le=3)] = 3, prediction: Prediction = EPS
) -> SingleStep:
    """DPM-Solver-1, 2 and 3: ``EPS`` for the noise form, ``X0`` for DPM-Solver++.

    ``order`` calls a step. Raises ValueError unless order is 1, 2 or 3. DPM-Solver, arXiv
    2206.00927, algorithms 1 and 2.

    Args:
        order: order of the method, and calls a step.
        prediction: quantity that is extrapolated; residual is the output of EDM's network for data
            of deviation 0.5.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"singlestep DPM-Solver has orders 1, 2 and 3, got order={order}")
    return SingleStep(prediction, (ONE_CALL, MIDPOINT, THIRDS)[order - 1])


def dpm_fast(nfe: int = 30) -> StepSequence:
    """DPM-Solver-fast: steps of order 3, the last one or two of lower order, so that a grid of
    nfe // 3 + 1 steps equal in lam costs ``nfe`` calls.

    Raises ValueError unless nfe >= 1. DPM-Solver, arXiv 2206.00927, section 3.4.
    """
    if nfe < 1:
        raise ValueError(f"need at least 1 call, got nfe={nfe}")
    orders = [3] * (nfe // 3) + [nfe % 3] if nfe % 3 else [3] * (nfe // 3 - 1) + [2, 1]
    return StepSequence(tuple(dpm_solver_singlestep(order) for order in orders))
