"""The sections of a model: its data, process, parameterisation and network."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scoresde.config.base import (
    Channels,
    Choice,
    Count,
    Even,
    Fraction,
    Positive,
    Real,
    Section,
    Whole,
    increasing,
)

# Data ---------------------------------------------------------------------------------------


class DigitsData(Section):
    """scikit-learn's digits, 8 x 8 pixels of 17 levels."""

    kind: Literal["digits"] = "digits"


class FileData(Section):
    """The four idx files of the MNIST family, or the sheets of the CIFAR-10 subset."""

    kind: Literal["idx", "cifar_subset"] = "idx"
    path: str | None = None
    """folder with the files"""


class FolderData(Section):
    """Pictures in a folder or a zip archive; its sub-folders are the classes."""

    kind: Literal["folder"] = "folder"
    path: str | None = None
    """folder with the pictures, or a .zip of them, which is not extracted"""
    size: Count | None = None
    """side of the square they are cropped and resized to; null takes them as they are"""
    channels: Channels | None = None
    """1 grey, 3 colour; null takes them as they are"""
    holdout: Annotated[Real, Field(gt=0, lt=1)] = 0.1
    """share for the test split, where there are no folders train/ and test/"""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """of that choice"""
    on_error: Literal["raise", "skip"] = "raise"
    """skip leaves damaged pictures out and counts them"""
    cache: str | None = None
    """folder where the decoded pictures are kept, to be mapped into memory; null keeps them in
    memory only"""


class ArraysData(Section):
    """Arrays in an .npz or .npy file, or in a folder of .npz files."""

    kind: Literal["arrays"] = "arrays"
    path: str | None = None
    """the file, or the folder"""
    levels: Annotated[Whole, Field(ge=2)] | None = None
    """number of pixel levels; null: 256 for uint8, none for real numbers"""
    layout: Literal["NHW", "NHWC", "NCHW"] | None = None
    """order of the axes; null: the one that fits"""
    standardise: bool = True
    """scale real numbers to mean 0 and deviation 1, feature by feature"""
    holdout: Annotated[Real, Field(gt=0, lt=1)] = 0.1
    """share for the test split, where the file holds none"""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """of that choice"""
    cache: str | None = None
    """folder where the examples are kept as training takes them, to be mapped into memory; null
    keeps them in memory only"""


class ToyData(Section):
    """A density in the plane."""

    kind: Literal["moons", "checkerboard", "swiss_roll", "gaussians25"] = "moons"
    train: Count = 20_000
    """training points"""
    test: Count = 2_000
    """test points"""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """of the points"""


Data = Annotated[DigitsData | FileData | FolderData | ArraysData | ToyData, Choice]


# Process and parameterisation ---------------------------------------------------------------


class TimedSDE(Section):
    """A process with its cut-offs of time."""

    t_min: Positive
    """where training and likelihoods stop"""
    t_eps: Positive
    """where samplers stop"""
    t_max: Positive
    """where the prior is reached"""

    @model_validator(mode="after")
    def _ordered_times(self) -> Self:
        increasing(self, "t_min", "t_eps", strict=False)
        increasing(self, "t_eps", "t_max")
        return self


class LinearBetaSDE(TimedSDE):
    """The (sub-)variance-preserving process with linear beta(t)."""

    kind: Literal["vp", "sub_vp"] = "vp"
    beta_min: Positive = 0.1
    beta_max: Positive = 20.0
    t_min: Positive = 1e-5
    t_eps: Positive = 1e-3
    t_max: Positive = 1.0

    @model_validator(mode="after")
    def _ordered_betas(self) -> Self:
        increasing(self, "beta_min", "beta_max")
        return self


class VarianceExplodingSDE(TimedSDE):
    """The variance-exploding process with geometric sigma(t)."""

    kind: Literal["ve"] = "ve"
    sigma_min: Positive = 0.01
    sigma_max: Positive = 50.0
    t_min: Positive = 1e-5
    t_eps: Positive = 1e-5
    t_max: Positive = 1.0

    @model_validator(mode="after")
    def _ordered_sigmas(self) -> Self:
        increasing(self, "sigma_min", "sigma_max")
        return self


class EDMSDE(TimedSDE):
    """The process of EDM, where time is the noise level."""

    kind: Literal["edm"] = "edm"
    t_min: Positive = 0.002
    t_eps: Positive = 0.002
    t_max: Positive = 80.0


class CosineSDE(TimedSDE):
    """The variance-preserving process with a cosine alpha."""

    kind: Literal["cosine"] = "cosine"
    s: Positive = 0.008
    """offset of the schedule"""
    t_min: Positive = 1e-5
    t_eps: Positive = 1e-3
    t_max: Annotated[Real, Field(gt=0, lt=1)] = 0.9946


class LinearFlowSDE(TimedSDE):
    """The straight path of flow matching."""

    kind: Literal["linear_flow"] = "linear_flow"
    t_min: Positive = 1e-3
    t_eps: Positive = 1e-3
    t_max: Annotated[Real, Field(gt=0, lt=1)] = 0.999


class DiscreteSDE(Section):
    """The linear variance table of DDPM."""

    kind: Literal["discrete_vp"] = "discrete_vp"
    levels: Annotated[Whole, Field(ge=2, le=1_000_000)] = 1000
    """length of the table"""
    beta_start: Annotated[Real, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[Real, Field(gt=0, lt=1)] = 0.02

    @model_validator(mode="after")
    def _ordered_betas(self) -> Self:
        increasing(self, "beta_start", "beta_end", strict=False)
        return self


Process = Annotated[
    LinearBetaSDE | VarianceExplodingSDE | EDMSDE | CosineSDE | LinearFlowSDE | DiscreteSDE, Choice
]


class PlainParameterization(Section):
    """What the network's output means."""

    kind: Literal["eps", "x0", "v", "score", "flow"] = "eps"


class EDMParameterization(Section):
    """The preconditioning of EDM."""

    kind: Literal["edm"] = "edm"
    sigma_data: Positive = 0.5
    """standard deviation of the scaled data"""


Parameterization = Annotated[PlainParameterization | EDMParameterization, Choice]


# Network ------------------------------------------------------------------------------------


class Network(Section):
    """What all networks have."""

    width: Count
    """channels at full resolution, or hidden units"""
    embedding: Even | None
    """features of the noise level"""
    fourier: bool = False
    """random instead of geometric frequencies"""
    dropout: Fraction = 0.1
    """probability within each block"""


class MLPNetwork(Network):
    """A residual multilayer perceptron, for vectors."""

    kind: Literal["mlp"] = "mlp"
    width: Count = 256
    embedding: Even = 64
    depth: Count = 4
    """residual blocks"""
    dropout: Fraction = 0.0


class ImageNetwork(Network):
    """What all U-Nets have."""

    multipliers: Annotated[tuple[Count, ...], Field(min_length=1)]
    """channels of each level in units of width"""
    blocks: Count
    """residual blocks a level"""
    attention: tuple[Annotated[Whole, Field(ge=0)], ...]
    """levels with self-attention, 0 the full resolution"""
    head: Literal["value", "levels"] = "value"
    """levels: the logits of the levels, whose mean given the noisy pixels is x0"""
    recompute: bool = False
    """compute the blocks again in the backward pass instead of keeping what they made: less
    memory, about a third more time"""

    @model_validator(mode="after")
    def _attention_exists(self) -> Self:
        for level in self.attention:
            if level >= len(self.multipliers):
                raise ValueError(
                    f"attention={level} is no level of multipliers={self.multipliers}, "
                    f"which has levels 0 to {len(self.multipliers) - 1}"
                )
        return self


class UNetNetwork(ImageNetwork):
    """A U-Net, for images."""

    kind: Literal["unet"] = "unet"
    width: Count = 64
    embedding: Even = 64
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2)
    blocks: Count = 2
    attention: tuple[Annotated[Whole, Field(ge=0)], ...] = (1,)
    heads: Count = 4
    """of the attention"""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        for level in self.attention:
            if (channels := self.width * self.multipliers[level]) % self.heads:
                raise ValueError(
                    f"heads={self.heads} does not divide the {channels} channels "
                    f"(width={self.width}) at attention={level}"
                )
        return self


class ConcatNetwork(ImageNetwork):
    """What the networks of the DDPM family have."""

    width: Count = 128
    embedding: Even | None = None
    """features of the noise level; null: as many as the width, twice as many for ncsnpp"""
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 2, 2)
    blocks: Count = 4
    attention: tuple[Annotated[Whole, Field(ge=0)], ...] = (1,)
    head_channels: Count | None = None
    """of each head of the attention; null: one head"""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        attending = {*self.attention, len(self.multipliers) - 1}  # the middle attends too
        for channels in {self.width * self.multipliers[level] for level in attending}:
            if self.head_channels is not None and channels % self.head_channels:
                raise ValueError(
                    f"head_channels={self.head_channels} does not divide the {channels} channels "
                    f"(width={self.width}) that attention runs over"
                )
        return self


class DDPMppNetwork(ConcatNetwork):
    """DDPM++, for images."""

    kind: Literal["ddpmpp"] = "ddpmpp"


class NCSNppNetwork(ConcatNetwork):
    """NCSN++, for images."""

    kind: Literal["ncsnpp"] = "ncsnpp"
    fourier: bool = True
    taps: Annotated[tuple[Positive, ...], Field(min_length=2)] = (1, 3, 3, 1)
    """of the filter that halves and doubles images: symmetric, of even number"""

    @model_validator(mode="after")
    def _taps_fit(self) -> Self:
        if len(self.taps) % 2 or self.taps != self.taps[::-1]:
            raise ValueError(
                f"need an even number of symmetric taps, got taps={self.taps}; such as 1,3,3,1"
            )
        return self


class ADMNetwork(ConcatNetwork):
    """ADM, for images."""

    kind: Literal["adm"] = "adm"
    width: Count = 192
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 3, 4)
    blocks: Count = 3
    attention: tuple[Annotated[Whole, Field(ge=0)], ...] = (1, 2, 3)
    head_channels: Count | None = 64


class EDM2Network(ImageNetwork):
    """EDM2's magnitude-preserving U-Net, for images."""

    kind: Literal["edm2"] = "edm2"
    width: Count = 128
    """channels at full resolution; the paper's XS to XXL are 128, 192, 256, 320, 384 and 448"""
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 3, 4)
    blocks: Count = 3
    attention: tuple[Annotated[Whole, Field(ge=0)], ...] = (2, 3)
    head_channels: Count = 64
    """of each head of the attention"""
    embedding: Even | None = None
    """features of the noise level; null: as many as the width"""
    fourier: bool = True
    dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        for level in self.attention:
            if (channels := self.width * self.multipliers[level]) % self.head_channels:
                raise ValueError(
                    f"head_channels={self.head_channels} does not divide the {channels} channels "
                    f"(width={self.width}) at attention={level}"
                )
        return self


class DiTNetwork(Network):
    """A diffusion transformer, for images."""

    kind: Literal["dit"] = "dit"
    width: Annotated[Count, Field(multiple_of=4)] = 384
    """channels of a token; with depth and heads the paper's S is 384, 12, 6, B 768, 12, 12, L
    1024, 24, 16, XL 1152, 28, 16"""
    depth: Count = 12
    """blocks"""
    heads: Count = 6
    """of the attention"""
    patch: Count = 2
    """side of the square that becomes a token"""
    embedding: Even = 256
    dropout: Fraction = 0.0
    head: Literal["value", "levels"] = "value"
    """levels: the logits of the levels, whose mean given the noisy pixels is x0"""
    recompute: bool = False
    """compute the blocks again in the backward pass instead of keeping what they made: less
    memory, about a third more time"""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        return self


NetworkChoice = Annotated[
    MLPNetwork
    | UNetNetwork
    | DDPMppNetwork
    | NCSNppNetwork
    | ADMNetwork
    | EDM2Network
    | DiTNetwork,
    Choice,
]
