"""Our models in the samplers of others, and our samplers in the pipelines of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from scoresde.coordinates import Index
from scoresde.denoiser import Denoiser
from scoresde.interop.wrap import schedule_from
from scoresde.parameterization import ScoreModel
from scoresde.samplers.grids import Grid
from scoresde.samplers.kernels import time_at
from scoresde.samplers.noise import Noise
from scoresde.samplers.protocols import State, Step
from scoresde.sde import SDE, match, sent

F64 = torch.float64

# --- D(x, sigma) --------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class SigmaDenoiser:
    """k-diffusion's D(x, sigma) = E[x_0 | x = x_0 + sigma n], of any process.

        D(x, sigma) = x0_hat(alpha x, t),   sigma = (sigma / alpha)(t)

    ``sigma`` is (B,) or 0-dim. Raises ValueError for a sigma below 0 or above ``sigma_max``.
    EDM, arXiv 2206.00364, section 2.

    Args:
        denoiser: the denoiser of the process.
    """

    denoiser: Denoiser

    @property
    def sigma_min(self) -> float:
        """sigma / alpha where samplers stop."""
        return self._sigma(self.denoiser.sde.t_eps)

    @property
    def sigma_max(self) -> float:
        """sigma / alpha where samplers start."""
        return self._sigma(self.denoiser.sde.t_max)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        sde = self.denoiser.sde
        values = torch.as_tensor(sigma).detach().to("cpu", F64)
        if values.ndim > 1 or values.numel() not in (1, len(x)):
            raise ValueError(f"sigma: need one number or one a sample, got {tuple(values.shape)}")
        highest = self.sigma_max
        if not bool(((values >= 0) & (values <= highest * (1 + 1e-6))).all()):
            raise ValueError(
                f"sigma: this model knows 0 to {highest:g}, got {values.min():g} to "
                f"{values.max():g}"
            )
        lam = -values.log()
        if lam.ndim == 0 or bool((lam == lam[0]).all()):
            t = time_at(sde, float(lam.flatten()[0]))
        else:
            t = sent(sde.time(lam), x.device)
        return self.denoiser(match(sde.alpha(t), x) * x, t)

    def _sigma(self, t: float) -> float:
        return float((-self.denoiser.sde.lam(torch.tensor(t, dtype=F64))).exp())


def as_sigma_denoiser(model: ScoreModel | Denoiser, **said: Any) -> SigmaDenoiser:
    """The denoiser D(x, sigma) of k-diffusion, with what is said to the model bound.

    Raises ValueError as ``ScoreModel.denoiser`` does, and for something said to a denoiser.
    """
    if isinstance(model, ScoreModel):
        return SigmaDenoiser(model.denoiser(**said))
    if said:
        raise ValueError(f"{next(iter(said))}: conditions of a Denoiser are bound already")
    return SigmaDenoiser(model)


# --- a scheduler of diffusers -------------------------------------------------------------------


class Stepped(NamedTuple):
    """What ``step`` returns: the state to evaluate next, and x0_hat; also a tuple."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class _Asked(Exception):
    """The step needs the network at x and t."""

    def __init__(self, x: Tensor, t: Tensor) -> None:
        super().__init__()
        self.x, self.t = x, t


class _Call(NamedTuple):
    """One call of the network: its interval of the grid, its time, and (7) in host floats."""

    interval: int
    time: Tensor
    told: float
    skip: float
    out: float
    inp: float


class _Config(dict[str, Any]):
    """The fields of a scheduler, also as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class _Replayed:
    """The prediction of a step: x0_hat and mix of the calls so far, and then a question."""

    def __init__(self) -> None:
        self.given: list[tuple[Tensor, Tensor | None]] = []
        self.used = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return x if float(t) == 0 else self._next(x, t)[0]  # the clean end of a grid

    def both(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x0, mix = self._next(x, t)
        if mix is None:
            raise ValueError("step: it needs a learned variance, which this network does not give")
        return x0, mix

    def variance_mix(self, x: Tensor, t: Tensor) -> Tensor:
        return self.both(x, t)[1]

    def _next(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.used == len(self.given):
            raise _Asked(x, t)
        self.used += 1
        return self.given[self.used - 1]


@final
class OurScheduler:
    """A grid and a step of this library with the interface of the schedulers of diffusers.

    ``set_timesteps(n)`` makes n steps of the grid, the last of them the denoising call, or to no
    noise where the grid ends at 0. A step with several network calls has as many ``timesteps``:
    its function is evaluated anew with each output, so that every step of this library runs. The
    state is that of the process (x = alpha x_0 + sigma n). Draws are of ``noise``, or of the
    ``generator`` given to ``step``. One object serves one run at a time.

    Args:
        schedule: what ``wrap`` takes as one, or a model.
        method: step.
        grid: grid.
        noise: source of noise; by default torch's generator, or the one given to ``step``.
    """

    def __init__(
        self, schedule: Any, method: Step, grid: Grid, noise: Noise | None = None
    ) -> None:
        found, _ = schedule_from(schedule)
        self.sde: SDE = found.sde
        self.parameterization = found.parameterization
        self._method, self._grid, self._noise = method, grid, noise
        coordinate = getattr(found.parameterization, "noise", None)
        levels = coordinate.levels if isinstance(coordinate, Index) else 1000
        given = getattr(schedule, "config", schedule)
        self.config = _Config(dict(given) if isinstance(given, Mapping) else {})
        self.config.setdefault("num_train_timesteps", levels)
        self.config |= {"steps_offset": 1, "clip_sample": False}
        self.init_noise_sigma = float(self.sde.sigma(torch.tensor(self.sde.t_max, dtype=F64)))
        self.order = int(method.nfe_per_step)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0)
        self._begin: int | None = None

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Begin a run of n steps. Raises ValueError for a step that begins with noise."""
        n = int(num_inference_steps)
        if n < 1:
            raise ValueError(f"num_inference_steps: need at least 1, got {n}")
        if n != self.num_inference_steps:
            ts = self._grid(self.sde, n)
            if ts[-1] > 0:  # the last step is the denoising call
                ts = self._grid(self.sde, n - 1) if n > 1 else ts[:1]
            self._ts = ts
            self._calls, self._direct = self._rehearsed()
            self.num_inference_steps = n
        told = torch.tensor([call.told for call in self._calls], dtype=F64)
        whole = bool((told == told.round()).all())
        self.timesteps = told.to(torch.int64 if whole else torch.float32).to(device or "cpu")
        self._index: int | None = None
        self._begin = None
        self._state: State = None
        self._draws: list[Tensor] = []

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this place of ``timesteps``, for a run from a noised picture."""
        self._begin = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The input of the network for a state (B, ...)."""
        inp = self._calls[self._place(timestep)].inp
        return sample if inp == 1 else sample * inp

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma n at members of ``timesteps``, (B,)."""
        calls = [self._calls[self._found(value)] for value in timesteps.flatten().tolist()]
        t = torch.stack([call.time for call in calls])
        return self.sde.perturb(original_samples, t, noise)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Stepped:
        """Take the output of the network at ``sample`` (B, ...) and say where it is needed next.

        A learned variance may follow in as many channels again. Raises ValueError for a run that
        has ended or that begins inside a step, and for an eta, which the step has of its own.
        """
        if eta or use_clipped_model_output:
            raise ValueError("eta, use_clipped_model_output: the step has its own; leave them out")
        place = self._place(timestep)
        call = self._calls[place]
        wide = torch.promote_types(sample.dtype, torch.float32)
        x, output, mix = sample.to(wide), model_output.to(wide), None
        if x.ndim > 1 and output.shape == (len(x), 2 * x.shape[1], *x.shape[2:]):
            output, v = output.chunk(2, dim=1)
            mix = (v + 1) / 2
        if output.shape != x.shape:
            raise ValueError(f"model_output: {tuple(output.shape)} for x of {tuple(x.shape)}")
        x0 = torch.mul(x, call.skip).add_(output, alpha=call.out)
        if self._index is None:
            if place and self._calls[place - 1].interval == call.interval:
                raise ValueError("timestep: a run cannot begin inside a step of several calls")
            self._interval, self._x = call.interval, x
            self._replayed = _Replayed()
        if not self._replayed.given and self._direct[call.interval]:
            self._x = x  # what the pipeline made of it
        self._replayed.given.append((x0, mix))
        self._index = place + 1
        end = self._advanced(self._source(generator)).to(sample.dtype)
        return Stepped(end, x0.to(sample.dtype))

    def _advanced(self, noise: Noise) -> Tensor:
        """The state at which the network is needed next, or the end."""
        last = len(self._ts) - 1
        while True:
            replayed = self._replayed
            if self._interval == last:
                return replayed.given[0][0]  # the denoising call
            replayed.used, drawn = 0, iter(list(self._draws))

            def draw(
                x: Tensor, t: Tensor | None = None, s: Tensor | None = None, drawn: Any = drawn
            ) -> Tensor:
                if (z := next(drawn, None)) is None:
                    self._draws.append(z := noise(x, t, s))
                return z

            t, s = self._ts[self._interval], self._ts[self._interval + 1]
            denoiser = Denoiser(self.sde, replayed, replayed.variance_mix)
            try:
                self._x, self._state = self._method(denoiser, self._x, t, s, self._state, draw)
            except _Asked as asked:
                return asked.x
            self._interval += 1
            self._replayed, self._draws = _Replayed(), []
            if self._index == len(self._calls) or self._direct[self._interval]:
                return self._x

    def _source(self, generator: Any) -> Noise:
        if self._noise is not None:
            return self._noise

        def draw(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
            if isinstance(generator, Sequence):
                return torch.cat([_randn(x[i : i + 1], g) for i, g in enumerate(generator)])
            return _randn(x, generator)

        return draw

    def _place(self, timestep: Any) -> int:
        """The place of the call that is next."""
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps first")
        if self._index is None:
            return self._found(timestep) if self._begin is None else self._begin
        if self._index == len(self._calls):
            raise ValueError("this run has ended; call set_timesteps to begin another")
        return self._index

    def _found(self, timestep: Any) -> int:
        """The first call with a timestep."""
        value = float(timestep)
        gaps = [abs(call.told - value) for call in self._calls]
        place = gaps.index(min(gaps))
        if gaps[place] > 1e-6 * max(abs(value), 1):
            raise ValueError(f"timestep: {value:g} is none of timesteps")
        return place

    def _rehearsed(self) -> tuple[list[_Call], list[bool]]:
        """The calls that the steps make, and whether each step begins with one at its state."""
        times: list[tuple[int, Tensor]] = []
        direct: list[bool] = []
        state: State = None
        for i, (t, s) in enumerate(pairwise(self._ts)):
            x, replayed, first = torch.zeros(1, 1, dtype=F64), _Replayed(), len(times)
            denoiser = Denoiser(self.sde, replayed, replayed.variance_mix)
            while True:
                replayed.used = 0
                try:
                    _, state = self._method(denoiser, x, t, s, state, _zeros)
                    break
                except _Asked as asked:
                    times.append((i, asked.t))
                    if len(times) == first + 1:
                        direct.append(asked.x is x)
                    replayed.given.append((torch.zeros_like(x), torch.zeros_like(x)))
        if self._ts[-1] > 0:
            times.append((len(self._ts) - 1, self._ts[-1]))
            direct.append(True)
        if not direct[0]:
            raise ValueError(
                f"step: {type(self._method).__name__} moves x before its first network call, "
                "and a pipeline has made that call already; choose another step"
            )
        found = self.parameterization(self.sde, torch.stack([t for _, t in times]))
        skip, out, inp, told = (c.tolist() for c in found)
        inp = [1.0 if abs(value - 1) < 1e-12 else value for value in inp]
        intervals, ts = zip(*times, strict=True)
        return list(map(_Call, intervals, ts, told, skip, out, inp)), direct


def _zeros(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
    return torch.zeros_like(x)


def _randn(x: Tensor, generator: torch.Generator | None) -> Tensor:
    device = x.device if generator is None else generator.device
    z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device)
    return sent(z, x.device)


def as_scheduler(
    schedule: Any, step: Step, grid: Grid, noise: Noise | None = None
) -> OurScheduler:
    """Our step and grid as a scheduler for a pipeline of diffusers.

        pipe.scheduler = as_scheduler(pipe.scheduler, dpmpp_2m(), karras())

    Args:
        schedule: model, process, or a scheduler of diffusers, its config or file, which says what
            the output of the network means; also what else ``wrap`` takes.
        step: step, also one that makes several network calls.
        grid: grid of times.
        noise: source of noise; by default torch's, or the generator of the pipeline.

    Raises ValueError for a schedule that is none.
    """
    return OurScheduler(schedule, step, grid, noise)
