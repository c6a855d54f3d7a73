"""The options of every command besides those of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command that computes.

    Args:
        device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
        debug: print the traceback of an error.
    """

    device: str = "auto"
    debug: bool = False


@dataclass(frozen=True, kw_only=True)
class WeightOptions(Common):
    """Options of every command that uses a trained model: which of its weights.

    Args:
        no_ema: use the raw weights instead of their moving average.
        ema_decay: use the moving average of this decay, where train.ema has several.
        ema_width: use the power-function average of this width (sigma_rel), such as 0.07, made
            of what a run folder trained with train.posthoc stored.
    """

    no_ema: bool = False
    ema_decay: float | None = None
    ema_width: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Common):
    """Train a model; every key of the configuration is also a flag, --section.key VALUE.

    Args:
        config: YAML file; flags override it, and it overrides the defaults.
        out: run folder to write.
        resume: continue the run in the folder from its newest intact checkpoint.
        overwrite: start anew in a folder that holds a run.
        dry_run: print the resolved configuration, parameters, operations and how the batch is
            split, and stop.
    """

    config: Path | None = None
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class SampleOptions(WeightOptions):
    """Draw samples from a trained model.

    Args:
        checkpoint: run folder, checkpoint (.pt) or exported weights (.safetensors).
        out: folder to write.
        num: number of samples; 64, or as many as there are seeds.
        seeds: such as 0-63 or 1,5,9: one stream of noise a sample; 0 to num-1 by default.
        label: class of every sample, by number or name.
        classes: all, or such as 0,3,5: as many samples of each.
        batch: samples drawn at a time; it does not change them.
        grid: the same as --sample.grid, such as karras or optimised.
        preview_every: a picture of the first batch as denoised so far, every so many network
            calls.
        trajectory: also write trajectory.npz: t, x and x0 of the first batch at every network
            call.
        npz: also write samples.npz: arr_0 uint8 (N, H, W, C), arr_1 labels.
        overwrite: replace the samples in the folder.
    """

    checkpoint: Path
    out: Path
    num: int | None = None
    seeds: str | None = None
    label: Annotated[str | None, "class"] = None
    classes: str | None = None
    batch: int = 64
    grid: str | None = None
    preview_every: int | None = None
    trajectory: bool = False
    npz: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions(WeightOptions):
    """Score data in bits per dimension, and say how sure that is.

    Args:
        checkpoint: run folder, checkpoint (.pt) or exported weights (.safetensors).
        out: folder for the report, the value of every example and a histogram; an interruption
            is kept there.
        split: of the data set.
        images: score these instead: a folder of pictures or samples, or .npz.
        against: other images, scored too and drawn beside: does the model tell them apart?.
        num: only the first examples; all by default.
        conditional: score log p(x | y) with the true classes instead of log p(x).
        bound: also print the variational lower bound.
        seed: of the dequantisation, the probes and the times.
        csv: file for the value of every example.
        json: print JSON.
        resume: go on with the interrupted evaluation in --out.
        overwrite: replace the evaluation in --out.
    """

    checkpoint: Path
    out: Path | None = None
    split: Literal["test", "train"] = "test"
    images: Path | None = None
    against: Path | None = None
    num: int | None = None
    conditional: bool = False
    bound: bool = False
    seed: int = 0
    csv: Path | None = None
    json: bool = False
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class EditOptions(WeightOptions):
    """Latent codes of test examples: encode, decode, interpolate, or go there and back.

    Args:
        checkpoint: run folder, checkpoint (.pt) or exported weights (.safetensors).
        out: folder to write: codes.npz, edited.npz, edit.png, edit.json.
        operation: what to do: examples to codes, codes to samples, paths between pairs of
            examples, or examples to codes and back.
        num: the first test examples; 16 by default. Of interpolate they are pairs: 1-2, 3-4, .
        codes: codes.npz for decode.
        columns: samples on a path of interpolate, both ends included.
        label: class for every example, by number or name; their own by default.
        tolerance: of the probability flow, relative and absolute.
        batch: samples carried at a time.
        overwrite: replace the results in the folder.
    """

    checkpoint: Path
    out: Path
    operation: Literal["encode", "decode", "interpolate", "reconstruct"] = "reconstruct"
    num: int | None = None
    codes: Path | None = None
    columns: int = 9
    label: Annotated[str | None, "class"] = None
    tolerance: float = 1e-05
    batch: int = 64
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """List every process, parameterisation, network, sampler, grid, weighting and data set; or
    which averages of the weights a run, a checkpoint or exported weights hold.

    Args:
        path: run folder, checkpoint (.pt) or exported weights (.safetensors).
        json: print JSON.
        debug: print the traceback of an error.
    """

    path: Annotated[Path | None, "positional"] = None
    json: bool = False
    debug: bool = False


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Measure the order of every sampler on problems with exact answers; exit 1 if one is off.

    Args:
        samplers: such as heun,dpmpp_2m; all by default.
        sde: processes to measure on.
        json: print JSON, errors included.
        debug: print the traceback of an error.
    """

    samplers: str | None = None
    sde: str = "vp,edm"
    json: bool = False
    debug: bool = False


@dataclass(frozen=True, kw_only=True)
class CompareOptions(WeightOptions):
    """Compare samplers with the exact path of a trained model: error, network calls, seconds.

    Args:
        checkpoint: run folder, checkpoint (.pt) or exported weights (.safetensors).
        samplers: such as heun,dpmpp_2m.
        steps: of the grid, such as 5,10,20.
        grid: such as karras,optimised; the one of the run by default.
        num: starts.
        seed: of the first start; the others count on.
        tolerance: of the reference path, relative and absolute.
        out: folder for compare.json and compare.png.
        overwrite: replace those in the folder.
        json: print JSON.
    """

    checkpoint: Path
    samplers: str = "ddim,heun,dpmpp_2m,unipc,deis"
    steps: str = "5,10,20,50"
    grid: str | None = None
    num: int = 32
    seed: int = 0
    tolerance: float = 1e-07
    out: Path | None = None
    overwrite: bool = False
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(WeightOptions):
    """Compare samples with real data: distances, precision and recall, copies, with errors.

    Args:
        samples: folder of `scoresde sample` or of pictures, or an .npz; drawn from
            --checkpoint without.
        checkpoint: run folder, checkpoint (.pt) or exported weights: its data set, and its
            samples.
        against: the split that they are compared with.
        features: classifier (where images have classes), pixels, or a TorchScript file, which
            is run.
        statistics: .npz of mu and sigma, in place of the split in the Frechet distance.
        save_statistics: .npz for mu and sigma of the split.
        metrics: such as frechet,kid,precision; see `scoresde info`.
        num: samples; 1000 are drawn, or all there are.
        seed: of the first sample, the others count on; and of the errors.
        batch: samples drawn at a time; it does not change them.
        resamples: random halves that an error is found from; 0 for no errors.
        out: folder for evaluate.json, evaluate.txt and a picture.
        overwrite: replace those in the folder, and the file of --save-statistics.
        json: print JSON.
    """

    samples: Path | None = None
    checkpoint: Path | None = None
    against: Literal["test", "train"] = "test"
    features: str | None = None
    statistics: Path | None = None
    save_statistics: Path | None = None
    metrics: str | None = None
    num: int | None = None
    seed: int = 0
    batch: int = 64
    resamples: int = 50
    out: Path | None = None
    overwrite: bool = False
    json: bool = False
