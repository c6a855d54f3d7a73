"""The options each command has besides those of the configuration; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command that computes."""

    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one"""
    debug: bool = False
    """print the traceback of an error"""


@dataclass(frozen=True, kw_only=True)
class WeightOptions(Common):
    """Options of every command that uses a trained model: which of its weights."""

    no_ema: bool = False
    """use the raw weights instead of their moving average"""
    ema_decay: float | None = None
    """use the moving average of this decay, where train.ema has several"""
    ema_width: float | None = None
    """use the power-function average of this width (sigma_rel), such as 0.07, made of what a run
    folder trained with train.posthoc stored"""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Common):
    """Train a model; every key of the configuration is also a flag, --section.key VALUE."""

    config: Path | None = None
    """YAML file; flags override it, and it overrides the defaults"""
    out: Path | None = None
    """run folder to write"""
    resume: bool = False
    """continue the run in the folder from its newest intact checkpoint"""
    overwrite: bool = False
    """start anew in a folder that holds a run"""
    dry_run: bool = False
    """print the resolved configuration, parameters, operations and how the batch is split, and
    stop"""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(WeightOptions):
    """Draw samples from a trained model."""

    checkpoint: Path
    """run folder, checkpoint (.pt) or exported weights (.safetensors)"""
    out: Path
    """folder to write"""
    num: int | None = None
    """number of samples; 64, or as many as there are seeds"""
    seeds: str | None = None
    """such as 0-63 or 1,5,9: one stream of noise a sample; 0 to num-1 by default"""
    label: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """class of every sample, by number or name"""
    classes: str | None = None
    """all, or such as 0,3,5: as many samples of each"""
    batch: int = 64
    """samples drawn at a time; it does not change them"""
    grid: str | None = None
    """the same as --sample.grid, such as karras or optimised"""
    preview_every: int | None = None
    """a picture of the first batch as denoised so far, every so many network calls"""
    trajectory: bool = False
    """also write trajectory.npz: t, x and x0 of the first batch at every network call"""
    npz: bool = False
    """also write samples.npz: arr_0 uint8 (N, H, W, C), arr_1 labels"""
    overwrite: bool = False
    """replace the samples in the folder"""


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions(WeightOptions):
    """Score data in bits per dimension, and say how sure that is."""

    checkpoint: Path
    """run folder, checkpoint (.pt) or exported weights (.safetensors)"""
    out: Path | None = None
    """folder for the report, the value of every example and a histogram; an interruption is kept
    there"""
    split: Literal["test", "train"] = "test"
    """of the data set"""
    images: Path | None = None
    """score these instead: a folder of pictures or samples, or .npz"""
    against: Path | None = None
    """other images, scored too and drawn beside: does the model tell them apart?"""
    num: int | None = None
    """only the first examples; all by default"""
    conditional: bool = False
    """score log p(x | y) with the true classes instead of log p(x)"""
    bound: bool = False
    """also print the variational lower bound"""
    seed: int = 0
    """of the dequantisation, the probes and the times"""
    csv: Path | None = None
    """file for the value of every example"""
    json: bool = False
    """print JSON"""
    resume: bool = False
    """go on with the interrupted evaluation in --out"""
    overwrite: bool = False
    """replace the evaluation in --out"""


@dataclass(frozen=True, kw_only=True)
class EditOptions(WeightOptions):
    """Latent codes of test examples: encode, decode, interpolate, or go there and back."""

    checkpoint: Path
    """run folder, checkpoint (.pt) or exported weights (.safetensors)"""
    out: Path
    """folder to write: codes.npz, edited.npz, edit.png, edit.json"""
    operation: Literal["encode", "decode", "interpolate", "reconstruct"] = "reconstruct"
    """what to do: examples to codes, codes to samples, paths between pairs of examples, or
    examples to codes and back"""
    num: int | None = None
    """the first test examples; 16 by default. Of interpolate they are pairs: 1-2, 3-4, ..."""
    codes: Path | None = None
    """codes.npz for decode"""
    columns: int = 9
    """samples on a path of interpolate, both ends included"""
    label: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """class for every example, by number or name; their own by default"""
    tolerance: float = 1e-5
    """of the probability flow, relative and absolute"""
    batch: int = 64
    """samples carried at a time"""
    overwrite: bool = False
    """replace the results in the folder"""


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """List every process, parameterisation, network, sampler, grid, weighting and data set; or
    which averages of the weights a run, a checkpoint or exported weights hold."""

    path: tyro.conf.Positional[Path | None] = None
    """run folder, checkpoint (.pt) or exported weights (.safetensors)"""
    json: bool = False
    """print JSON"""
    debug: bool = False
    """print the traceback of an error"""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Measure the order of every sampler on problems with exact answers; exit 1 if one is off."""

    samplers: str | None = None
    """such as heun,dpmpp_2m; all by default"""
    sde: str = "vp,edm"
    """processes to measure on"""
    json: bool = False
    """print JSON, errors included"""
    debug: bool = False
    """print the traceback of an error"""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(WeightOptions):
    """Compare samplers with the exact path of a trained model: error, network calls, seconds."""

    checkpoint: Path
    """run folder, checkpoint (.pt) or exported weights (.safetensors)"""
    samplers: str = "ddim,heun,dpmpp_2m,unipc,deis"
    """such as heun,dpmpp_2m"""
    steps: str = "5,10,20,50"
    """of the grid, such as 5,10,20"""
    grid: str | None = None
    """such as karras,optimised; the one of the run by default"""
    num: int = 32
    """starts"""
    seed: int = 0
    """of the first start; the others count on"""
    tolerance: float = 1e-7
    """of the reference path, relative and absolute"""
    out: Path | None = None
    """folder for compare.json and compare.png"""
    overwrite: bool = False
    """replace those in the folder"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(WeightOptions):
    """Compare samples with real data: distances, precision and recall, copies, with errors."""

    samples: Path | None = None
    """folder of `scoresde sample` or of pictures, or an .npz; drawn from --checkpoint without"""
    checkpoint: Path | None = None
    """run folder, checkpoint (.pt) or exported weights: its data set, and its samples"""
    against: Literal["test", "train"] = "test"
    """the split that they are compared with"""
    features: str | None = None
    """classifier (where images have classes), pixels, or a TorchScript file, which is run"""
    statistics: Path | None = None
    """.npz of mu and sigma, in place of the split in the Frechet distance"""
    save_statistics: Path | None = None
    """.npz for mu and sigma of the split"""
    metrics: str | None = None
    """such as frechet,kid,precision; see `scoresde info`"""
    num: int | None = None
    """samples; 1000 are drawn, or all there are"""
    seed: int = 0
    """of the first sample, the others count on; and of the errors"""
    batch: int = 64
    """samples drawn at a time; it does not change them"""
    resamples: int = 50
    """random halves that an error is found from; 0 for no errors"""
    out: Path | None = None
    """folder for evaluate.json, evaluate.txt and a picture"""
    overwrite: bool = False
    """replace those in the folder, and the file of --save-statistics"""
    json: bool = False
    """print JSON"""
