"""Configuration of a run: checked values, YAML files, and the objects built from them."""

from scoresde.config.build import (
    Described,
    build_codec,
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
from scoresde.config.schema import (
    AutoencoderConfig,
    Config,
    ConfigError,
    Schema,
    require_latents,
)
from scoresde.config.sections import Section, build, plain

__all__ = [
    "AutoencoderConfig",
    "Config",
    "ConfigError",
    "Described",
    "Schema",
    "Section",
    "build",
    "build_codec",
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
    "require_latents",
    "to_plain",
    "to_yaml",
]
