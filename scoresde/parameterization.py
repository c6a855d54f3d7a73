"""How a network's output becomes a denoiser, and the model that is trained and saved.

    x0_hat = skip x + out F(inp x, noise)                                                    (7)

A parameterisation is nothing but the four coefficients. Inputs are scaled to unit size for data
of unit size, and the noise level is given to the network as log(sigma / alpha) / 4 (the coordinate
of EDM), so that one network sees the same numbers under every process.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import Parameter, signature
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from scoresde.arguments import Positive, check_fields, nearest
from scoresde.conditions.condition import Condition, Joined, joined
from scoresde.coordinates import Coordinate
from scoresde.denoiser import Denoiser
from scoresde.sde import FAINTEST, SDE, match, sent


class Coeffs(NamedTuple):
    """The coefficients of (7), float64, each of the shape of ``t``."""

    skip: Tensor
    out: Tensor
    inp: Tensor
    noise: Tensor


class Known(NamedTuple):
    """The coefficients of (7) at one time that the host knows."""

    skip: float
    out: float
    inp: float
    noise: float


Parameterization = Callable[[SDE, Tensor], Coeffs]
Label = int | Sequence[int] | Tensor


def eps(sde: SDE, t: Tensor) -> Coeffs:
    """F is the noise: x0_hat = (x - sigma F) / alpha. DDPM, arXiv 2006.11239, eq. 15."""
    alpha, sigma, norm, noise = _levels(sde, t)
    return Coeffs(1 / alpha, -sigma / alpha, 1 / norm, noise)


def x0(sde: SDE, t: Tensor) -> Coeffs:
    """F is the clean sample: x0_hat = F."""
    _, _, norm, noise = _levels(sde, t)
    return Coeffs(torch.zeros_like(norm), torch.ones_like(norm), 1 / norm, noise)


def v(sde: SDE, t: Tensor) -> Coeffs:
    """F = (alpha eps - sigma x0) / norm, norm^2 = alpha^2 + sigma^2: of unit size everywhere.

    Progressive Distillation for Fast Sampling of Diffusion Models, arXiv 2202.00512, appendix D
    (norm = 1 there).
    """
    alpha, sigma, norm, noise = _levels(sde, t)
    return Coeffs(alpha / norm**2, -sigma / norm, 1 / norm, noise)


def score(sde: SDE, t: Tensor) -> Coeffs:
    """F / sigma is the score: x0_hat = (x + sigma F) / alpha.

    arXiv 2011.13456, appendix H (scale by sigma).
    """
    alpha, sigma, norm, noise = _levels(sde, t)
    return Coeffs(1 / alpha, sigma / alpha, 1 / norm, noise)


def flow(sde: SDE, t: Tensor) -> Coeffs:
    """F = eps - x0, the velocity of the straight path: x0_hat = (x - sigma F) / (alpha + sigma).

    arXiv 2210.02747.
    """
    alpha, sigma, norm, noise = _levels(sde, t)
    total = alpha + sigma
    return Coeffs(1 / total, -sigma / total, 1 / norm, noise)


@final
@dataclass(frozen=True)
class Preconditioned:
    """The preconditioning of EDM for data of deviation ``sigma_data``, under any process.

        skip = alpha sd^2 / n^2,   out = sigma sd / n,   inp = 1 / n,
        n^2 = sigma^2 + alpha^2 sd^2

    Raises ValueError unless sigma_data > 0. EDM, arXiv 2206.00364, table 1.

    Args:
        sigma_data: standard deviation of the scaled data.
    """

    sigma_data: Positive = 0.5

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, sde: SDE, t: Tensor) -> Coeffs:
        alpha, sigma, _, noise = _levels(sde, t)
        sd = self.sigma_data
        n2 = sigma**2 + (alpha * sd) ** 2
        return Coeffs(alpha * sd**2 / n2, sigma * sd / n2.sqrt(), n2.rsqrt(), noise)


edm = Preconditioned  # its name beside those of the functions


@final
@dataclass(frozen=True)
class Informed:
    """A parameterisation whose network is told another number of the noise level.

    Args:
        base: the other coefficients.
        noise: the number, as a function of process and time (``scoresde.coordinates``).
        scaled: scale the input of the network to unit size, as ``base`` does; else it is x.
    """

    base: Parameterization
    noise: Coordinate
    scaled: bool = True

    def __call__(self, sde: SDE, t: Tensor) -> Coeffs:
        c = self.base(sde, t)
        inp = c.inp if self.scaled else torch.ones_like(c.inp)
        return Coeffs(c.skip, c.out, inp, self.noise(sde, t))


def caution(parameterization: Parameterization, sde: SDE) -> str | None:
    """One sentence where an error of the network is multiplied in x0_hat, else None.

    By |out| of (7) at ``t_max``: sigma / alpha for eps and score, at most 1 for v and flow.
    """
    factor = _factor(parameterization, sde)
    if factor < 10:
        return None
    return (
        f"parameterization {_name(parameterization)} multiplies the network's errors by "
        f"{factor:.3g} at t_max={sde.t_max:g}, which may send samples far away from the data; v "
        "does not"
    )


def _factor(parameterization: Parameterization, sde: SDE) -> float:
    """|out| of (7) at t_max, by which an error of the network is multiplied."""
    t = torch.tensor(sde.t_max, dtype=torch.float64)
    return float(parameterization(sde, t).out.abs())


def _name(parameterization: Parameterization) -> str:
    parameterization = getattr(parameterization, "base", parameterization)
    return getattr(parameterization, "__name__", type(parameterization).__name__)


def _levels(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha, sigma, sqrt(alpha^2 + sigma^2) and the noise coordinate, in float64."""
    t = t.double()
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return alpha, sigma, sde.norm(t), -sde.lam(t).clamp(min=FAINTEST) / 4


class OutputError(ValueError):
    """A network that returns something other than a tensor of the shape of x, with its graph."""


class ScoreModel(nn.Module):
    """What is trained and saved: a network, its process and its parameterisation.

    ``net(x, noise, **told)`` takes the scaled state (B, ...), the noise coordinate (B,) and what
    it is told, and returns F with the shape of ``x``. ``conditions`` (``scoresde.conditions``)
    turn what users say, by name, into what the network is told. Without conditions the network
    receives what is given as it is, such as ``label`` (B,). The noise coordinate has the dtype of
    the weights, or at least float32 for a network with ``wide_noise``. ``data`` describes what it
    was trained on (name, shape, scaling, classes, std) and ``config`` is the configuration of its
    run, None where nobody has said. ``codec`` (``scoresde.latent.Codec``) maps between the
    pictures that ``data`` describes and the latents that the network sees, None for a model of
    pixels; it is no part of the weights. ``normalised`` is False for a distilled network, whose
    output is no posterior mean. Raises ValueError for a process or a parameterisation that is
    none, such as ``VP`` in place of ``VP()``, or that divides by an alpha of 0, and for a
    condition with the name of an input of the network.

    With ``variance`` the network has twice the channels, (B, 2 C, ...): after F, the numbers v
    whose (v + 1) / 2 is the mix of the reverse variance, ``Denoiser.variance_mix``. Improved DDPM,
    arXiv 2102.09672, eq. 15.

    With ``self_conditioning`` the network is told an estimate of x0 by C further channels of
    ``concat``, after those of the conditions, and is called twice at each evaluation,

        x0_hat(x, t) = f(x, t, f(x, t, 0)),

    a function of x and t alone. The published samplers call it once and give it the estimate of
    the step before, so that its prediction depends on the path, and the first and the last call
    differ from the others. Analog Bits, arXiv 2208.04202, algorithms 1 and 2. ValueError is raised
    for a network without ``concat``.
    """

    data: Any = None
    config: Any = None
    codec: Any = None
    normalised = True

    def __setattr__(self, name: str, value: Any) -> None:
        # A codec is neither trained nor averaged nor saved with the weights.
        if name == "codec":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        parameterization: Parameterization,
        *,
        variance: bool = False,
        self_conditioning: bool = False,
        conditions: Mapping[str, Condition] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(sde, SDE):
            raise ValueError(f"sde: need a process, such as VP(), got {sde!r}")
        if isinstance(parameterization, type) or not callable(parameterization):
            raise ValueError(
                "parameterization: need a function, such as v, or edm(0.5), got "
                f"{parameterization!r}"
            )
        if _factor(parameterization, sde) > 1e15:
            raise ValueError(
                "parameterization: x at t_max holds no signal under this process, and "
                f"{_name(parameterization)} divides by alpha, 0 there; take v or x0"
            )
        self.net = net
        self.sde = sde
        self.parameterization = parameterization
        self.variance = variance
        self.self_conditioning = self_conditioning
        if self_conditioning and not getattr(net, "concat", self._takes("concat")):
            raise ValueError(
                "self_conditioning: this network takes no estimate beside its input; build one "
                "with concat=channels, or leave it out"
            )
        self.conditions: Any = nn.ModuleDict(dict(conditions or {}))
        taken = {"augment", *Joined._fields} | ({"label"} if self.classes is not None else set())
        if stray := taken & self.conditions.keys():
            raise ValueError(
                f"conditions: {stray.pop()!r} is an input of the network itself; choose another "
                "name"
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters(), torch.empty(0)).device

    @property
    def classes(self) -> int | None:
        """Number of classes in a table of the network's own; None without."""
        return getattr(self.net, "classes", None)

    @property
    def needs_label(self) -> bool:
        """Whether the network has no prediction without a class: ``label`` has no default."""
        label = signature(self.net.forward).parameters.get("label")
        return label is not None and label.default is Parameter.empty

    @property
    def std(self) -> float:
        """Standard deviation of the data in model units, which the default sampler is made for.

        It is that of the training data if ``data`` states it, else ``sigma_data`` of the
        parameterisation, else 1 for real numbers and latents, which are standardised, else 0.5.
        """
        measured = getattr(self.data, "std", None)
        declared = getattr(self.parameterization, "sigma_data", None)
        levels = self.codec is None and (self.data is None or self.data.scaling.levels is not None)
        return measured or declared or (Preconditioned.sigma_data if levels else 1.0)

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor | None) -> Tensor:
        """The raw network output F(inp x, noise), in the dtype of the network.

        ``cond`` holds what ``Condition.read`` returns, by name, and inputs of the network. Nothing
        is said of conditions that are left out.
        """
        return self.evaluate(self.parameterization(self.sde, t), x, self.told_of(x, cond))

    def told_of(self, x: Tensor, cond: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        """``told``, for every sample of x."""
        return _spread(self.told(cond), x)

    def told(self, cond: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        """What the network is told: inputs of its own as they are, and the conditions encoded."""
        told = {name: y for name, y in cond.items() if name not in self.conditions}
        if not self.conditions:
            return told
        found = {name: cond.get(name) for name in self.conditions}
        lengths = {name: len(y) for name, y in found.items() if y is not None}
        n = max(lengths.values(), default=1)
        if stray := [name for name, few in lengths.items() if few not in (1, n)]:
            few = lengths[stray[0]]
            raise ValueError(f"{stray[0]}: {few} values beside {n} of another condition")
        parts = [
            condition(sent(condition.null(1) if y is None else y, self.device))
            for condition, y in zip(self.conditions.values(), found.values(), strict=True)
        ]
        dtype = next((p.dtype for p in self.net.parameters()), torch.float32)
        whole = joined(parts, n)._asdict()
        return told | {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in whole.items()
            if value is not None
        }

    def read(self, **said: Any) -> dict[str, Tensor | None]:
        """What users say as tensors by name, on the host: ``forward`` takes them.

        ``label`` of a network with a table of classes is the place of a class, from 0, of all
        samples or of each (B,). Other inputs of the network have to be tensors. None says nothing.
        Raises ValueError, naming the condition, for values that it does not take, TypeError for
        labels that are no integers.
        """
        found: dict[str, Tensor | None] = {}
        for name, value in said.items():
            if value is None:
                continue
            if name in self.conditions:
                try:
                    found[name] = self.conditions[name].read(value)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
            elif name == "label":
                found[name] = _places(value, self.classes)
            elif isinstance(value, Tensor) and self._takes(name):
                found[name] = value
            else:
                raise ValueError(self._unknown(name))
        return found

    def denoiser(self, **said: Any) -> Denoiser:
        """The denoiser (7) with its conditions bound; state and network may differ in dtype.

        Each condition is one value for all samples, or a sequence with one of each; they are read
        and encoded once. What is not said, or None, the network was told in training as often as
        the dropout of that condition says. Raises ValueError as ``read`` does.
        """
        return self.bound(self.read(**said))

    def bound(self, read: Mapping[str, Tensor | None]) -> Denoiser:
        """``denoiser`` of what ``read`` returns, or of what the data say, on any device."""
        told = self.told(
            {name: None if y is None else sent(y, self.device) for name, y in read.items()}
        )
        bound = Bound(self, told)
        mix = bound.variance_mix if self.variance else None
        return Denoiser(self.sde, bound, mix, self.normalised, _batch(told))

    def evaluate(self, c: Coeffs, x: Tensor, told: Mapping[str, Tensor | None]) -> Tensor:
        """The raw network output F with known coefficients, checked."""
        return self.outputs(c, x, told)[0]

    def outputs(
        self,
        c: Coeffs | Known,
        x: Tensor,
        told: Mapping[str, Tensor | None],
        copies: int = 1,
        estimated: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """F and the mix of a learned reverse variance, both shaped like ``x``.

        ``told`` may be of ``copies`` times the samples of x, one batch after the other; so is the
        output. It is one call of the network, with self-conditioning two. In training,
        ``estimated`` (B,) are the samples that are told the estimate, held constant; the others
        are told zeros.
        """
        if not self.self_conditioning:
            return self._called(c, x, told, copies)
        dtype = next(self.net.parameters(), x).dtype
        zeros = torch.zeros((copies * len(x), *x.shape[1:]), dtype=dtype, device=x.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and estimated is None):
            first, _ = self._called(c, x, _beside(told, zeros, self.net), copies)
            estimate = torch.cat(_x0_hats(c, x, first, copies)).to(dtype)
        if estimated is not None:
            # Autocast of torch 2.10 would keep the weights that it cast here, without a graph.
            torch.clear_autocast_cache()
            estimate = torch.where(estimated.reshape(-1, *[1] * (x.ndim - 1)), estimate, zeros)
        return self._called(c, x, _beside(told, estimate, self.net), copies)

    def _called(
        self, c: Coeffs | Known, x: Tensor, told: Mapping[str, Tensor | None], copies: int
    ) -> tuple[Tensor, Tensor | None]:
        """``outputs``, by one call of the network."""
        net = self.net
        dtype = next(net.parameters(), x).dtype
        # In half precision the index 999 of a table would be 1000.
        wide = getattr(net, "wide_noise", False)
        exact = torch.promote_types(dtype, torch.float32) if wide else dtype
        if isinstance(c, Known):
            scaled = (x if c.inp == 1 else c.inp * x).to(dtype)
            noise = torch.full((len(x),), c.noise, dtype=exact, device=x.device)
        else:
            scaled, noise = (match(c.inp, x) * x).to(dtype), _per_sample(c.noise, x).to(exact)
        if copies > 1:
            scaled = scaled.repeat(copies, *[1] * (x.ndim - 1))
            noise = noise.repeat(copies)
        result: Any = net(scaled, noise, **told)
        if not isinstance(result, Tensor):
            found = type(result).__name__
            raise OutputError(f"model: its network returns {found}; it has to return a tensor")
        shape = scaled.shape
        if self.variance and x.ndim > 1:
            shape = torch.Size([len(scaled), 2 * x.shape[1], *x.shape[2:]])
        if result.shape != shape:  # it would be broadcast without a word
            raise OutputError(
                f"model: its network returns {tuple(result.shape)} for x of shape "
                f"{tuple(scaled.shape)}; it has to return "
                + (f"{tuple(shape)}, x0 and variance" if self.variance else "the shape of x")
            )
        if torch.is_grad_enabled() and x.requires_grad and not result.requires_grad:
            # The gradient of x0_hat would be that of skip x alone, without a word.
            raise OutputError(
                "model: its network returns a tensor without an autograd graph to x; remove "
                "torch.no_grad, inference_mode and detach from it (a constant c is c + 0 x)"
            )
        if not self.variance:
            return result, None
        value, v = result.chunk(2, dim=1)
        return value, (v + 1) / 2

    def _takes(self, name: str) -> bool:
        """Whether the network has an input of this name, or any keyword."""
        taken = signature(self.net.forward).parameters
        return name in taken or any(p.kind is Parameter.VAR_KEYWORD for p in taken.values())

    def _unknown(self, name: str) -> str:
        """The message for a condition that the model does not have."""
        if self._takes(name):
            return f"{name}: this input of the network itself takes a tensor"
        names = [*self.conditions, *(["label"] if self.classes is not None else [])]
        if not names:
            return f"{name}: this model was trained without conditions; leave it out"
        return f"{name}: this model has no such condition; {nearest(name, names)}"


@dataclass(frozen=True)
class Bound:
    """The prediction (7) of a model with what its network is told, for all samples or for each."""

    model: ScoreModel
    given: dict[str, Tensor | None]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.both(x, t)[0]

    def both(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """x0_hat and the mix of a learned reverse variance, in one call."""
        model = self.model
        c = _coefficients(model.parameterization, model.sde, t)
        return _predicted(model, c, x, _spread(self.given, x), 1)[0]

    def variance_mix(self, x: Tensor, t: Tensor) -> Tensor:
        """The mix of the learned reverse variance, shaped like ``x``."""
        mix = self.both(x, t)[1]
        assert mix is not None
        return mix

    def among(self, rows: Tensor) -> Bound:
        """The prediction for some samples of the batch."""
        own = _batch(self.given)
        return Bound(
            self.model,
            {
                name: c if c is None or not c.ndim or len(c) != own else c[rows]
                for name, c in self.given.items()
            },
        )


def predictions(bounds: Sequence[Bound], x: Tensor, t: Tensor) -> list[Tensor]:
    """x0_hat of one model under several conditions, by one network call for all of them."""
    return [x0_hat for x0_hat, _ in both(bounds, x, t)]


def both(bounds: Sequence[Bound], x: Tensor, t: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    """``predictions``, each with the mix of its variance for a model that learns one.

    A network of a program's own that is told different things is called for each.
    """
    model = bounds[0].model
    c = _coefficients(model.parameterization, model.sde, t)
    each = [_spread(bound.given, x) for bound in bounds]
    told = each[0] if len(each) == 1 else _stacked(each, len(x), model.classes)
    calls = [(one, 1) for one in each] if told is None else [(told, len(each))]
    return [pair for some, n in calls for pair in _predicted(model, c, x, some, n)]


def _predicted(
    model: ScoreModel, c: Coeffs | Known, x: Tensor, told: dict[str, Tensor | None], copies: int
) -> list[tuple[Tensor, Tensor | None]]:
    """x0_hat and mix of ``copies`` batches, by one evaluation."""
    value, mix = model.outputs(c, x, told, copies)
    x0_hats = _x0_hats(c, x, value, copies)
    if mix is None:
        return [(x0_hat, None) for x0_hat in x0_hats]
    return list(zip(x0_hats, mix.to(x).chunk(copies), strict=True))


def _coefficients(parameterization: Parameterization, sde: SDE, t: Tensor) -> Coeffs | Known:
    """The coefficients of (7); those of one time on the host are computed once."""
    host = t.ndim == 0 and t.device.type == "cpu" and not t.requires_grad
    if not host or torch.compiler.is_compiling() or not isinstance(parameterization, Hashable):
        return parameterization(sde, t)
    if torch._C._functorch.is_functorch_wrapped_tensor(t):
        return parameterization(sde, t)
    return _known(parameterization, sde, float(t))


@lru_cache(maxsize=4096)
def _known(parameterization: Parameterization, sde: SDE, t: float) -> Known:
    c = parameterization(sde, torch.tensor(t, dtype=torch.float64))
    inp = float(c.inp)
    return Known(float(c.skip), float(c.out), 1.0 if abs(inp - 1) < 1e-15 else inp, float(c.noise))


def _x0_hats(c: Coeffs | Known, x: Tensor, value: Tensor, copies: int) -> list[Tensor]:
    """x0_hat (7) of ``copies`` outputs for x, one batch after the other."""
    parts = value.to(x).chunk(copies) if copies > 1 else [value.to(x)]
    if isinstance(c, Known):
        kept = torch.mul(x, c.skip)
        return [torch.add(kept, part, alpha=c.out) for part in parts]
    skipped, out = match(c.skip, x) * x, match(c.out, x)
    return [skipped + out * part for part in parts]


def _beside(
    told: Mapping[str, Tensor | None], estimate: Tensor, net: nn.Module
) -> dict[str, Tensor | None]:
    """What is told, with an estimate of x0 after the pictures; zeros where none are given."""
    n, channels, *size = estimate.shape
    pictures = told.get("concat")
    if pictures is None:
        others = getattr(net, "concat", channels) - channels
        pictures = estimate.new_zeros(n, max(others, 0), *size)
    return {**told, "concat": torch.cat([pictures.to(estimate), estimate], 1)}


def _stacked(
    each: Sequence[dict[str, Tensor | None]], n: int, classes: int | None
) -> dict[str, Tensor | None] | None:
    """What several calls of n samples are told, for one call; None if that is not possible."""
    names = {name for told in each for name, y in told.items() if y is not None}
    stacked: dict[str, Tensor | None] = {}
    for name in names:
        found = [told.get(name) for told in each]
        if name == "label" and classes is not None:
            given = next(y for y in found if y is not None)
            found = [torch.full_like(given, classes) if y is None else y for y in found]
        parts = [y for y in found if y is not None and y.ndim and len(y) == n]
        if len(parts) < len(each) or len({y.shape for y in parts}) > 1:
            return None
        stacked[name] = torch.cat(parts)
    return stacked


def _batch(told: Mapping[str, Tensor | None]) -> int | None:
    """The number of samples with a condition of their own; None if there are none."""
    own = (len(c) for c in told.values() if c is not None and c.ndim and len(c) > 1)
    return next(own, None)


def _spread(told: Mapping[str, Tensor | None], x: Tensor) -> dict[str, Tensor | None]:
    """What is told, with one value for each sample of ``x``, on its device.

    Inputs of a network of a program's own stay as they are, but ``label``. Raises ValueError for
    values of another number of samples.
    """
    found: dict[str, Tensor | None] = {}
    for name, y in told.items():
        if y is not None and name in _SPREAD:
            y = y[None] if y.ndim == 0 else y
            if len(y) not in (1, len(x)):
                what = "labels" if name == "label" else "values"
                raise ValueError(f"{name}: {len(y)} {what} for a batch of {len(x)} samples")
            y = sent(y, x.device).expand(len(x), *y.shape[1:])
        found[name] = y
    return found


_SPREAD = frozenset(("label", *Joined._fields))


def _places(label: Label, classes: int | None) -> Tensor:
    """Labels as int64, 0-dim or (B,), checked; the network has its own label for no class."""
    places = torch.as_tensor(label)
    if places.is_floating_point() or places.is_complex() or places.dtype == torch.bool:
        raise TypeError(f"label: need places of classes, integers, got {places.dtype}")
    if places.ndim > 1:
        raise ValueError(f"label: need one number or one a sample, got {tuple(places.shape)}")
    places = places.long()
    if places.numel() and not (
        int(places.min()) >= 0 and (classes is None or int(places.max()) < classes)
    ):
        allowed = "0 and up" if classes is None else f"0 to {classes - 1}"
        bad = places[(places < 0) | (places >= (classes or places.max() + 1))][0]
        raise ValueError(f"label: need places of classes, {allowed}, got {int(bad)}")
    return places


def _per_sample(value: Tensor, x: Tensor) -> Tensor:
    """One value per sample of ``x``, on its device."""
    value = sent(value, x.device)
    return value.repeat(len(x)) if value.ndim == 0 else value
