"""Likelihoods: the probability flow with its divergence, and bounds, in nats and bits.

The building blocks (probes, solvers, dequantisations, intervals) are in the modules of this
package.
"""

from scoresde.likelihood.bounds import elbo
from scoresde.likelihood.discrete import bound_terms, discrete_elbo
from scoresde.likelihood.divergence import Exact, Hutchinson
from scoresde.likelihood.estimators import FlowEstimator
from scoresde.likelihood.flow import (
    LogLikelihood,
    adaptive_log_likelihood,
    bits_per_dim,
    log_likelihood,
)
from scoresde.likelihood.path import path_log_likelihood

__all__ = [
    "Exact",
    "FlowEstimator",
    "Hutchinson",
    "LogLikelihood",
    "adaptive_log_likelihood",
    "bits_per_dim",
    "bound_terms",
    "discrete_elbo",
    "elbo",
    "log_likelihood",
    "path_log_likelihood",
]
