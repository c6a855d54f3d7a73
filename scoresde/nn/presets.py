"""Published networks of the DDPM family, as settings of ``ConcatUNet``: docs/networks.md."""

from __future__ import annotations

from scoresde.arguments import Count, Even, Fraction, Natural, Positive, check
from scoresde.nn.concat import ConcatUNet
from scoresde.nn.embeddings import Conditioning, LateConditioning
from scoresde.nn.resample import Resampling, fir
from scoresde.nn.residual import Modulated, Shifted, Style, half_power, xavier
from scoresde.nn.unet import Several


def ddpmpp(
    channels: Count,
    *,
    width: Count = 128,
    multipliers: Several = (1, 2, 2, 2),
    blocks: Count = 4,
    attention: tuple[Natural, ...] = (1,),
    head_channels: Count | None = None,
    embedding: Even | None = None,
    fourier: bool = False,
    classes: Count | None = None,
    augments: Count | None = None,
    dropout: Fraction = 0.1,
    outputs: Count | None = None,
    embed: Count | None = None,
    context: Count | None = None,
    concat: Natural = 0,
    indexed: bool = False,
    recompute: bool = False,
) -> ConcatUNet:
    """DDPM++: sums divided by sqrt 2, and residual blocks that resample by 2 x 2 boxes.

    The condition is added in every block. Raises ValueError for sizes that do not fit.
    Score-Based Generative Modeling through SDEs, arXiv 2011.13456, appendix H; EDM, arXiv
    2206.00364, table 7.

    Args:
        channels: channels of the input.
        width: channels at full resolution.
        multipliers: channels at each resolution, in units of the width.
        blocks: residual blocks at each resolution.
        attention: resolutions with self-attention; 0 is the full resolution.
        head_channels: channels of each head of the self-attention; None for one head.
        embedding: features of the noise level; None for the width.
        fourier: draw the frequencies of the noise features at random.
        classes: number of classes; None without labels.
        augments: number of augmentation labels; None without.
        dropout: probability of dropout in each block.
        outputs: output channels; None for those of the input.
        embed: length of an embedding of what is said; None without.
        context: width of a sequence to attend to, such as a text; None without.
        concat: channels of pictures that are given beside the input.
        indexed: the noise is told as a place in a table of levels, with the frequencies of DDPM.
        recompute: run the blocks again in the backward pass: less memory, a third more time.
    """
    check(ddpmpp, locals())
    features = width + width % 2 if embedding is None else embedding
    return ConcatUNet(
        channels,
        Conditioning(
            features,
            4 * width,
            fourier=fourier,
            indexed=indexed,
            classes=classes,
            augments=augments,
            embed=embed,
        ),
        _rescaled(width, fir(), head_channels, dropout, context),
        width=width,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        attend_once=True,
        concat=concat,
        outputs=outputs,
        recompute=recompute,
    )


def ncsnpp(
    channels: Count,
    *,
    width: Count = 128,
    multipliers: Several = (1, 2, 2, 2),
    blocks: Count = 4,
    attention: tuple[Natural, ...] = (1,),
    head_channels: Count | None = None,
    embedding: Even | None = None,
    fourier: bool = True,
    classes: Count | None = None,
    augments: Count | None = None,
    dropout: Fraction = 0.1,
    outputs: Count | None = None,
    embed: Count | None = None,
    context: Count | None = None,
    concat: Natural = 0,
    taps: tuple[Positive, ...] = (1, 3, 3, 1),
    indexed: bool = False,
    recompute: bool = False,
) -> ConcatUNet:
    """NCSN++: DDPM++ with smooth resampling, random frequencies, and the input at all resolutions.

    Raises ValueError for sizes that do not fit. Score-Based Generative Modeling through SDEs,
    arXiv 2011.13456, appendix H; EDM, arXiv 2206.00364, table 7.

    Args:
        channels: channels of the input.
        width: channels at full resolution.
        multipliers: channels at each resolution, in units of the width.
        blocks: residual blocks at each resolution.
        attention: resolutions with self-attention; 0 is the full resolution.
        head_channels: channels of each head of the self-attention; None for one head.
        embedding: features of the noise level; None for twice the width.
        fourier: draw the frequencies of the noise features at random.
        classes: number of classes; None without labels.
        augments: number of augmentation labels; None without.
        dropout: probability of dropout in each block.
        outputs: output channels; None for those of the input.
        embed: length of an embedding of what is said; None without.
        context: width of a sequence to attend to, such as a text; None without.
        concat: channels of pictures that are given beside the input.
        taps: symmetric filter that halves and doubles images, of an even number of taps.
        indexed: the noise is told as a place in a table of levels, with the frequencies of DDPM.
        recompute: run the blocks again in the backward pass: less memory, a third more time.
    """
    check(ncsnpp, locals())
    features = 2 * width if embedding is None else embedding
    return ConcatUNet(
        channels,
        Conditioning(
            features,
            4 * width,
            fourier=fourier,
            indexed=indexed,
            classes=classes,
            augments=augments,
            embed=embed,
        ),
        _rescaled(width, fir(taps), head_channels, dropout, context),
        width=width,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        attend_once=True,
        picture=taps,
        concat=concat,
        outputs=outputs,
        recompute=recompute,
    )


def adm(
    channels: Count,
    *,
    width: Count = 192,
    multipliers: Several = (1, 2, 3, 4),
    blocks: Count = 3,
    attention: tuple[Natural, ...] = (1, 2, 3),
    head_channels: Count | None = 64,
    embedding: Even | None = None,
    fourier: bool = False,
    classes: Count | None = None,
    augments: Count | None = None,
    dropout: Fraction = 0.1,
    outputs: Count | None = None,
    embed: Count | None = None,
    context: Count | None = None,
    concat: Natural = 0,
    heads: Count | None = None,
    vector: Count | None = None,
    groups: Count | None = None,
    modulated: bool = True,
    strided: bool = False,
    indexed: bool = False,
    recompute: bool = False,
) -> ConcatUNet:
    """ADM: the condition scales and shifts every block, with attention at three resolutions.

    The defaults are for ImageNet at 64 x 64 pixels. Raises ValueError for sizes that do not fit.
    Diffusion Models Beat GANs on Image Synthesis, arXiv 2105.05233, section 3.1 and table 11.

    Args:
        channels: channels of the input.
        width: channels at full resolution.
        multipliers: channels at each resolution, in units of the width.
        blocks: residual blocks at each resolution.
        attention: resolutions with self-attention; 0 is the full resolution.
        head_channels: channels of each head of the self-attention; None for one head.
        embedding: features of the noise level; None for the width.
        fourier: draw the frequencies of the noise features at random.
        classes: number of classes; None without labels.
        augments: number of augmentation labels; None without.
        dropout: probability of dropout in each block.
        outputs: output channels; None for those of the input.
        embed: length of an embedding of what is said; None without.
        context: width of a sequence to attend to, such as a text; None without.
        concat: channels of pictures that are given beside the input.
        heads: heads of the self-attention at every resolution, in place of head_channels.
        vector: numbers of the condition; None for four times the width.
        groups: groups of the norms; None for at most 32, of four channels or more.
        modulated: scale and shift after a norm by the condition; else add it before the norm.
        strided: halve and double by convolutions, as in DDPM; else by residual blocks.
        indexed: the noise is told as a place in a table of levels, with the frequencies of DDPM.
        recompute: run the blocks again in the backward pass: less memory, a third more time.
    """
    check(adm, locals())
    features = width + width % 2 if embedding is None else embedding
    style = Style(
        vector or 4 * width,
        fir(),
        conditioned=Modulated if modulated else Shifted,
        head_channels=head_channels,
        heads=heads,
        dropout=dropout,
        groups=groups,
        strided=strided,
        context=context,
    )
    return ConcatUNet(
        channels,
        LateConditioning(
            features,
            style.condition,
            fourier=fourier,
            indexed=indexed,
            classes=classes,
            augments=augments,
            embed=embed,
        ),
        style,
        width=width,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        concat=concat,
        outputs=outputs,
        recompute=recompute,
    )


def _rescaled(
    width: int,
    resampling: Resampling,
    head_channels: int | None,
    dropout: float,
    context: int | None,
) -> Style:
    """Sums divided by sqrt 2; the maps are initially small, so the norms have a smaller eps."""
    return Style(
        4 * width,
        resampling,
        merge=half_power,
        project=True,
        head_channels=head_channels,
        start=xavier,
        dropout=dropout,
        eps=1e-6,
        context=context,
    )
