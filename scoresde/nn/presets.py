"""Published networks of the DDPM family, as settings of one U-Net: docs/networks.md."""

from __future__ import annotations

from typing import Annotated

from scoresde.arguments import Count, Even, Fraction, Natural, Positive, Range
from scoresde.nn.concat import ConcatUNet
from scoresde.nn.embeddings import Conditioning, LateConditioning
from scoresde.nn.resample import Resampling, fir
from scoresde.nn.residual import Modulated, Style, half_power, xavier


def ddpmpp(
    channels: int,
    *,
    width: Count = 128,
    multipliers: Annotated[tuple[Count, ...], Range(length=1)] = (1, 2, 2, 2),
    blocks: Count = 4,
    attention: tuple[Natural, ...] = (1,),
    head_channels: Count | None = None,
    embedding: Even | None = None,
    fourier: bool = False,
    classes: int | None = None,
    augments: int | None = None,
    dropout: Fraction = 0.1,
    outputs: int | None = None,
    recompute: bool = False,
) -> ConcatUNet:
    """DDPM++: every skip over sqrt 2, sizes changed inside residual blocks by 2 x 2 boxes.

    The noise level is added to every block. embedding: noise features, ``width`` if None;
    head_channels: of each head of the attention, None for one head; the rest as in ``ConcatUNet``
    and ``Conditioning``. Raises ValueError for sizes that do not fit. Score-Based Generative
    Modeling through SDEs, arXiv 2011.13456, appendix H; EDM, arXiv 2206.00364, table 7.

    Args:
        width: channels at full resolution.
        multipliers: channels of every resolution, in units of width.
        blocks: residual blocks at every resolution.
        attention: resolutions with self-attention, 0 for the full one.
        head_channels: channels of each head of the attention; null: one head.
        embedding: features of the noise level; null: as many as the width.
        fourier: embed the noise level by random frequencies instead of geometric ones.
        dropout: probability of dropout within each block.
        recompute: compute the blocks again in the backward pass instead of keeping their
            activations: less memory, about a third more time.
    """
    features = width + width % 2 if embedding is None else embedding
    return ConcatUNet(
        channels,
        Conditioning(features, 4 * width, fourier=fourier, classes=classes, augments=augments),
        _rescaled(width, fir(), head_channels, dropout),
        width=width,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        attend_once=True,
        outputs=outputs,
        recompute=recompute,
    )


def ncsnpp(
    channels: int,
    *,
    width: Count = 128,
    multipliers: Annotated[tuple[Count, ...], Range(length=1)] = (1, 2, 2, 2),
    blocks: Count = 4,
    attention: tuple[Natural, ...] = (1,),
    head_channels: Count | None = None,
    embedding: Even | None = None,
    fourier: bool = True,
    classes: int | None = None,
    augments: int | None = None,
    dropout: Fraction = 0.1,
    outputs: int | None = None,
    taps: Annotated[tuple[Positive, ...], Range(length=2)] = (1, 3, 3, 1),
    recompute: bool = False,
) -> ConcatUNet:
    """NCSN++: DDPM++ with smooth resampling, random frequencies and the picture at every level.

    taps: of the filter; embedding: noise features, ``2 * width`` if None; the rest as in
    ``ddpmpp``. Raises ValueError for sizes that do not fit. Score-Based Generative Modeling
    through SDEs, arXiv 2011.13456, appendix H; EDM, arXiv 2206.00364, table 7.

    Args:
        width: channels at full resolution.
        multipliers: channels of every resolution, in units of width.
        blocks: residual blocks at every resolution.
        attention: resolutions with self-attention, 0 for the full one.
        head_channels: channels of each head of the attention; null: one head.
        embedding: features of the noise level; null: twice as many as the width.
        fourier: embed the noise level by random frequencies instead of geometric ones.
        dropout: probability of dropout within each block.
        taps: weights of the filter that halves and doubles pictures: symmetric, of even number.
        recompute: compute the blocks again in the backward pass instead of keeping their
            activations: less memory, about a third more time.
    """
    features = 2 * width if embedding is None else embedding
    return ConcatUNet(
        channels,
        Conditioning(features, 4 * width, fourier=fourier, classes=classes, augments=augments),
        _rescaled(width, fir(taps), head_channels, dropout),
        width=width,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        attend_once=True,
        picture=taps,
        outputs=outputs,
        recompute=recompute,
    )


def adm(
    channels: int,
    *,
    width: Count = 192,
    multipliers: Annotated[tuple[Count, ...], Range(length=1)] = (1, 2, 3, 4),
    blocks: Count = 3,
    attention: tuple[Natural, ...] = (1, 2, 3),
    head_channels: Count | None = 64,
    embedding: Even | None = None,
    fourier: bool = False,
    classes: int | None = None,
    augments: int | None = None,
    dropout: Fraction = 0.1,
    outputs: int | None = None,
    recompute: bool = False,
) -> ConcatUNet:
    """ADM: the noise level scales and shifts every block, attention on three levels.

    Its defaults are those of ImageNet at 64 x 64 pixels. embedding: noise features, ``width`` if
    None; the rest as in ``ddpmpp``. Raises ValueError for sizes that do not fit.
    Diffusion Models Beat GANs on Image Synthesis, arXiv 2105.05233, section 3.1 and table 11.

    Args:
        width: channels at full resolution.
        multipliers: channels of every resolution, in units of width.
        blocks: residual blocks at every resolution.
        attention: resolutions with self-attention, 0 for the full one.
        head_channels: channels of each head of the attention; null: one head.
        embedding: features of the noise level; null: as many as the width.
        fourier: embed the noise level by random frequencies instead of geometric ones.
        dropout: probability of dropout within each block.
        recompute: compute the blocks again in the backward pass instead of keeping their
            activations: less memory, about a third more time.
    """
    features = width + width % 2 if embedding is None else embedding
    style = Style(
        4 * width, fir(), conditioned=Modulated, head_channels=head_channels, dropout=dropout
    )
    return ConcatUNet(
        channels,
        LateConditioning(features, 4 * width, fourier=fourier, classes=classes, augments=augments),
        style,
        width=width,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        outputs=outputs,
        recompute=recompute,
    )


def _rescaled(
    width: int, resampling: Resampling, head_channels: int | None, dropout: float
) -> Style:
    """Every sum over sqrt 2: norms see small maps at the start, and get a smaller eps."""
    return Style(
        4 * width,
        resampling,
        merge=half_power,
        project=True,
        head_channels=head_channels,
        start=xavier,
        dropout=dropout,
        eps=1e-6,
    )
