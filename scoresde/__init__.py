"""scoresde: score-based generative models in continuous time.

A process (``sde``), a denoiser (``denoiser``), a time grid and a step (``samplers``) make a
sampler; the same denoiser solved the other way makes a likelihood (``likelihood``).

Names are imported when they are first used, so that ``scoresde --help`` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoresde import samplers
    from scoresde.denoiser import Denoiser, Guide, compiled
    from scoresde.interop.wrap import wrap
    from scoresde.likelihood import LogLikelihood, bits_per_dim, log_likelihood
    from scoresde.parameterization import Coeffs, Parameterization, ScoreModel
    from scoresde.runs.calibrate import calibrate
    from scoresde.runs.draw import draw
    from scoresde.runs.edit import edit
    from scoresde.runs.evaluate import evaluate
    from scoresde.runs.export import export
    from scoresde.runs.importing import import_model
    from scoresde.runs.infer import infer
    from scoresde.runs.load import load
    from scoresde.runs.load_codec import load_codec
    from scoresde.runs.score import score
    from scoresde.runs.train import train
    from scoresde.runs.train_autoencoder import train_autoencoder
    from scoresde.runs.train_classifier import load_classifier, train_classifier
    from scoresde.samplers import sample, trajectory
    from scoresde.sde import EDM, SDE, VE, VP, Cosine, DiscreteVP, LinearFlow, SubVP
    from scoresde.solvers import Solution, SolverError, solve_ode, solve_sde

__version__ = "0.2.0"

__all__ = [
    "EDM",
    "SDE",
    "VE",
    "VP",
    "Coeffs",
    "Cosine",
    "Denoiser",
    "DiscreteVP",
    "Guide",
    "LinearFlow",
    "LogLikelihood",
    "Parameterization",
    "ScoreModel",
    "Solution",
    "SolverError",
    "SubVP",
    "bits_per_dim",
    "calibrate",
    "compiled",
    "draw",
    "edit",
    "evaluate",
    "export",
    "import_model",
    "infer",
    "load",
    "load_classifier",
    "load_codec",
    "log_likelihood",
    "sample",
    "samplers",
    "score",
    "solve_ode",
    "solve_sde",
    "train",
    "train_autoencoder",
    "train_classifier",
    "trajectory",
    "wrap",
]

_HOMES = {
    "denoiser": ("Denoiser", "Guide", "compiled"),
    "interop.wrap": ("wrap",),
    "likelihood": ("LogLikelihood", "bits_per_dim", "log_likelihood"),
    "parameterization": ("Coeffs", "Parameterization", "ScoreModel"),
    "runs.calibrate": ("calibrate",),
    "runs.draw": ("draw",),
    "runs.edit": ("edit",),
    "runs.evaluate": ("evaluate",),
    "runs.export": ("export",),
    "runs.importing": ("import_model",),
    "runs.infer": ("infer",),
    "runs.load": ("load",),
    "runs.load_codec": ("load_codec",),
    "runs.score": ("score",),
    "runs.train": ("train",),
    "runs.train_autoencoder": ("train_autoencoder",),
    "runs.train_classifier": ("load_classifier", "train_classifier"),
    "samplers": ("sample", "trajectory"),
    "sde": ("EDM", "SDE", "VE", "VP", "Cosine", "DiscreteVP", "LinearFlow", "SubVP"),
    "solvers": ("Solution", "SolverError", "solve_ode", "solve_sde"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = {
    *(name for name in _HOMES if "." not in name),
    *(
        "codes",
        "conditions",
        "config",
        "data",
        "guidance",
        "interop",
        "latent",
        "nn",
        "posterior",
        "registry",
        "runs",
    ),
    *("testing", "training"),
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"scoresde.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'scoresde' has no attribute {name!r}")
    value = getattr(import_module(f"scoresde.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
