"""Methods that draw from the posterior of a measurement."""

from __future__ import annotations

from collections.abc import Callable

from scoresde import posterior
from scoresde.posterior import Method
from scoresde.registry.tables import Table

POSTERIORS: Table[Callable[..., Method]] = Table(
    {
        "replacement": posterior.Replacement,
        "repaint": posterior.RePaint,
        "langevin_replacement": posterior.LangevinReplacement,
        "dps": posterior.DPS,
        "pigdm": posterior.PiGDM,
        "tmpd": posterior.TMPD,
        "moment_matching": posterior.MomentMatching,
        "diffpir": posterior.DiffPIR,
        "daps": posterior.DAPS,
    }
)
