"""Peak FLOPs of a device, the reference of the model FLOPs utilization (MFU)."""

import functools
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ml.machine import num_usable_cores
from ml.training.products import multiplies_natively

_SECONDS_OF_MEASURING = 0.25
_SMALLEST, _LARGEST = 512, 16384  # rows of the matrices

# Dense FLOPs per second (data sheets often print the sparse numbers) by torch's device name: bfloat16 with float32
# accumulation, TF32, float32. A device without a full match, such as a GPU slice or a laptop GPU, is measured.
_LISTED = {
    # NVIDIA Blackwell, HGX B200 and GB200 NVL72 data sheets.
    r"NVIDIA B200": (2250e12, 1125e12, 75e12),
    r"NVIDIA GB200": (2500e12, 1250e12, 80e12),
    # NVIDIA H100, H200 and GH200 data sheets.
    r"NVIDIA (H100 80GB HBM3|H200|GH200 (120|144|480)GB)": (989.5e12, 494.7e12, 66.9e12),
    r"NVIDIA H100 PCIe": (756e12, 378e12, 51e12),
    r"NVIDIA H(100|200) NVL": (835.5e12, 417.5e12, 60e12),
    # NVIDIA A100, A40, A30 and A10 data sheets.
    r"NVIDIA A(100|800)-(SXM4|PCIE)-\d+GB|NVIDIA A(100|800) 80GB PCIe": (312e12, 156e12, 19.5e12),
    r"NVIDIA A40": (149.7e12, 74.8e12, 37.4e12),
    r"NVIDIA A30": (165e12, 82e12, 10.3e12),
    r"NVIDIA A10": (125e12, 62.5e12, 31.2e12),
    # NVIDIA L40S and L4 data sheets.
    r"NVIDIA L40S": (362e12, 183e12, 91.6e12),
    r"NVIDIA L4": (121e12, 60e12, 30.3e12),
    # NVIDIA's papers on the architectures GA102, AD102 and GB202, tables of GeForce cards.
    r"NVIDIA GeForce RTX 3090": (71e12, 35.6e12, 35.6e12),
    r"NVIDIA GeForce RTX 4090": (165.2e12, 82.6e12, 82.6e12),
    r"NVIDIA GeForce RTX 5090": (209.5e12, 104.8e12, 104.8e12),
    # AMD Instinct MI300X and MI325X data sheets.
    r"AMD Instinct MI3(00|25)X": (1307.4e12, 653.7e12, 163.4e12),
}


class PeakFlops(NamedTuple):
    """Peak rate of matrix products on one device.

    Attributes:
        flops_per_second: Floating-point operations per second.
        compute_type: "bfloat16", "tf32" or "float32".
        source: Setting, data sheet or measurement that the rate comes from.
    """

    flops_per_second: float
    compute_type: str
    source: str

    def as_json(self) -> dict[str, Any]:
        """Returns the fields for `environment.json`."""
        return self._asdict()


def peak_flops(device: torch.device, dtype: torch.dtype, stated: float | None = None) -> PeakFlops:
    """Returns the peak FLOPs of a device: configured, else listed, else measured.

    The peak is that of float32 where products in `dtype` are emulated, because the rest of a step would exceed theirs.

    Args:
        device: The device.
        dtype: The dtype of the operands of matrix products.
        stated: FLOPs per second from the configuration; None to look up or measure.
    """
    dtype = dtype if multiplies_natively(device, dtype) else torch.float32
    compute_type = _compute_type(device, dtype)
    if stated is not None:
        return PeakFlops(stated, compute_type, "Trainer.peak_flops")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    listed = listed_peak(name, compute_type) if name is not None else None
    if listed is not None:
        return PeakFlops(listed, compute_type, f"listed for {name}")
    rate = measured_peak(device, dtype, torch.get_num_threads())
    return PeakFlops(rate, compute_type, "measured with matrix products")


def listed_peak(device_name: str, compute_type: str) -> float | None:
    """Returns the FLOPs per second of the manufacturer's data sheet; None for a device that is not listed."""
    columns = ("bfloat16", "tf32", "float32")
    for pattern, peaks in _LISTED.items():
        if re.fullmatch(pattern, device_name) and compute_type in columns:
            return peaks[columns.index(compute_type)]
    return None


@functools.cache
def measured_peak(device: torch.device, dtype: torch.dtype, num_threads: int) -> float:
    """Measures the FLOPs per second of the fastest product of two square matrices, in a quarter of a second.

    On a CPU, measures one thread in thread time and multiplies by the number of threads that can run at once. Other
    processes do not affect the result; contention of the threads for clock and memory bandwidth is not subtracted.

    Args:
        device: The device.
        dtype: The dtype of the operands.
        num_threads: Threads of torch on the CPU.
    """
    if device.type == "cuda":
        return _fastest_product(device, dtype, _seconds_on_cuda)
    torch.set_num_threads(1)
    try:
        return _fastest_product(device, dtype, _seconds_of_thread) * min(num_threads, num_usable_cores())
    finally:
        torch.set_num_threads(num_threads)


def _fastest_product(device: torch.device, dtype: torch.dtype, seconds_of: Callable[[Tensor], float]) -> float:
    """Returns the highest FLOPs per second over the sizes that fit into the time."""
    deadline = time.monotonic() + _SECONDS_OF_MEASURING
    best, size = 0.0, _SMALLEST
    while True:
        operand = torch.randn(size, size, generator=torch.Generator(device), device=device).to(dtype)
        seconds = min(seconds_of(operand) for _ in range(4))  # the first ones also warm up
        best = max(best, 2.0 * size**3 / seconds)
        size *= 2
        if size > _LARGEST or time.monotonic() + 4 * 8 * seconds > deadline:
            return best


def _seconds_on_cuda(operand: Tensor) -> float:
    torch.cuda.synchronize(operand.device)
    begun = time.perf_counter()
    operand @ operand
    torch.cuda.synchronize(operand.device)
    return time.perf_counter() - begun


def _seconds_of_thread(operand: Tensor) -> float:
    begun = time.thread_time()
    operand @ operand
    return time.thread_time() - begun


def _compute_type(device: torch.device, dtype: torch.dtype) -> str:
    """Returns the type in which products of `dtype` tensors are computed; CUDA may round float32 to TF32."""
    rounds = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if dtype == torch.float32 and rounds else str(dtype).removeprefix("torch.")
