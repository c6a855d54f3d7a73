"""Guidance: Denoiser -> Denoiser, for every process, parameterisation and sampler."""

from scoresde.guidance.classifier import NoisyClassifier, classifier
from scoresde.guidance.free import combine, free
from scoresde.guidance.thresholds import clip, dynamic_threshold

__all__ = ["NoisyClassifier", "classifier", "clip", "combine", "dynamic_threshold", "free"]
