"""Options of every command, apart from the keys of the configuration.

Defaults come from the library function that the command calls.

A note in an annotation changes the flag: "positional" makes it a positional argument, "repeated"
one that is given several times, and any other word renames it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from scoresde.arguments import (
    Count,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Probability,
    Range,
    arguments,
)
from scoresde.runs.compare import compare
from scoresde.runs.draw import draw
from scoresde.runs.edit import edit
from scoresde.runs.evaluate import evaluate
from scoresde.runs.train_classifier import train_classifier


def default(function: Callable[..., Any], name: str) -> Any:
    """Default of a function's argument; a tuple becomes words separated by commas."""
    found = arguments(function)[name].default
    return ",".join(map(str, found)) if isinstance(found, tuple) else found


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
    """Options that choose the weights of a trained model.

    Args:
        no_ema: use the raw weights instead of their moving average.
        ema_decay: use the moving average of this decay, where train.ema has several.
        ema_width: use the power-function average of this width (sigma_rel), such as 0.07, made
            from the snapshots that train.posthoc stores in a run folder.
        variant: variant of the weights of a folder of diffusers, such as fp16.
        dtype: numbers that these weights are held in; float32 by default.
        nearest: tell the network of such a folder whole indices only, for one that knows no
            others.
    """

    no_ema: bool = False
    ema_decay: Fraction | None = None
    ema_width: Positive | None = None
    variant: str | None = None
    dtype: Literal["float32", "float64", "float16", "bfloat16"] | None = None
    nearest: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelOptions(WeightOptions):
    """Options of every command that needs a trained model.

    Args:
        checkpoint: run folder, checkpoint (.pt), exported weights (.safetensors), or folder of
            diffusers.
    """

    checkpoint: Path


@dataclass(frozen=True, kw_only=True)
class SaidOptions(WeightOptions):
    """Options that say what samples are of.

    Args:
        label: class of every sample, by name or number.
        prompt: sentence that says what to draw.
        condition: a value of another condition, once for each: a class, numbers such as 0.5,-1, a
            sentence, or the path of a picture.
        negative: what not to draw: a sentence, or NAME=VALUE as --condition, once for each.
        guidance: scale of guidance; 1, the default, is the plain conditional, 3 follows what is
            said more closely.
        guidance_interval: lowest and highest sigma / alpha of guidance, such as 0.2,5.
    """

    label: Annotated[str | None, "class"] = None
    prompt: str | None = None
    condition: Annotated[tuple[str, ...], "repeated"] = ()
    negative: Annotated[tuple[str, ...], "repeated"] = ()
    guidance: float | None = None
    guidance_interval: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Common):
    """Train in a run folder; every key of the configuration is also a flag, --section.key VALUE.

    Args:
        config: YAML file; flags override it, and it overrides the defaults.
        out: run folder to write.
        resume: continue the run in the folder from its newest intact checkpoint.
        overwrite: start anew in a folder that holds a run.
        dry_run: print the resolved configuration, the size of the network and how the batch is
            split, and stop.
    """

    config: Path | None = None
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainClassifierOptions(ModelOptions):
    """Train a classifier of the noisy states of a trained model, on its data, to guide it.

    Args:
        out: file to write, such as classifier.pt.
        steps: optimiser steps.
        batch: examples per step.
        lr: learning rate after the warm-up.
        width: channels at full resolution, or a quarter of the hidden units for vectors.
        seed: seed of the weights, the data order and every draw.
        checkpoint_every: steps between two checkpoints.
        resume: continue the training in --out.
        overwrite: replace the file.
    """

    out: Path
    steps: Count = default(train_classifier, "steps")
    batch: Count = default(train_classifier, "batch")
    lr: Positive = default(train_classifier, "lr")
    width: Count = default(train_classifier, "width")
    seed: Natural = default(train_classifier, "seed")
    checkpoint_every: Count = default(train_classifier, "checkpoint_every")
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportOptions(WeightOptions):
    """Write a trained model as a folder that diffusers opens in one line.

    Args:
        run: run folder, checkpoint (.pt), exported weights (.safetensors) or folder of diffusers.
        directory: folder to write.
        to: format.
        overwrite: replace a folder that was exported before.
    """

    run: Annotated[Path, "positional"]
    directory: Annotated[Path, "positional"]
    to: Literal["diffusers"] = "diffusers"
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SaidOptions):
    """Draw samples from a trained model.

    Args:
        out: folder to write.
        checkpoint: run folder, checkpoint (.pt), exported weights (.safetensors), or folder of
            diffusers; that of --like by default.
        like: picture that scoresde sample wrote, to draw again with its settings; other flags
            change them.
        num: number of samples; 64 by default, or one for each seed or prompt.
        seeds: seeds of the samples, such as 0-63 or 1,5,9, each with a stream of noise of its
            own; 0 to num - 1 by default.
        classes: classes to draw the same number of samples from, such as cat,dog or 0,3; all
            stands for every class.
        prompts: text file of sentences, one in a line; as many samples of each are drawn.
        batch: samples drawn at a time; it does not change them.
        compile: compile the network, which takes up to minutes, and makes its calls faster.
        grid: times of the steps, as --sample.grid: a name such as karras or optimised.
        preview_every: network calls between two pictures of the first batch as denoised so far.
        trajectory: also write trajectory.npz with t, x and x0 of the first batch at every network
            call.
        npz: also write samples.npz with arr_0, uint8 (N, H, W, C), and the labels arr_1.
        overwrite: replace the samples in the folder.
    """

    out: Path
    checkpoint: Path | None = None
    like: Path | None = None
    num: Count | None = None
    seeds: str | None = None
    classes: str | None = None
    prompts: Path | None = None
    batch: Count = default(draw, "batch")
    compile: bool = default(draw, "compile")
    grid: str | None = None
    preview_every: Count | None = None
    trajectory: bool = False
    npz: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions(ModelOptions):
    """Score data in bits per dimension, with errors.

    Args:
        out: folder for the report, the value of every example and a histogram; it also keeps the
            values of an interrupted evaluation.
        split: part of the data set that is scored.
        images: pictures to score instead, a folder or an .npz.
        against: further pictures to score; their histogram is drawn beside the first.
        num: number of examples scored, from the first on; all by default.
        conditional: score log p(x | y) with the true classes and conditions instead of log p(x).
        bound: also print the variational lower bound.
        seed: seed of the dequantisation, the probes and the times.
        csv: file to write the value of every example to.
        json: print JSON.
        resume: continue the interrupted evaluation in --out.
        overwrite: replace the evaluation in --out.
    """

    out: Path | None = None
    split: Literal["test", "train"] = "test"
    images: Path | None = None
    against: Path | None = None
    num: Count | None = None
    conditional: bool = False
    bound: bool = False
    seed: Natural = 0
    csv: Path | None = None
    json: bool = False
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class EditOptions(ModelOptions, SaidOptions):
    """Edit pictures: paint parts anew, colour, enlarge, sharpen, vary; or map them to codes.

    The pictures are files of the size of the model, or else examples of its data.

    Args:
        operation: inpaint paints a part anew and outpaint the margins, colourise colours,
            superres enlarges, deblur sharpens, img2img adds noise and removes it, invert decodes
            the code of a picture under what is said, interpolate draws paths between the codes of
            pairs, encode maps pictures to codes, decode codes to samples, reconstruct maps
            pictures to codes and back.
        out: folder to write the results, edited.npz, codes.npz, edit.png and edit.json to.
        picture: pictures, or a folder of them; by default test examples, grey, small or blurred
            as the operation needs.
        examples: test examples, such as 0-3 or 1,5; by default the first 4, or as --num says.
        num: results of each picture; of encode, interpolate and reconstruct the number of test
            examples, 16 by default, which interpolate pairs: 1 with 2, 3 with 4, and so on.
        seeds: seeds of the results of every picture, such as 0-3; by default each result has its
            own, 0, 1, ... in turn.
        mask: grey picture of the same size, whose white pixels inpaint paints.
        box: rectangle x0,y0,x1,y1 in pixels that inpaint paints; x1 and y1 are not included.
        painted: colour of the pixels that inpaint paints, such as ff00ff, two digits a channel.
        margins: pixels that outpaint paints at the left, top, right and bottom, such as 4,0,4,0.
        factor: ratio of the sizes of superres; 4, or that of a small picture.
        blur: standard deviation of the blur of deblur in pixels; 1 by default.
        strength: share of noise that img2img starts from; 0 returns the picture, 1 does not
            depend on it; 0.6 by default.
        method: method of inpaint, outpaint, colourise, superres and deblur, one of those that
            scoresde info lists; dps, for colourise and deblur diffpir, by default.
        noise: standard deviation of the error of what is known of a picture, in levels of a pixel.
        nfe: most network calls of a method; 100 by default.
        grid: times of the steps of img2img, as --sample.grid.
        source: what a picture shows, by which invert encodes it, as --condition; of an example
            its class by default.
        codes: codes.npz to decode.
        columns: samples on a path of interpolate, both ends included.
        tolerance: relative and absolute tolerance of the probability flow.
        batch: results drawn at a time; it does not change them.
        preview_every: network calls between two pictures of the first batch as denoised so far.
        overwrite: replace the results in the folder.
    """

    operation: Annotated[
        Literal[
            "inpaint",
            "outpaint",
            "colourise",
            "superres",
            "deblur",
            "img2img",
            "invert",
            "interpolate",
            "encode",
            "decode",
            "reconstruct",
        ],
        "positional",
    ] = "reconstruct"
    out: Path
    picture: tuple[Path, ...] = ()
    examples: str | None = None
    num: Count | None = None
    seeds: str | None = None
    mask: Path | None = None
    box: tuple[int, ...] = ()
    painted: str | None = None
    margins: tuple[int, ...] = ()
    factor: Annotated[int | None, Range(ge=2)] = None
    blur: Positive | None = None
    strength: Probability | None = None
    method: str | None = None
    noise: NonNegative | None = None
    nfe: Count | None = None
    grid: str | None = None
    source: Annotated[tuple[str, ...], "repeated"] = ()
    codes: Path | None = None
    columns: Annotated[int | None, Range(ge=2)] = None
    tolerance: Positive | None = None
    batch: Count = default(edit, "batch")
    preview_every: Count | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ModelOptions):
    """Compare samplers with the exact path of a trained model: error, network calls, seconds.

    Args:
        samplers: samplers to compare, separated by commas.
        steps: numbers of steps to compare the samplers at, separated by commas.
        grid: grids to compare the samplers on, such as karras,optimised; by default the grid of
            the run.
        num: number of starting points.
        seed: seed of the first starting point; the others follow.
        tolerance: relative and absolute tolerance of the exact path.
        out: folder to write compare.json and compare.png to.
        overwrite: replace the results in the folder.
        json: print JSON.
    """

    samplers: str = default(compare, "samplers")
    steps: str = default(compare, "steps")
    grid: str | None = None
    num: Count = default(compare, "num")
    seed: Natural = default(compare, "seed")
    tolerance: Positive = default(compare, "tolerance")
    out: Path | None = None
    overwrite: bool = False
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(WeightOptions):
    """Compare samples with real data: distances, precision and recall, copies, with errors.

    Args:
        samples: samples to judge: a folder of scoresde sample or of pictures, or an .npz; without
            it they are drawn from --checkpoint.
        checkpoint: run folder, checkpoint (.pt) or exported weights (.safetensors), whose data set
            is the reference and whose model draws the samples; a folder of diffusers, which names
            no data, with --data and --data.path.
        against: part of the data set that the samples are compared with.
        features: features that pictures are compared in: classifier (for images with classes),
            pixels, lite0 (of EfficientNet-Lite0 with ImageNet weights), or a TorchScript file,
            which is run.
        statistics: .npz of mu and sigma that replaces the split in the Frechet distance.
        save_statistics: .npz to write mu and sigma of the split to.
        metrics: metrics to compute, such as frechet,kid,precision; scoresde info lists them.
        num: number of samples; by default 1000 are drawn, or all samples of --samples are used.
            With --posterior the number of examples, 100 by default.
        seed: seed of the first sample, which the other seeds follow, and of the error estimates.
        batch: samples drawn at a time; it does not change them.
        compile: compile the network that draws them.
        resamples: number of random halves that each error is estimated from; 0 for no errors.
        posterior: method of infer, such as twisted_smc, whose posteriors of test examples are
            judged instead: ranks, coverage, scores; scoresde info lists the methods.
        operator: what is known of these examples, as in scoresde edit: inpaint hides --mask or
            --box, colourise the colours, superres and deblur the details.
        mask: grey picture of the same size, whose white pixels inpaint hides.
        box: rectangle x0,y0,x1,y1 in pixels that inpaint hides; x1 and y1 are not included.
        factor: ratio of the sizes of superres; 4 by default.
        blur: standard deviation of the blur of deblur in pixels; 1 by default.
        noise: standard deviation of the error of what is known, in levels of a pixel; 0 for
            inpaint, else 1, by default.
        draws: posterior draws of each of the --num examples; 64 by default.
        nfe: most network calls of a draw; 100 by default.
        out: folder to write evaluate.json, evaluate.txt and a picture to.
        overwrite: replace the results in the folder and the file of --save-statistics.
        json: print JSON.
    """

    samples: Path | None = None
    checkpoint: Path | None = None
    against: Literal["test", "train"] = "test"
    features: str | None = None
    statistics: Path | None = None
    save_statistics: Path | None = None
    metrics: str | None = None
    num: Count | None = None
    seed: Natural = 0
    batch: Count = default(draw, "batch")
    compile: bool = default(draw, "compile")
    resamples: Natural = default(evaluate, "resamples")
    posterior: str | None = None
    operator: Literal["inpaint", "colourise", "superres", "deblur"] | None = None
    mask: Path | None = None
    box: tuple[int, ...] = ()
    factor: Annotated[int | None, Range(ge=2)] = None
    blur: Positive | None = None
    noise: NonNegative | None = None
    draws: Annotated[int | None, Range(ge=2)] = None
    nfe: Count | None = None
    out: Path | None = None
    overwrite: bool = False
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Read a published checkpoint of another program, and write it as a run.

    Args:
        file: checkpoint, a torch file or .safetensors; nothing in it is run.
        program: program that wrote it; compvis is that of latent and Stable Diffusion.
        out: folder to write; every command reads it as --checkpoint.
        settings: JSON or YAML file of the hyper-parameters that the checkpoint does not hold.
        set: one of them, once for each.
        overwrite: replace the run in the folder.
        debug: print the traceback of an error.
    """

    file: Annotated[Path, "positional"]
    program: Annotated[
        Literal["score_sde", "edm", "guided_diffusion", "lucidrains", "k_diffusion", "compvis"],
        "from",
    ]
    out: Path
    settings: Path | None = None
    set: Annotated[tuple[str, ...], "repeated"] = ()
    overwrite: bool = False
    debug: bool = False


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """List every available name, or describe a trained model and its data.

    Args:
        path: run folder, checkpoint (.pt), exported weights (.safetensors), or folder of
            diffusers, to describe.
        json: print JSON.
        debug: print the traceback of an error.
    """

    path: Annotated[Path | None, "positional"] = None
    json: bool = False
    debug: bool = False


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Measure the order of every sampler on exactly solvable problems; exit 1 if one is wrong.

    Args:
        samplers: samplers to measure, such as heun,dpmpp_2m; all by default.
        sde: processes to measure the samplers on.
        json: print JSON, including the error at each number of steps.
        debug: print the traceback of an error.
    """

    samplers: str | None = None
    sde: str = "vp,edm"
    json: bool = False
    debug: bool = False


@dataclass(frozen=True, kw_only=True)
class UIOptions(Common):
    """Serve a page for a browser, to this machine alone: draw, edit, compare, inspect, train.

    Args:
        folders: folders with runs, exported weights, folders of diffusers and configurations;
            nothing outside them is opened.
        port: port of http://127.0.0.1.
        open: open the page in the browser.
    """

    folders: Annotated[tuple[Path, ...], "positional"] = (Path("runs"),)
    port: Annotated[int, Range(ge=0, le=65535)] = 7860
    open: bool = False
