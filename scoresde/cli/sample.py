"""``scoresde sample``: draws from a trained model, each a function of its own seed."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from scoresde.samplers import per_sample_noise

DEFAULT_NUM = 64


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
    options.out.mkdir(parents=True, exist_ok=True)
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
        start = noise(torch.empty(len(some), *shape, device=device))
        x = start * float(model.sde.prior().stddev)
        denoiser = counted(model.denoiser(label=label), calls)
        parts.append(sampler(denoiser, x, noise, some[0]).cpu())
        total += calls.count * len(some)
        advance(len(some))
    return Drawn(_finite(torch.cat(parts)), total / len(seeds))


def chosen_seeds(num: int | None, text: str | None) -> list[int]:
    """Seeds such as "0-63" or "1,5,9"; 0 to num-1 without any. Raises ValueError."""
    if num is not None and num < 1:
        raise ValueError(f"--num: need at least 1, got {num}")
    if text is None:
        return list(range(num or DEFAULT_NUM))
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if found is None:
            raise ValueError(f"--seeds: cannot read {part!r}; write such as 0-63 or 1,5,9")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"--seeds: {part} runs backwards; write {last}-{first}")
        seeds += range(first, last + 1)
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
        raise ValueError("--class: this model was trained without classes; leave it out")
    names = range(len(classes)) if given == ["all"] else given[0].split(",")
    wanted = torch.tensor([_label(str(name).strip(), classes) for name in names])
    if len(wanted) > n:
        raise ValueError(f"--num: {n} samples for {len(wanted)} classes; ask for more")
    return wanted[torch.arange(n) * len(wanted) // n]


def _label(name: str, classes: tuple[str, ...]) -> int:
    if name in classes:
        return classes.index(name)
    if name.isdigit() and int(name) < len(classes):
        return int(name)
    known = f"0 to {len(classes) - 1}, or by name: {', '.join(classes[:20])}"
    raise ValueError(f"--class: no class {name!r}; choose {known}")


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
