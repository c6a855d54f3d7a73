"""A run as checked values (``schema``), as a YAML file (``files``), and as objects (``build``)."""

from scoresde.config.build import (
    Described,
    build_dataset,
    build_grid,
    build_learning_rate,
    build_model,
    build_network,
    build_optimizer,
    build_plan,
    build_sampler,
    build_sde,
    build_weight,
)
from scoresde.config.files import config_from, load_config, override, to_plain, to_yaml
from scoresde.config.schema import Config, ConfigError
from scoresde.config.sections import Section, build, plain

__all__ = [
    "Config",
    "ConfigError",
    "Described",
    "Section",
    "build",
    "build_dataset",
    "build_grid",
    "build_learning_rate",
    "build_model",
    "build_network",
    "build_optimizer",
    "build_plan",
    "build_sampler",
    "build_sde",
    "build_weight",
    "config_from",
    "load_config",
    "override",
    "plain",
    "to_plain",
    "to_yaml",
]
