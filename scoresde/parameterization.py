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
from scoresde.sde import SDE, match, sent


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
    t = torch.tensor(sde.t_max, dtype=torch.float64)
    factor = float(parameterization(sde, t).out.abs())
    if factor < 10:
        return None
    name = getattr(parameterization, "__name__", type(parameterization).__name__)
    return (
        f"parameterization {name} multiplies the network's errors by {factor:.3g} at "
        f"t_max={sde.t_max:g}, which may send samples far away from the data; v does not"
    )


def _levels(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha, sigma, sqrt(alpha^2 + sigma^2) and the noise coordinate, in float64."""
    t = t.double()
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return alpha, sigma, sde.norm(t), -sde.lam(t) / 4


class OutputError(ValueError):
    """A network that returns something other than a tensor of the shape of x, with its graph."""


class ScoreModel(nn.Module):
    """What is trained and saved: a network, its process and its parameterisation.

    ``net(x, noise, **cond)`` takes the scaled state (B, ...), the noise coordinate (B,) and
    conditions such as ``label`` (B,), and returns F with the shape of ``x``. ``data`` describes
    what it was trained on (name, shape, scaling, classes, std) and ``config`` is the configuration
    of its run, None where nobody has said. Raises ValueError for a process or a parameterisation
    that is none, such as ``VP`` in place of ``VP()``.
    """

    data: Any = None
    config: Any = None

    def __init__(self, net: nn.Module, sde: SDE, parameterization: Parameterization) -> None:
        super().__init__()
        if not isinstance(sde, SDE):
            raise ValueError(f"sde: need a process, such as VP(), got {sde!r}")
        if isinstance(parameterization, type) or not callable(parameterization):
            raise ValueError(
                "parameterization: need a function, such as v, or edm(0.5), got "
                f"{parameterization!r}"
            )
        self.net = net
        self.sde = sde
        self.parameterization = parameterization

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters(), torch.empty(0)).device

    @property
    def std(self) -> float:
        """Standard deviation of the data in model units, which the default sampler is made for.

        It is that of the training data if ``data`` states it, else ``sigma_data`` of the
        parameterisation, else 1 for real numbers, which are standardised, else 0.5.
        """
        measured = getattr(self.data, "std", None)
        declared = getattr(self.parameterization, "sigma_data", None)
        real = self.data is not None and self.data.scaling.levels is None
        return measured or declared or (1.0 if real else Preconditioned.sigma_data)

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
        return Denoiser(self.sde, Bound(self, given), batch=_batch(given))

    def evaluate(self, c: Coeffs, x: Tensor, cond: Mapping[str, Tensor | None]) -> Tensor:
        """The raw network output with known coefficients, checked."""
        dtype = next((p.dtype for p in self.net.parameters()), x.dtype)
        result: Any = self.net(
            (match(c.inp, x) * x).to(dtype), _per_sample(c.noise, x).to(dtype), **cond
        )
        if not isinstance(result, Tensor):
            found = type(result).__name__
            raise OutputError(f"model: its network returns {found}; it has to return a tensor")
        if result.shape != x.shape:  # it would be broadcast without a word
            raise OutputError(
                f"model: its network returns {tuple(result.shape)} for x of shape "
                f"{tuple(x.shape)}; it has to return the shape of x"
            )
        if torch.is_grad_enabled() and x.requires_grad and not result.requires_grad:
            # The gradient of x0_hat would be that of skip x alone, without a word.
            raise OutputError(
                "model: its network returns a tensor without an autograd graph to x; remove "
                "torch.no_grad, inference_mode and detach from it (a constant c is c + 0 x)"
            )
        return result


@dataclass(frozen=True)
class Bound:
    """The prediction (7) of a model with its conditions, one for all samples or one for each."""

    model: ScoreModel
    given: dict[str, Tensor | None]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        model, given = self.model, self.given
        if (places := given.get("label")) is not None:
            given = {**given, "label": _spread(places, x)}
        c = model.parameterization(model.sde, t)
        return match(c.skip, x) * x + match(c.out, x) * model.evaluate(c, x, given).to(x)

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
