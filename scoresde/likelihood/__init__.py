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
from scoresde.likelihood.units import bits_per_dim

__all__ = [
    "Divergence",
    "Exact",
    "Field",
    "HutchPlusPlus",
    "Hutchinson",
    "LogLikelihood",
    "bits_per_dim",
    "exact",
    "hutchinson",
    "log_likelihood",
    "rademacher",
]
