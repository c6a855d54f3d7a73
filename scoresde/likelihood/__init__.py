"""Likelihoods: the probability flow with its divergence, and bounds, in nats and bits."""

from scoresde.likelihood.bounds import Bound, elbo
from scoresde.likelihood.dequantise import (
    Decoder,
    Dequantisation,
    Draw,
    Levels,
    TruncatedNormal,
    Uniform,
    importance_weighted,
    tight_time,
)
from scoresde.likelihood.discrete import (
    LARGE,
    LEARNED,
    SMALL,
    discrete_elbo,
    discretised_gaussian,
)
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
    "LARGE",
    "LEARNED",
    "SMALL",
    "Bound",
    "Decoder",
    "Dequantisation",
    "Divergence",
    "Draw",
    "Exact",
    "Field",
    "HutchPlusPlus",
    "Hutchinson",
    "Levels",
    "LogLikelihood",
    "Orthogonal",
    "Probing",
    "TruncatedNormal",
    "Uniform",
    "bits_per_dim",
    "discrete_elbo",
    "discretised_gaussian",
    "elbo",
    "exact",
    "exactly",
    "gregory",
    "hutchinson",
    "importance_weighted",
    "log_likelihood",
    "path_log_likelihood",
    "rademacher",
    "tight_time",
]
