"""What a run is made of: the checked values (``schema``), and YAML files of them (``files``)."""

from scoresde.config.files import (
    ConfigError,
    config_from,
    load_config,
    override,
    to_plain,
    to_yaml,
)
from scoresde.config.schema import Config

__all__ = [
    "Config",
    "ConfigError",
    "config_from",
    "load_config",
    "override",
    "to_plain",
    "to_yaml",
]
