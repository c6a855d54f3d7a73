"""Single steps of higher order, with further denoiser calls inside the step.

A scheme lists the nodes of the calls and the earlier evaluations that each stage combines.
Together with a rule and a prediction of ``integrals`` it is a classical or exponential Runge-Kutta
method.
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
    """The stages of a Runge-Kutta step, with inner calls at fractions ``nodes`` of it in lam.

    ``uses[i]`` lists the evaluations that stage i combines: 0 is the start, j the j-th inner call.
    The last entry of ``uses`` is for the end of the step.
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
    """A scheme on the probability flow, in the variables of a prediction.

    A step from or to where x holds no signal or no noise is the DDIM step and makes one call.
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
        """The end of the step that starts from ``here``, and all its evaluations."""
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
    """A sequence of steps, one per interval of the grid; a longer grid repeats the last step.

    A few steps of lower order may limit ``order`` to one more than their own. ``nfe_per_step`` is
    the largest of all steps, and ``nfe`` the number of calls on a grid of ``len(steps)`` steps; a
    first step from where x holds no signal makes one call instead of its own.
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
    """k-diffusion's DPM-2: the midpoint rule in lam on the noise prediction.

    EDM, arXiv 2206.00364, algorithm 1 with a midpoint of log sigma; DPM-Solver-2 in noise form.
    """
    return SingleStep(EPS, MIDPOINT)


def dpmpp_2s() -> SingleStep:
    """DPM-Solver++(2S): the midpoint rule in lam on the data prediction.

    DPM-Solver++, arXiv 2211.01095, algorithm 1 with r = 1 / 2.
    """
    return SingleStep(X0, MIDPOINT)


def dpm_solver_singlestep(
    order: Annotated[int, Range(ge=1, le=3)] = 3, prediction: Prediction = EPS
) -> SingleStep:
    """Singlestep DPM-Solver of order 1, 2 or 3, in the noise form (eps) or as DPM-Solver++ (x0).

    Each step makes ``order`` calls. Raises ValueError unless order is 1, 2 or 3. DPM-Solver, arXiv
    2206.00927, algorithms 1 and 2.

    Args:
        order: order of the method, and number of calls per step.
        prediction: quantity that is extrapolated; residual is the output of EDM's network for data
            of standard deviation 0.5.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"singlestep DPM-Solver has orders 1, 2 and 3, got order={order}")
    return SingleStep(prediction, (ONE_CALL, MIDPOINT, THIRDS)[order - 1])


def dpm_fast(nfe: int = 30) -> StepSequence:
    """DPM-Solver-fast: steps of order 3, except the last one or two.

    A grid of nfe // 3 + 1 steps, equal in lam, makes ``nfe`` calls. Raises ValueError unless nfe
    >= 1. DPM-Solver, arXiv 2206.00927, section 3.4.
    """
    if nfe < 1:
        raise ValueError(f"need at least 1 call, got nfe={nfe}")
    orders = [3] * (nfe // 3) + [nfe % 3] if nfe % 3 else [3] * (nfe // 3 - 1) + [2, 1]
    return StepSequence(tuple(dpm_solver_singlestep(order) for order in orders))
