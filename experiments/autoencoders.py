"""Autoencoders: what they reconstruct in minutes of one thread, and what their latents are like.

    python experiments/autoencoders.py cifar mnist fashion vq --shared FOLDER
    python experiments/autoencoders.py weights discriminator classes --shared FOLDER
    python experiments/autoencoders.py cifar --seconds 600 --shared FOLDER

``FOLDER`` has the folders mnist, fashion-mnist and cifar10-subset. Each trains a configuration in
configs/ for as many steps as fit in the CPU seconds that it is given, by the time of a step that
a short training takes before. PSNR and SSIM are those of test pictures that are decoded from the
means of their latents. ``round_trip`` is how far coding a decoded picture again moves a latent,
relative to the latent's own deviation, both as root mean squares. ``seams`` compares neighbouring
pixels where tiles of pictures of four times the side are blended and elsewhere, in the same
pictures. ``weights`` varies the weight of the KL divergence. ``discriminator`` trains with one and
without for the same number of steps. ``classes`` trains a model of the latents of MNIST by class,
and lets a classifier read its digits. Writes experiments/results/autoencoders.json and pictures,
and prints the results.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from judging import judge_of, surroundings
from torch import Tensor
from torch.nn import functional as F

import scoresde as ss
from scoresde.config import AutoencoderConfig, load_config, override
from scoresde.data import Dataset, cifar_subset, idx_folder
from scoresde.evaluation import frechet_distance, lite0_features, moments, save_png
from scoresde.evaluation.reconstruction import psnr, ssim
from scoresde.latent import tiles
from scoresde.progress import Advance, bar

HERE = Path(__file__).parent
STORE = HERE / "results" / "autoencoders.json"
CONFIGS = HERE.parent / "configs"
PROBED = 60  # steps that the time of one is measured on
TESTED, SHOWN, BATCH = 3000, 20, 100
LARGER, TILE, OVERLAP = 4, 16, 8

SCALES, DRAWN = (1.0, 2.0), 1000
WEIGHTS = (1e-6, 1e-2, 0.1)

Found = dict[str, Any]
Results = Iterator[tuple[str, Found]]
Task = Callable[[argparse.Namespace], Results]


def main() -> int:
    """Train, measure, store, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--shared", type=Path, required=True, help="folder of the data folders")
    parser.add_argument("--seconds", type=float, help="CPU seconds; those of each task by default")
    parser.add_argument("--out", type=Path, help="folder of the runs; a temporary one by default")
    parser.add_argument("--trial", action="store_true", help="store nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        given.out = given.out or Path(folder)
        for task in given.tasks:
            store(None if given.trial else STORE, TASKS[task](given))
    print(*tables(json.loads(STORE.read_text())), sep="\n\n")
    return 0


def store(path: Path | None, results: Results) -> None:
    """Print results as they come, and store them under their names."""
    for key, found in results:
        print(key, json.dumps(found, indent=1), flush=True)
        if path is not None:
            stored = json.loads(path.read_text()) if path.exists() else {}
            stored[key] = {**found, **surroundings()}
            path.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n")


class Clock:
    """A progress that keeps the CPU seconds at every step of a training."""

    def __init__(self) -> None:
        self.times: list[float] = []

    @contextmanager
    def __call__(self, total: int, what: str) -> Iterator[Advance]:
        """Keep the time at every item."""
        self.times = []
        yield lambda n, note="": self.times.append(time.process_time())

    @property
    def seconds(self) -> float:
        """CPU seconds of an item."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)

    @property
    def halves(self) -> list[float]:
        """The median CPU seconds of the items of the first half, and of the second."""
        each = torch.tensor(self.times).diff()
        return [float(half.median()) for half in each.chunk(2)]


def trained(
    name: str,
    data: Dataset,
    out: Path,
    *,
    seconds: float | None = None,
    seed: int = 0,
    keys: Mapping[str, Any] | None = None,
) -> tuple[Any, Found]:
    """The codec of a configuration in the run folder ``out``, and what its training took.

    It takes as many steps as fit in the CPU ``seconds``, or those of the configuration.
    """
    config = load_config(
        CONFIGS / f"{name}.yaml", {"seed": seed, **(keys or {})}, AutoencoderConfig
    )
    clock = Clock()
    if seconds is not None:
        began = time.process_time()
        probe = override(config, {"train.steps": PROBED})
        ss.train_autoencoder(probe, data, out=out / "probe", overwrite=True, progress=clock)
        around = time.process_time() - began - PROBED * clock.seconds
        steps = int((seconds - around) / clock.seconds)
        config = override(config, {"train.steps": steps})
    began = time.process_time()
    if ss.train_autoencoder(config, data, out=out, overwrite=True, progress=clock).stopped:
        raise SystemExit("interrupted: nothing is stored of it")
    codec = ss.load_codec(out)
    return codec, {
        "seed": seed,
        "seconds": time.process_time() - began,
        "step_seconds": clock.halves,
        "steps": config.train.steps,
        "batch": config.train.batch,
        "precision": config.train.precision,
        "parameters": sum(p.numel() for p in codec.parameters()),
        **figures(codec, data),
    }


@torch.no_grad()
def figures(codec: Any, data: Dataset) -> Found:
    """What a codec makes of test pictures, and of its latents."""
    parts = []
    for some in data.test.x[:TESTED].split(BATCH):
        x = data.scaling.encode(some)
        mean, std = codec.encode(x)
        y = decoded(codec, mean, x)
        pair = ((y + 1) / 2, (x + 1) / 2)
        moved = codec.encode(y).mean - mean
        penalty = codec.passed(x, torch.zeros_like(mean)).penalty
        parts.append((psnr(*pair), ssim(*pair), moved, std, mean, penalty))
    decibels, similar, moved, std, mean, penalty = (
        torch.cat(part).double() for part in zip(*parts, strict=True)
    )
    rms, noise = moved.square().mean().sqrt(), std.square().mean().sqrt()
    return {
        "psnr": float(decibels.mean()),
        "ssim": float(similar.mean()),
        "moved": float(rms),
        "noise": float(noise),
        "round_trip": float(rms / noise) if noise else None,
        "latents_std": codec.latents_std.tolist(),
        **codec.report(mean, penalty, data.shape.numel()),
    }


def decoded(codec: Any, z: Tensor, like: Tensor) -> Tensor:
    """Pictures of the size of others, within their range."""
    found: Tensor = codec.decode(z)[..., : like.shape[2], : like.shape[3]].clamp(-1, 1)
    return found


# Tasks -------------------------------------------------------------------------------------------


def plain(name: str, folder: str, kind: Callable[..., Dataset], seconds: float) -> Task:
    """The task that trains a configuration and measures its codec."""

    def task(given: argparse.Namespace) -> Results:
        data, budget = kind(given.shared / folder), given.seconds or seconds
        codec, found = trained(name, data, given.out / name, seconds=budget)
        show(name, codec, data)
        yield f"{name}, {budget:g} s", found

    return task


def cifar(given: argparse.Namespace) -> Results:
    """The KL autoencoder of CIFAR, and the seams of its tiles."""
    data, budget = cifar_subset(given.shared / "cifar10-subset"), given.seconds or 360
    codec, found = trained("cifar_subset_kl", data, given.out / "cifar", seconds=budget)
    show("cifar_subset_kl", codec, data)
    yield f"cifar_subset_kl, {budget:g} s", {**found, "seams": seams(codec, data)}


def weights(given: argparse.Namespace) -> Results:
    """The KL autoencoder of CIFAR with several weights of the divergence."""
    data, budget = cifar_subset(given.shared / "cifar10-subset"), given.seconds or 60
    for kl in WEIGHTS:
        out = given.out / f"weight-{kl:g}"
        keys = {"loss.kl": kl}
        _, found = trained("cifar_subset_kl", data, out, seconds=budget, keys=keys)
        yield f"cifar_subset_kl, {budget:g} s, kl {kl:g}", found


@torch.no_grad()
def seams(codec: Any, data: Dataset) -> Found:
    """Mean difference of neighbouring pixels where tiles are blended, and elsewhere.

    Of pictures that are enlarged four times, decoded in tiles, and decoded as a whole; and of the
    same pixels of the pictures themselves. ``largest`` is the largest mean along a line.
    """
    x = data.scaling.encode(data.test.x[:SHOWN])
    x = F.interpolate(x, scale_factor=LARGER, mode="bicubic").clamp(-1, 1)
    z = codec.encode(x).mean
    tiled = tiles.decode(codec, z, TILE, OVERLAP)
    places = torch.arange(x.shape[3] - 1)
    # Blended between the quarters of what two tiles share.
    width = z.shape[3]
    within = torch.zeros(width)
    for start in range(TILE - OVERLAP, width - OVERLAP, TILE - OVERLAP):
        within[start + OVERLAP // 4 : start + OVERLAP - OVERLAP // 4] = 1
    blended = within.repeat_interleave(codec.factor)[places] > 0
    found: Found = {}
    for name, picture in (("picture", x), ("whole", codec.decode(z)), ("tiles", tiled)):
        lines = (picture[..., 1:] - picture[..., :-1]).abs().mean((0, 1, 2))
        found[name] = {
            "blended": float(lines[blended].mean()),
            "elsewhere": float(lines[~blended].mean()),
            "largest": float(lines[blended].max()),
        }
    found["tiles_from_whole"] = float((tiled - codec.decode(z)).square().mean().sqrt())
    return found


def discriminator(given: argparse.Namespace) -> Results:
    """The same steps without a discriminator, and with one in the second half."""
    data, budget = cifar_subset(given.shared / "cifar10-subset"), given.seconds or 360
    features = lite0_features().of
    reference = moments(features(data.test.x))
    floor = frechet_distance(moments(features(data.train.x[: len(data.test.x)])), reference)
    steps = None
    for kind in ("none", "patch"):
        keys: dict[str, Any] = {} if steps is None else {"train.steps": steps}
        if steps is not None:
            keys |= {"discriminator.kind": kind, "discriminator.start": steps // 2}
        codec, found = trained(
            "cifar_subset_kl",
            data,
            given.out / f"discriminator-{kind}",
            seconds=budget if steps is None else None,
            keys=keys,
        )
        steps = found["steps"]
        again = torch.cat([recoded(codec, data, some) for some in data.test.x.split(BATCH)])
        distance = frechet_distance(moments(features(again)), reference)
        show(f"cifar_subset_{kind}", codec, data)
        yield f"discriminator, {kind}", {**found, "frechet_lite0": distance, "floor": floor}


@torch.no_grad()
def recoded(codec: Any, data: Dataset, x: Tensor) -> Tensor:
    """Pictures in units of the data, coded and decoded, as uint8."""
    pictures = data.scaling.encode(x)
    return data.scaling.to_uint8(decoded(codec, codec.encode(pictures).mean, pictures))


def classes(given: argparse.Namespace) -> Results:
    """Digits by class in the latents of an autoencoder of MNIST, read by a classifier."""
    data = idx_folder(given.shared / "mnist")
    out = given.out / "mnist_kl"
    if (out / "codec.safetensors").exists():
        found: Found = {}
    else:
        _, found = trained("mnist_kl", data, out, seconds=given.seconds or 150)
    began = time.process_time()
    config = load_config(CONFIGS / "mnist_latent.yaml", {"codec": str(out)})
    model = ss.train(config, data, progress=bar).model
    found = {"codec": found, "model_seconds": time.process_time() - began}
    judge, label = judge_of(data), torch.arange(10).repeat(DRAWN // 10)
    found |= {"judge_accuracy": judge.accuracy(), "floor": judge.floor(DRAWN)}
    for scale in SCALES:
        x = ss.draw(model, DRAWN, label=label, guidance=scale, batch=BATCH, progress=bar).x
        read = judge.classifier.predict(x)
        found[f"{scale:g}"] = {
            "accuracy": float((read == label).double().mean()),
            **judge.distance(x),
        }
        if scale == 1:
            show_rows("mnist_latent", data.scaling.to_uint8(data.scaling.encode(x[:60])), 10)
    yield "mnist_latent", found


# Pictures ----------------------------------------------------------------------------------------


def show(name: str, codec: Any, data: Dataset) -> None:
    """Store a picture: test pictures, and below each what the codec makes of it."""
    x = data.test.x[: SHOWN if codec.channels == 3 else 2 * SHOWN]
    both = [data.scaling.to_uint8(data.scaling.encode(x)), recoded(codec, data, x)]
    rows = torch.stack([side.reshape(-1, SHOWN, *side.shape[1:]) for side in both], 1)
    show_rows(name, rows.flatten(0, 2), SHOWN)


def show_rows(name: str, x: Tensor, columns: int, larger: int = 1) -> None:
    """Store a picture of pictures (N, C, H, W), uint8, row by row."""
    x = x.repeat_interleave(larger, 2).repeat_interleave(larger, 3).expand(-1, 3, -1, -1)
    tiled = x.reshape(-1, columns, *x.shape[1:]).permute(0, 3, 1, 4, 2)
    save_png(HERE / "results" / f"{name}.png", tiled.flatten(0, 1).flatten(1, 2).numpy())


# Reporting ---------------------------------------------------------------------------------------


def tables(stored: Mapping[str, Found]) -> list[str]:
    """Markdown of the codecs that are stored."""
    lines = [
        "| autoencoder | parameters | CPU s | pictures | PSNR, dB | SSIM | round trip | codes |",
        "|---" * 8 + "|",
    ]
    for name, r in stored.items():
        if "psnr" in r:
            codes = f"{r['codes']:.0f}, perplexity {r['perplexity']:.0f}" if "codes" in r else ""
            trip = "" if r["round_trip"] is None else f"{r['round_trip']:.2f}"
            pictures = r["steps"] * r["batch"]
            lines.append(
                f"| {name} | {r['parameters']:,} | {r['seconds']:.0f} | {pictures:,} "
                f"| {r['psnr']:.2f} | {r['ssim']:.3f} | {trip} | {codes} |"
            )
    judged = [
        "| discriminator | steps | PSNR, dB | Frechet distance, Lite0 | later steps, ms |",
        "|---" * 5 + "|",
    ]
    for name, r in stored.items():
        if "frechet_lite0" in r:
            judged.append(
                f"| {name.removeprefix('discriminator, ')} | {r['steps']} | {r['psnr']:.2f} "
                f"| {r['frechet_lite0']:.0f} | {1000 * r['step_seconds'][1]:.0f} |"
            )
    read = ["| digits by class, in latents | right | Frechet distance |", "|---" * 3 + "|"]
    for name, r in stored.items():
        read += [
            f"| scale {scale} | {100 * r[scale]['accuracy']:.1f} | {r[scale]['frechet']:.3f} |"
            for scale in (f"{s:g}" for s in SCALES)
            if scale in r and name == "mnist_latent"
        ]
    return ["\n".join(lines) for lines in (lines, judged, read) if len(lines) > 2]


TASKS: dict[str, Task] = {
    "cifar": cifar,
    "weights": weights,
    "mnist": plain("mnist_kl", "mnist", idx_folder, 150),
    "fashion": plain("fashion_mnist_kl", "fashion-mnist", idx_folder, 150),
    "vq": plain("cifar_subset_vq", "cifar10-subset", cifar_subset, 360),
    "discriminator": discriminator,
    "classes": classes,
}

if __name__ == "__main__":
    raise SystemExit(main())
