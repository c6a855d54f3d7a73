"""``scoresde info``: lists every available name with a description, or describes a run."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from scoresde import registry
from scoresde.cli.options import InfoOptions
from scoresde.convergence import draws_noise
from scoresde.evaluation.metrics import METRICS
from scoresde.runs.load import is_foreign
from scoresde.runs.stored import page, stored
from scoresde.runs.stored_codec import is_codec, page_of_codec, stored_codec
from scoresde.runs.stored_folder import page_of_folder, stored_folder


class Listing(NamedTuple):
    """A configuration key, and the table of names that it accepts."""

    key: str
    table: Mapping[str, Any]


LISTINGS = {
    "processes": Listing("sde.kind", registry.SDES),
    "parameterizations": Listing("parameterization.kind", registry.PARAMETERIZATIONS),
    "coordinates": Listing("parameterization.told.kind", registry.COORDINATES),
    "networks": Listing("network.kind", registry.NETWORKS),
    "autoencoders": Listing("autoencoder.kind", registry.AUTOENCODERS),
    "discriminators": Listing("discriminator.kind", registry.DISCRIMINATORS),
    "conditions": Listing("conditions.NAME.kind", registry.CONDITIONS),
    "samplers": Listing("sample.sampler.kind", registry.SAMPLERS),
    "grids": Listing("sample.grid.kind", registry.GRIDS),
    "weightings": Listing("train.weighting.kind", registry.WEIGHTINGS),
    "times": Listing("train.times.kind", registry.TIMES),
    "augmentations": Listing("train.augment.kind", registry.AUGMENTATIONS),
    "draws": Listing("train.draw", registry.DRAWS),
    "data": Listing("data.kind", registry.DATASETS),
    "likelihoods": Listing("likelihood.method", registry.METHODS),
    "dequantisations": Listing("likelihood.dequantisation", registry.DEQUANTISATIONS),
    "posteriors": Listing("infer method", registry.POSTERIORS),
    "traces": Listing("likelihood.trace", registry.TRACES),
    "metrics": Listing("evaluate --metrics", {k: m.documented for k, m in METRICS.items()}),
}


def run(options: InfoOptions, overrides: Mapping[str, Any]) -> int:
    """Print every listing (with --json as {listing: {name: line}}), or describe a path."""
    if options.path is not None and is_codec(path := options.path.expanduser()):
        found = stored_codec(path)
        print(json.dumps(found, indent=2) if options.json else page_of_codec(found))
        return 0
    if options.path is not None and is_foreign(path := options.path.expanduser()):
        found = stored_folder(path)
        print(json.dumps(found, indent=2) if options.json else page_of_folder(found))
        return 0
    if options.path is not None:
        found = stored(options.path)
        print(json.dumps(found, indent=2) if options.json else page(found))
        return 0
    lines = {
        title: {name: _line(listing.table, name) for name in listing.table}
        for title, listing in LISTINGS.items()
    }
    if options.json:
        print(json.dumps(lines, indent=2))
    else:
        print("\n\n".join(_page(title, lines[title]) for title in lines))
    return 0


def _line(table: Mapping[str, Callable[..., Any]], name: str) -> str:
    """First sentence of the documentation of a name; a step also has its order and calls."""
    line = registry.summary(table[name])
    if table is not registry.SAMPLERS or name not in registry.STEPS:
        return line
    step = registry.STEPS[name]()
    order = f"{'weak ' if draws_noise(step) else ''}order {step.order}"
    if name in registry.SELF_PACED:
        return f"{line} ({order}, at least {step.nfe_per_step} calls)"
    return f"{line} ({order}, {step.nfe_per_step} call{'s' * (step.nfe_per_step > 1)} per step)"


def _page(title: str, lines: Mapping[str, str]) -> str:
    width = max(map(len, lines)) + 4
    rows = [
        textwrap.fill(
            line,
            80,
            initial_indent=f"  {name:<{width - 4}}  ",
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
        for name, line in lines.items()
    ]
    return "\n".join([f"{title} ({LISTINGS[title].key})", *rows])
