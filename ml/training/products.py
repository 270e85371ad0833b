"""Support of the device for matrix products in bfloat16."""

import functools
import platform
import time

import torch

_AMPERE = (8, 0)  # CUDA compute capability
_SIZE = 256  # rows of the measured matrices
_SLOW = 1.5  # seconds in bfloat16 over seconds in float32


def multiplies_natively(device: torch.device, dtype: torch.dtype) -> bool:
    """Returns False if products in `dtype` are emulated on `device`, and so slower than in float32."""
    if dtype != torch.bfloat16:
        return True
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _AMPERE
    return device.type != "cpu" or cpu_multiplies_bfloat16()


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Returns True if the CPU has instructions for products in bfloat16, which oneDNN may use.

    Asks oneDNN and the CPU. A torch build that cannot tell is measured.
    """
    with torch._C._DisableTorchDispatch():  # inside a FakeTensorMode too
        try:
            is_supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        except AttributeError:  # torch without oneDNN
            return slowdown(torch.bfloat16) < _SLOW
    # oneDNN also counts AVX-512 without bfloat16 instructions, where it converts to float32.
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_supported and (not is_x86 or torch.cpu._is_avx512_bf16_supported())


def slowdown(dtype: torch.dtype) -> float:
    """Measures the time of a product in `dtype` over that in float32 on this CPU, in a few milliseconds."""
    return _seconds(dtype) / _seconds(torch.float32)


def warning_of_products(device: torch.device, dtype: torch.dtype, setting: str) -> str | None:
    """Returns a warning if `device` emulates products in `dtype`; None if it does not.

    Args:
        device: The device to train on.
        dtype: The dtype of the matrix products of the run.
        setting: Name of the precision that chose it.
    """
    if multiplies_natively(device, dtype):
        return None
    name = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found = f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}) emulates"
    else:
        found = f"this CPU emulates: a product takes {slowdown(dtype):.1f} times as long as in float32"
    return f"{setting} multiplies in {name}, which {found}. Set Trainer.precision = @Float32"


def _seconds(dtype: torch.dtype) -> float:
    operand = torch.ones(_SIZE, _SIZE, dtype=dtype, device="cpu")
    times = []
    for _ in range(4):  # the first one also sets up libraries
        begun = time.perf_counter()
        operand @ operand
        times.append(time.perf_counter() - begun)
    return min(times)
