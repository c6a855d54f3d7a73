"""Entry point of ``scoresde``: selects a command, parses its flags, maps errors to exit codes.

Exit codes: 0 success, 1 failure while running, 2 bad input, 130 interrupted. Torch is
imported only after the flags have been checked.
"""

from __future__ import annotations

import keyword
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from scoresde.arguments import nearest

MISSING_FILES = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


class Command(NamedTuple):
    """A command: its summary, options class and sections of the configuration ``schema``.

    The module ``module_of(name)`` of ``scoresde.cli`` defines its ``run(options, overrides)``.
    """

    summary: str
    options: str
    sections: tuple[str, ...] = ()
    schema: str = "Config"


COMMANDS = {
    "train": Command(
        "train a model, or resume a run",
        "TrainOptions",
        (
            "seed",
            "codec",
            "conditional",
            "self_conditioning",
            "data",
            "sde",
            "parameterization",
            "network",
            "train",
            "sample",
            "likelihood",
        ),
    ),
    "train-autoencoder": Command(
        "train an autoencoder, whose latents a model can learn",
        "TrainOptions",
        ("seed", "data", "autoencoder", "loss", "discriminator", "train"),
        "AutoencoderConfig",
    ),
    "train-classifier": Command(
        "train a classifier of noisy states, to guide a model", "TrainClassifierOptions"
    ),
    "sample": Command("draw samples from a trained model", "SampleOptions", ("sample",)),
    "likelihood": Command(
        "score data in bits per dimension, with errors",
        "LikelihoodOptions",
        ("likelihood", "data"),
    ),
    "evaluate": Command("compare samples with real data", "EvaluateOptions", ("data", "sample")),
    "edit": Command(
        "edit pictures: inpaint, colourise, enlarge, vary, interpolate",
        "EditOptions",
        ("data", "sample"),
    ),
    "compare": Command("compare samplers on a trained model: error and calls", "CompareOptions"),
    "export": Command("write a trained model as a folder of diffusers", "ExportOptions"),
    "verify": Command("measure the order of every sampler", "VerifyOptions"),
    "import": Command("read a published checkpoint of another program", "ImportOptions"),
    "ui": Command("serve a page that draws, edits, compares, inspects and trains", "UIOptions"),
    "info": Command("list the available names, or describe a run", "InfoOptions"),
}


def module_of(name: str) -> str:
    """The module of a command: its name with _ for -, and behind a keyword of Python."""
    return f"{name.replace('-', '_')}{'_' * keyword.iskeyword(name)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (by default ``sys.argv``) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    # Torch reads this when it is imported. By default a waiting OpenMP thread spins, and so takes
    # the core from a thread with work whenever another program is running.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.formatwarning = _one_line
    try:
        return _dispatch(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        text, code = _verdict(error)
        return _fail(_flagged(text, arguments[0]), code)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(import_module("scoresde").__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}; {nearest(name, COMMANDS)}")
    flags, options = import_module("scoresde.cli.flags"), import_module("scoresde.cli.options")
    command = COMMANDS[name]
    schema = getattr(import_module("scoresde.config"), command.schema)
    found, overrides = flags.parse(
        getattr(options, command.options), rest, f"scoresde {name}", command.sections, schema
    )
    run: Callable[[Any, dict[str, Any]], int] = import_module(
        f"scoresde.cli.{module_of(name)}"
    ).run
    return run(found, overrides)


def _flagged(text: str, name: str) -> str:
    """Replace argument names in a library message by flags: the leading name, and ``x=True``."""
    if name not in COMMANDS:
        return text
    flags, options = import_module("scoresde.cli.flags"), import_module("scoresde.cli.options")
    command = COMMANDS[name]
    schema = getattr(import_module("scoresde.config"), command.schema)

    def flag(found: re.Match[str]) -> str:
        spelt = flags.spelling(
            getattr(options, command.options), command.sections, found[1], schema
        )
        return found[0] if spelt is None else str(spelt)

    text = re.sub(r"(?:^|(?<=; ))([a-z]\w*(?:\.\w+)*)(?=:| is | and )", flag, text)
    return re.sub(r"\b(?<!\.)([a-z]\w*)=True\b", flag, text)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {c.summary}" for name, c in COMMANDS.items())
    return (
        "usage: scoresde COMMAND [OPTIONS]\n\n"
        f"{commands}\n\nscoresde COMMAND --help lists the options of a command."
    )


def _verdict(error: Exception) -> tuple[str, int]:
    """One-line message and exit code of an error."""
    text = " ".join(str(error).split())
    match error:
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{error.strerror or text}", 2 if isinstance(error, MISSING_FILES) else 1
        case ValueError():
            return text, 2
        case RuntimeError():
            return text, 1
        case _:
            return f"{type(error).__name__}: {text}; --debug prints the traceback", 1


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Format a warning without its location in the code."""
    return f"scoresde: warning: {message}\n"


def _fail(message: str, code: int) -> int:
    print(f"scoresde: error: {message}", file=sys.stderr)
    return code
