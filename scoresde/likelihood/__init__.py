"""Likelihoods: the probability flow with its divergence, and bounds, in nats and bits."""

from scoresde.likelihood.divergence import (
    Divergence,
    Exact,
    Field,
    Hutchinson,
    HutchPlusPlus,
    exact,
    hutchinson,
    rademacher,
)
from scoresde.likelihood.flow import LogLikelihood, log_likelihood
from scoresde.likelihood.path import Orthogonal, Probing, exactly, gregory, path_log_likelihood
from scoresde.likelihood.units import bits_per_dim

__all__ = [
    "Divergence",
    "Exact",
    "Field",
    "HutchPlusPlus",
    "Hutchinson",
    "LogLikelihood",
    "Orthogonal",
    "Probing",
    "bits_per_dim",
    "exact",
    "exactly",
    "gregory",
    "hutchinson",
    "log_likelihood",
    "path_log_likelihood",
    "rademacher",
]
