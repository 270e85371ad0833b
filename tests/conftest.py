"""Settings for all tests."""

import gc
import os
import signal
import sys

import pytest

# Two test processes share two cores: more threads per process would only compete.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_runtest_setup(item):
    """Skips what has the mark `gpu` where there is no CUDA device."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")


def pytest_collection():
    gc.disable()  # collections would take a third of the time


def pytest_collection_finish():
    """Frees what collecting the tests left, before the first module exempts the rest from garbage collection."""
    gc.collect()
    gc.set_threshold(5_000)
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def frozen_objects():
    """Exempts the modules of torch and of the tests from garbage collection, which a run in a test ends.

    A collection of all of them takes half a second, the time of several tests.
    """
    gc.collect(1)
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def compiled_functions():
    """Forgets what other modules compiled: torch compiles a function eight times at most, then runs it eagerly."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """Handles SIGINT as in the foreground: a shell ignores it for a command in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def hangups():
    """Handles SIGHUP, which `nohup` ignores, by its default in this process and those that it starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
