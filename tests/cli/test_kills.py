"""SIGKILL at random moments: nothing unreadable, and the undisturbed run in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "kills.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_random_moments_lose_nothing(tmp_path):
    argv = [sys.executable, str(SCRIPT), "--count", "8", "--out", str(tmp_path / "kills.json")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=280, env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kills.json").exists()
