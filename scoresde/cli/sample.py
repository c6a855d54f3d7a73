"""``scoresde sample``: draws from a trained model, each a function of its own seed."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.build import STEPS, LoadedRun, Sampler, build_sampler, load_run
from scoresde.cli.console import pick_device, progress
from scoresde.cli.options import SampleOptions
from scoresde.cli.pictures import require_free, write
from scoresde.config import Config, override, to_plain
from scoresde.denoiser import Denoiser
from scoresde.parameterization import ScoreModel
from scoresde.samplers import Noise, per_sample_noise
from scoresde.sde import SDE
from scoresde.training.files import writing

DEFAULT_NUM = 64
MOST = 10_000_000


def run(options: SampleOptions, overrides: Mapping[str, Any]) -> int:
    """Draw, write and report."""
    seeds = chosen_seeds(options.num, options.seeds)
    require_free(options.out, options.overwrite)
    loaded = load_run(options.checkpoint, ema=not options.no_ema)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    config = override(loaded.config, overrides)
    labels = chosen_labels(
        options, loaded.data.classes if config.conditional else None, len(seeds)
    )
    model = loaded.model.to(pick_device(options.device))
    _require_trained(config, labels)
    _require_writable(options.out)
    started = time.perf_counter()
    with progress(len(seeds), "samples") as advance:
        drawn = draw(
            model,
            build_sampler(config.sample),
            loaded.data.shape,
            seeds,
            labels,
            batch=options.batch,
            advance=advance,
        )
    seconds = time.perf_counter() - started
    settings = _settings(options, loaded, config) | {
        "nfe": drawn.nfe,
        "seconds": seconds,
        "images_per_second": len(seeds) / seconds,
    }
    write(options.out, drawn.x, loaded.data.scaling, seeds, labels, settings, npz=options.npz)
    rate = f"{len(seeds) / seconds:.3g} images/s"
    print(f"{len(seeds)} samples in {seconds:.1f} s ({rate}), NFE {drawn.nfe:g}: {options.out}")
    return 0


@dataclass(frozen=True)
class Drawn:
    """Samples (N, ...) on the host, and the network calls each of them took, on average."""

    x: Tensor
    nfe: float


@dataclass
class Calls:
    """A count of denoiser calls."""

    count: int = 0


def counted(denoiser: Denoiser, calls: Calls) -> Denoiser:
    """The denoiser, counting every call."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        calls.count += 1
        return denoiser(x, t)

    return replace(denoiser, predict=predict)


def draw(
    model: ScoreModel,
    sampler: Sampler,
    shape: Sequence[int],
    seeds: Sequence[int],
    labels: Tensor | None = None,
    *,
    batch: int = DEFAULT_NUM,
    advance: Callable[[int], None] = lambda n: None,
) -> Drawn:
    """One sample of ``shape`` a seed, from its own stream of noise, the starting noise included.

    So a sample does not depend on the others in its batch (those of black-box solvers do, see
    ``build``). ``labels`` (N,) or None for none. Raises ValueError unless batch >= 1,
    RuntimeError for samples that are not finite.
    """
    if batch < 1:
        raise ValueError(f"--batch: need at least 1, got {batch}")
    device = next(model.parameters()).device
    parts, total = [], 0
    for first in range(0, len(seeds), batch):
        some = seeds[first : first + batch]
        label = None if labels is None else labels[first : first + batch].to(device)
        calls, noise = Calls(), per_sample_noise(some)
        x = starting_noise(model.sde, torch.empty(len(some), *shape, device=device), noise)
        denoiser = counted(model.denoiser(label=label), calls)
        parts.append(sampler(denoiser, x, noise, some[0]).cpu())
        total += calls.count * len(some)
        advance(len(some))
    return Drawn(_finite(torch.cat(parts)), total / len(seeds))


def starting_noise(sde: SDE, like: Tensor, noise: Noise) -> Tensor:
    """A state of the prior at ``t_max``, shaped like a tensor: the first draws of the noise."""
    return noise(like) * float(sde.prior().stddev)


def chosen_seeds(num: int | None, text: str | None) -> list[int]:
    """Seeds such as "0-63" or "1,5,9"; 0 to num-1 without any. Raises ValueError."""
    if num is not None and not 1 <= num <= MOST:
        raise ValueError(f"--num: need 1 to {MOST:,}, got {num}")
    if text is None:
        return list(range(num or DEFAULT_NUM))
    seeds = [seed for part in text.split(",") for seed in _range(part.strip())]
    if len(seeds) > MOST:
        raise ValueError(f"--seeds: {len(seeds):,} seeds; give at most {MOST:,}")
    if num is not None and num != len(seeds):
        raise ValueError(f"--num {num} but --seeds holds {len(seeds)}; leave one of them out")
    return seeds


def chosen_labels(
    options: SampleOptions, classes: tuple[str, ...] | None, n: int
) -> Tensor | None:
    """The label of every sample, in blocks of one class; None without --class and --classes.

    Raises ValueError for an unconditional model or an unknown class.
    """
    given = [text for text in (options.label, options.classes) if text is not None]
    if not given:
        return None
    if len(given) == 2:
        raise ValueError("--class and --classes: give one of them")
    if classes is None:
        raise ValueError(
            "--class and --classes: this model was trained without classes; leave them out"
        )
    option = "--class" if options.classes is None else "--classes"
    names = range(len(classes)) if given == ["all"] else given[0].split(",")
    wanted = torch.tensor([_label(option, str(name).strip(), classes) for name in names])
    if len(wanted) > n:
        raise ValueError(f"--num: {n} samples for {len(wanted)} classes; ask for more")
    return wanted[torch.arange(n) * len(wanted) // n]


def _range(part: str) -> range:
    found = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", part)
    if found is None:
        raise ValueError(f"--seeds: cannot read {part!r}; write such as 0-63 or 1,5,9")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise ValueError(f"--seeds: {part} runs backwards; write {last}-{first}")
    if last >= 2**64:
        raise ValueError(f"--seeds: {last} has more than 64 bits; give less than {2**64}")
    if last - first >= MOST:
        raise ValueError(f"--seeds: {part} holds more than {MOST:,}; give fewer")
    return range(first, last + 1)


def _label(option: str, name: str, classes: tuple[str, ...]) -> int:
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and name.isascii() and int(name) < len(classes):
        return int(name)
    known = f"0 to {len(classes) - 1}, or by name: {', '.join(classes[:20])}"
    raise ValueError(f"{option}: no class {name!r}; choose {known}")


def _require_trained(config: Config, labels: Tensor | None) -> None:
    if labels is None and config.conditional and config.train.label_dropout == 0:
        raise ValueError(
            "this model never learned to do without a class (train.label_dropout=0); "
            "give --class or --classes"
        )


def _require_writable(folder: Path) -> None:
    """Make the folder, or raise OSError, before anything is computed."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def _settings(options: SampleOptions, loaded: LoadedRun, config: Config) -> dict[str, Any]:
    chosen = to_plain(config)["sample"]
    if config.sample.sampler.kind not in STEPS:
        del chosen["grid"]  # black-box solvers have none
    return {
        "checkpoint": str(loaded.source),
        "step": loaded.step,
        "weights": "raw" if options.no_ema else "ema",
        "batch": options.batch,
        **chosen,
    }


def _finite(x: Tensor) -> Tensor:
    bad = int((~x.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise RuntimeError(f"{bad} of {len(x)} samples are not finite; use more --sample.steps")
    return x
