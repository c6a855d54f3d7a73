"""How a network's output becomes a denoiser, and the model that is trained and saved.

    x0_hat = skip x + out F(inp x, noise)                                                    (7)

A parameterisation is nothing but the four coefficients. Inputs are scaled to unit size for data
of unit size, and the noise level is given to the network as log(sigma / alpha) / 4 (the coordinate
of EDM), so that one network sees the same numbers under every process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from scoresde.arguments import Positive, check_fields
from scoresde.denoiser import Denoiser
from scoresde.sde import FAINTEST, SDE, match, sent


class Coeffs(NamedTuple):
    """The coefficients of (7), float64, each of the shape of ``t``."""

    skip: Tensor
    out: Tensor
    inp: Tensor
    noise: Tensor


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

    ``net(x, noise, **cond)`` takes the scaled state (B, ...), the noise coordinate (B,) and
    conditions such as ``label`` (B,), and returns F with the shape of ``x``. ``data`` describes
    what it was trained on (name, shape, scaling, classes) and ``config`` is the configuration of
    its run, None where nobody has said. Raises ValueError for a process or a parameterisation
    that is none, such as ``VP`` in place of ``VP()``, or that divides by an alpha of 0.

    With ``variance`` the network has twice the channels, (B, 2 C, ...): after F, the numbers v
    whose (v + 1) / 2 is the mix of the reverse variance, ``Denoiser.variance_mix``. Improved DDPM,
    arXiv 2102.09672, eq. 15.
    """

    data: Any = None
    config: Any = None

    def __init__(
        self,
        net: nn.Module,
        sde: SDE,
        parameterization: Parameterization,
        variance: bool = False,
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

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters(), torch.empty(0)).device

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor | None) -> Tensor:
        """The raw network output F(inp x, noise), in the dtype of the network."""
        return self.evaluate(self.parameterization(self.sde, t), x, cond)

    def denoiser(self, *, label: Label | None = None, **cond: Tensor | None) -> Denoiser:
        """The denoiser (7) with the condition bound; state and network may differ in dtype.

        ``label`` is the place of a class, from 0, of all samples or of each (B,). Raises
        ValueError for places that are none of the network's ``classes``, TypeError for other
        numbers than integers.
        """
        places = None if label is None else _places(label, getattr(self.net, "classes", None))
        if places is not None:  # read while they are on the host, then sent once
            places = sent(places, self.device)

        given = cond if places is None else {**cond, "label": places}
        bound = Bound(self, given)
        mix = bound.variance_mix if self.variance else None
        return Denoiser(self.sde, bound, mix, batch=_batch(given))

    def evaluate(self, c: Coeffs, x: Tensor, cond: Mapping[str, Tensor | None]) -> Tensor:
        """The raw network output F with known coefficients, checked."""
        return self.outputs(c, x, cond)[0]

    def outputs(
        self, c: Coeffs, x: Tensor, cond: Mapping[str, Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """F and the mix of a learned reverse variance, both shaped like ``x``, in one call."""
        dtype = next((p.dtype for p in self.net.parameters()), x.dtype)
        result: Any = self.net(
            (match(c.inp, x) * x).to(dtype), _per_sample(c.noise, x).to(dtype), **cond
        )
        if not isinstance(result, Tensor):
            found = type(result).__name__
            raise OutputError(f"model: its network returns {found}; it has to return a tensor")
        shape = x.shape
        if self.variance and x.ndim > 1:
            shape = torch.Size([len(x), 2 * x.shape[1], *x.shape[2:]])
        if result.shape != shape:  # it would be broadcast without a word
            raise OutputError(
                f"model: its network returns {tuple(result.shape)} for x of shape "
                f"{tuple(x.shape)}; it has to return "
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


@dataclass(frozen=True)
class Bound:
    """The prediction (7) of a model with its conditions, one for all samples or one for each."""

    model: ScoreModel
    given: dict[str, Tensor | None]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.both(x, t)[0]

    def variance_mix(self, x: Tensor, t: Tensor) -> Tensor:
        """The mix of the learned reverse variance, shaped like ``x``."""
        mix: Tensor = self.both(x, t)[1]
        return mix

    def both(self, x: Tensor, t: Tensor) -> tuple[Tensor, Any]:
        """x0_hat and, for a model that learns one, the mix of its variance, in one call."""
        model, given = self.model, self.given
        if (places := given.get("label")) is not None:
            given = {**given, "label": _spread(places, x)}
        c = model.parameterization(model.sde, t)
        value, mix = model.outputs(c, x, given)
        x0_hat = match(c.skip, x) * x + match(c.out, x) * value.to(x)
        return x0_hat, None if mix is None else mix.to(x)

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


def _batch(given: Mapping[str, Tensor | None]) -> int | None:
    """The number of samples with a condition of their own; None if there are none."""
    own = (len(c) for c in given.values() if c is not None and c.ndim and len(c) > 1)
    return next(own, None)


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


def _spread(places: Tensor, x: Tensor) -> Tensor:
    """One place for each sample of ``x``, on its device."""
    if places.ndim == 1 and len(places) != len(x):
        raise ValueError(f"label: {len(places)} labels for a batch of {len(x)} samples")
    return sent(places, x.device).expand(len(x))


def _per_sample(value: Tensor, x: Tensor) -> Tensor:
    """One value per sample of ``x``, on its device."""
    value = sent(value, x.device)
    return value.repeat(len(x)) if value.ndim == 0 else value
