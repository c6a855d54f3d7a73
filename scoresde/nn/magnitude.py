"""Magnitude-preserving layers, without biases and group norms.

The magnitude, or size, is the root mean square. Only the direction of a weight matters;
``normalise`` resets its size to 1 after each update, so the effective learning rate is constant.
Equation numbers refer to Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv
2312.02696.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.nn.blocks import attend
from scoresde.nn.cross import readable
from scoresde.nn.embeddings import check_counts, gaussian_fourier, positions, sinusoidal

RESIDUAL = 0.3
"""The weight of a branch in its sum with the trunk."""
_TINY = 1e-12
_FLOOR = 1e-8


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596, of unit size for unit normal x. Eq. 81."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2), of unit size for uncorrelated a, b. Eq. 88."""
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """The concatenation of Na channels a and Nb channels b, of unit size if a and b are.

        sqrt((Na + Nb) / ((1 - t)^2 + t^2)) [(1 - t) a / sqrt(Na), t b / sqrt(Nb)]

    They contribute (1 - t)^2 : t^2 to the sum of squares. Eq. 103.
    """
    na, nb = a.shape[1], b.shape[1]
    size = math.sqrt(na + nb) / math.hypot(1 - t, t)
    return torch.cat([size * (1 - t) / math.sqrt(na) * a, size * t / math.sqrt(nb) * b], dim=1)


def pixel_norm(x: Tensor, dim: int = 1) -> Tensor:
    """x divided by its size along ``dim``, the channels of a pixel. Eq. 30."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # squares of half precision overflow
    return (wide * torch.rsqrt(wide.square().mean(dim, keepdim=True) + _FLOOR)).to(x.dtype)


class MPLinear(nn.Module):
    """y_i = W_i x / |W_i| on the last dimension of (..., inputs). Eq. 47 and 66."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_drawn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _direction(self.weight))


class MPConv(nn.Module):
    """The convolution of (B, inputs, H, W) by W_i / |W_i| of odd size. Eq. 47 and 66."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_drawn(outputs, inputs, kernel, kernel))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, _direction(self.weight), padding=self.weight.shape[-1] // 2)


@torch.no_grad()
def normalise(net: nn.Module) -> None:
    """Scale the weights of all magnitude-preserving layers to unit size; no output changes.

    This is forced weight normalisation (algorithm 1), after each update of the optimiser instead
    of before it, so that the averages see normalised weights.
    """
    for layer in net.modules():
        if isinstance(layer, MPLinear | MPConv):
            layer.weight.copy_(_unit(layer.weight))


class MPAttention(nn.Module):
    """mp_sum(x, project(attention(x)), 0.3) over the pixels of (B, C, H, W).

    Queries, keys and values have unit size, so the logits of a head are at most the square root of
    its channels. Raises ValueError unless ``head_channels`` divides the channels.
    """

    def __init__(self, channels: int, *, head_channels: int) -> None:
        super().__init__()
        if head_channels < 1 or channels % head_channels:
            raise ValueError(
                f"head_channels={head_channels} does not divide the {channels} channels to "
                "attend over"
            )
        self.heads = channels // head_channels
        self.qkv = MPConv(channels, 3 * channels, 1)
        self.project = MPConv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.qkv(x).flatten(2)
        qkv = torch.unflatten(pixels, 1, (3, self.heads, -1))  # (B, 3, heads, d, H W)
        q, k, v = pixel_norm(qkv, 3).transpose(3, 4).unbind(1)
        mixed = attend(q, k, v).transpose(2, 3).reshape(x.shape)
        return mp_sum(x, self.project(mixed), RESIDUAL)


class MPCrossAttention(nn.Module):
    """x + gain project(attention(x, context)): the pixels attend to a sequence.

    x is (B, C, H, W), ``context`` (B, L, width) and ``mask`` (B, L) as in ``CrossAttention`` with
    its positions. The gain is learned and initially zero. Raises ValueError as ``MPAttention``
    does.
    """

    def __init__(self, channels: int, width: int, *, head_channels: int) -> None:
        super().__init__()
        if head_channels < 1 or channels % head_channels:
            raise ValueError(
                f"head_channels={head_channels} does not divide the {channels} channels that "
                "attend"
            )
        self.heads, self.width = channels // head_channels, width
        self.query = MPConv(channels, channels, 1)
        self.key_value = MPLinear(width, 2 * channels)
        self.project = MPConv(channels, channels, 1)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        context, keys = readable(x, context, mask, self.width)
        place = positions(x.shape[2], x.shape[3], x.movedim(1, -1)).T.reshape(x.shape[1:])
        q = torch.unflatten(self.query(x + place).flatten(2), 1, (self.heads, -1)).transpose(2, 3)
        kv = torch.unflatten(self.key_value(context), 2, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k, v = (pixel_norm(each, 3) for each in (q, k, v))
        mixed = attend(q, k, v, keys).transpose(2, 3).reshape(x.shape)
        if mask is not None:
            mixed = mixed * mask.any(1)[:, None, None, None]
        return torch.addcmul(x, self.gain, self.project(mixed))


class MPConditioning(nn.Module):
    """One vector of noise, class, augmentation and embedding, (B, ...) each -> (B, out).

        silu(mp_sum(W f, V one_hot(label), 0.5)),   f = sqrt 2 (sin(w noise), cos(w noise))

    f has unit size. Its frequencies are random as in eq. 75, with two phases each instead of a
    random one, or geometric (``fourier=False``). Labels are as in ``Conditioning``. Augmentation,
    which the paper lacks, is added to f by a linear map with an initial gain of zero. An embedding
    (B, embed) of unit size is joined by a second mp_sum like that of the label.
    """

    def __init__(
        self,
        features: int,
        out: int,
        *,
        fourier: bool = True,
        classes: int | None = None,
        augments: int | None = None,
        embed: int | None = None,
    ) -> None:
        super().__init__()
        check_counts(classes, augments, embed)
        self.classes = classes
        self.features = gaussian_fourier(features, scale=1.0) if fourier else sinusoidal(features)
        self.noise = MPLinear(features, out)
        self.labels = None if classes is None else MPLinear(classes + 1, out)
        self.augments = None if augments is None else MPLinear(augments, features)
        self.augment_gain = None if augments is None else nn.Parameter(torch.zeros(()))
        self.embed = None if embed is None else MPLinear(embed, out)

    def forward(
        self,
        noise: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
        embed: Tensor | None = None,
    ) -> Tensor:
        """Raises ValueError for an input that the network was not built for."""
        features = math.sqrt(2) * self.features(noise)
        if augment is not None:
            features = features + self._augmented(augment)
        vector = self._add_label(self.noise(features), label)
        if embed is not None:
            if self.embed is None:
                raise ValueError(
                    "network built without embed: pass embed=None or build it with embed=n"
                )
            vector = mp_sum(vector, self.embed(embed), 0.5)
        return mp_silu(vector)

    def _add_label(self, h: Tensor, label: Tensor | None) -> Tensor:
        if self.labels is not None and self.classes is not None:
            if label is None:
                label = torch.full((h.shape[0],), self.classes, device=h.device)
            rows = math.sqrt(self.classes + 1) * F.one_hot(label.long(), self.classes + 1).to(h)
            return mp_sum(h, self.labels(rows), 0.5)
        if label is not None:
            raise ValueError(
                "network built without classes: pass label=None or build it with classes=n"
            )
        return h

    def _augmented(self, augment: Tensor) -> Tensor:
        if self.augments is None:
            raise ValueError(
                "network built without augments: pass augment=None or build it with augments=n"
            )
        added: Tensor = self.augment_gain * self.augments(augment)
        return added


def _direction(weight: Tensor) -> Tensor:
    """Each weight[i] divided by its norm."""
    norm: Tensor = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
    return weight / norm.clamp_min(_TINY)


def _unit(weight: Tensor) -> Tensor:
    """Each weight[i] divided by its size."""
    return math.sqrt(math.prod(weight.shape[1:])) * _direction(weight)


def _drawn(*shape: int) -> Tensor:
    return _unit(torch.randn(*shape))
