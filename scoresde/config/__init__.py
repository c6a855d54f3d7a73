"""Configuration of a run: checked values, YAML files, and the objects built from them."""

from scoresde.config.build import (
    Described,
    build_conditions,
    build_dataset,
    build_grid,
    build_model,
    build_network,
    build_plan,
    build_reporting,
    build_sampler,
    build_sde,
    measured,
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
    "build_conditions",
    "build_dataset",
    "build_grid",
    "build_model",
    "build_network",
    "build_plan",
    "build_reporting",
    "build_sampler",
    "build_sde",
    "config_from",
    "load_config",
    "measured",
    "override",
    "plain",
    "to_plain",
    "to_yaml",
]
