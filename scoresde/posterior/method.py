"""What methods share: guides and steps made of a measurement, and how they draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from torch import Tensor

from scoresde.arguments import NonNegative, Positive, check_fields
from scoresde.denoiser import Denoiser, Guide
from scoresde.posterior.measurement import Measurement
from scoresde.samplers import Grid, Noise, Step, ddpm, recommended, sample, suited_grid
from scoresde.sde import SDE, match


@dataclass(frozen=True)
class Method(ABC):
    """A way to draw from the posterior p(x0 | y).

    Args:
        std: standard deviation of the data in model units.
    """

    std: Positive = 0.5
    name: ClassVar[str]
    linear: ClassVar[bool] = False  # whether it needs a linear operator; all need a gradient
    population: ClassVar[bool] = False  # whether it draws all samples together

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def __call__(
        self, denoiser: Denoiser, measurement: Measurement, x: Tensor, noise: Noise, nfe: int
    ) -> Tensor:
        """Samples of the posterior (B, ...) from ``x`` at t_max, by ``nfe`` network calls.

        Raises ValueError, before the first call, for a measurement that the method cannot use.
        """

    def ready(self, measurement: Measurement, x: Tensor) -> Measurement:
        """The measurement of samples ``x``. Raises ValueError if the method cannot use it."""
        if self.linear:
            measurement.require_linear(self.name)
        measurement.require_gradient(self.name, x)
        return measurement.fit(x)


@dataclass(frozen=True)
class GuideMethod(Method):
    """A method that replaces E[x0 | x_t] by an estimate of E[x0 | x_t, y].

    Args:
        eta: size of the noise of the sampler: 0 for none, 1 for the reverse SDE.
    """

    eta: NonNegative = 0.0

    @abstractmethod
    def estimate(
        self, denoiser: Denoiser, measurement: Measurement, x: Tensor, t: Tensor
    ) -> Tensor:
        """E[x0 | x_t, y] (B, ...), estimated by one network call."""

    def guide(self, measurement: Measurement) -> Guide:
        """The guide Denoiser -> Denoiser of a measurement."""

        def guide(denoiser: Denoiser) -> Denoiser:
            own = measurement.batch
            if None not in (own, denoiser.batch) and own != denoiser.batch:
                raise ValueError(
                    f"y: measurements of {own} samples, for conditions of {denoiser.batch}"
                )
            return replace(
                denoiser,
                predict=Posterior(self, denoiser, measurement),
                normalised=False,
                batch=denoiser.batch if own is None else own,
            )

        return guide

    def sampler(self, nfe: int) -> tuple[Step, Grid]:
        """Step and grid for this many network calls."""
        return recommended(nfe, self.eta, self.std)

    def __call__(
        self, denoiser: Denoiser, measurement: Measurement, x: Tensor, noise: Noise, nfe: int
    ) -> Tensor:
        if nfe < 2:
            raise ValueError(f"nfe: {self.name} makes 2 calls or more, got {nfe}")
        guided = self.guide(self.ready(measurement, x))(denoiser)
        step, grid = self.sampler(nfe)
        return sample(guided, x, grid(denoiser.sde, nfe - 1), step, noise)


class Population(NamedTuple):
    """Equally weighted samples x (B, ...), and log p(y) in nats with its standard error.

    ``size`` is the number of independent samples that they are worth.
    """

    x: Tensor
    log_evidence: float
    log_evidence_error: float
    size: float


@dataclass(frozen=True)
class PopulationMethod(Method):
    """A method that draws all samples together, as one population."""

    population: ClassVar[bool] = True

    @abstractmethod
    def populate(
        self, denoiser: Denoiser, measurement: Measurement, x: Tensor, noise: Noise, nfe: int
    ) -> Population:
        """The population from ``x`` (B, ...) at t_max."""

    def __call__(
        self, denoiser: Denoiser, measurement: Measurement, x: Tensor, noise: Noise, nfe: int
    ) -> Tensor:
        return self.populate(denoiser, measurement, x, noise, nfe).x


@dataclass(frozen=True)
class Posterior:
    """The estimate of a method, as the prediction of a denoiser."""

    method: GuideMethod
    denoiser: Denoiser
    measurement: Measurement

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.method.estimate(self.denoiser, self.measurement, x, t)

    @property
    def variance_mix(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """That of the denoiser."""
        return self.denoiser.variance_mix

    def among(self, rows: Tensor) -> Posterior:
        """The estimate for some samples of the batch."""
        denoiser = self.denoiser.among(rows, self.denoiser.batch or 0)
        return replace(self, denoiser=denoiser, measurement=self.measurement.among(rows))


@dataclass(frozen=True)
class StepMethod(Method):
    """A method that corrects the states of a sampler."""

    @abstractmethod
    def step(self, measurement: Measurement, step: Step) -> Step:
        """The step corrected by a measurement."""

    def finish(self, measurement: Measurement, x0: Tensor) -> Tensor:
        """The denoised end corrected by the measurement."""
        return x0

    def __call__(
        self, denoiser: Denoiser, measurement: Measurement, x: Tensor, noise: Noise, nfe: int
    ) -> Tensor:
        measurement = self.ready(measurement, x)
        plain = ddpm()
        step = self.step(measurement, plain)
        steps = (nfe - 1) // step.nfe_per_step
        if steps < 1:
            raise ValueError(
                f"nfe: a step of {self.name} makes {step.nfe_per_step} calls; need "
                f"{step.nfe_per_step + 1} or more, got {nfe}"
            )
        ts = suited_grid(plain, self.std)(denoiser.sde, steps)
        return self.finish(measurement, sample(denoiser, x, ts, step, noise))


def prior_variance(sde: SDE, t: Tensor, std: float, x: Tensor) -> Tensor:
    """Variance of x0 given x_t for Gaussian data of deviation std, shaped to multiply ``x``.

    r^2 = std^2 s^2 / (std^2 + s^2),   s = sigma / alpha
    """
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return match((std * sigma) ** 2 / ((std * alpha) ** 2 + sigma**2), x)
