"""What the tests against diffusers share."""

import warnings

import pytest


@pytest.fixture(scope="session")
def diffusers():
    """The package; without it these tests are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("diffusers", reason="needs diffusers: the extra 'parity'")
        found.utils.logging.set_verbosity_error()
        found.utils.logging.disable_progress_bar()
        return found


@pytest.fixture
def their_warnings():
    """What diffusers warns of is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
