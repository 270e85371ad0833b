"""A CUDA device for builds of torch without CUDA: its tensors have shapes and devices, and no values."""

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ml.layers import tracing

SOURCE = Path(__file__).with_name("device.cpp")
CUDA = torch.device("cuda", 0)


class Event:
    """An event of a stream, which notes what is asked of it."""

    def __init__(self, **options: bool):
        self.is_recorded = self.is_awaited = False

    def record(self, stream: object = None) -> None:
        self.is_recorded = True

    def synchronize(self) -> None:
        self.is_awaited = True


class Generator(torch.Generator):
    """A generator of any device, on the CPU."""

    def __new__(cls, device: object = "cpu"):
        return super().__new__(cls, "cpu")


def obstacle() -> str | None:
    """Returns why there can be no pretended device here; None where there can."""
    if torch.version.cuda or torch.version.hip:
        return "this build of torch has a GPU's kernels, which would be run"
    return None if compiler() else "there is no C++ compiler"


def compiler() -> str | None:
    """Returns the C++ compiler of this machine."""
    return shutil.which(os.environ.get("CXX", "c++"))


def library(folder: Path) -> ctypes.CDLL:
    """Compiles the device, once for a version of torch, and loads it.

    Args:
        folder: Keeps the library.
    """
    of_torch = Path(torch.__file__).parent
    key = hashlib.sha256(f"{of_torch} {torch.__version__} {SOURCE.read_text()}".encode()).hexdigest()[:16]
    file = folder / f"device_{key}.so"
    if not file.exists():
        unfinished = folder / f"{file.name}.{os.getpid()}"  # another test process may compile it too
        libraries = [f"-L{of_torch / 'lib'}", f"-Wl,-rpath,{of_torch / 'lib'}", "-lc10", "-ltorch_cpu"]
        options = ["-std=c++20", "-shared", "-fPIC", "-w", f"-I{of_torch / 'include'}"]
        subprocess.run([compiler(), *options, SOURCE, "-o", unfinished, *libraries], check=True)
        unfinished.replace(file)
    return ctypes.CDLL(str(file))


@contextlib.contextmanager
def pretended_cuda(device: ctypes.CDLL) -> Iterator[FakeTensorMode]:
    """Makes "cuda" a device whose tensors have no values, for the thread that enters.

    Args:
        device: The library.

    Yields:
        The entered mode.
    """
    device.install()
    try:
        with contextlib.ExitStack() as stack:
            for patch in _of_python():
                stack.enter_context(patch)
            # In this thread, so that autograd needs no threads of a device that has none.
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            yield stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
    finally:
        device.uninstall()


def _of_python() -> Iterator[contextlib.AbstractContextManager]:
    """Yields replacements of what torch asks a CUDA device in Python."""
    cuda = torch.cuda
    answers = {
        "is_bf16_supported": True,
        "get_device_name": "NVIDIA H100 80GB HBM3",
        "get_device_capability": (9, 0),
        "manual_seed": None,
        "max_memory_allocated": 0,
    }
    for name, answer in answers.items():
        yield mock.patch.object(cuda, name, return_value=answer)
    yield mock.patch.object(cuda.amp.common, "amp_definitely_not_available", return_value=False)
    yield mock.patch.object(cuda, "Event", Event)
    yield mock.patch.object(torch, "Generator", Generator)
    # Tensors without values stand for ones that have some, which the code must not read.
    yield mock.patch.object(tracing, "FakeTensor", ())
