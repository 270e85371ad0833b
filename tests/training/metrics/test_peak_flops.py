"""Peak FLOPs of devices: listed, measured, or configured."""

import os
import time

import numpy as np
import pytest
import torch

from ml.training import products
from ml.training.metrics.peak_flops import listed_peak, measured_peak, peak_flops

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "compute_type", "teraflops"),
    [
        # From the makers' data sheets, without sparsity.
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "bfloat16", 989),
        ("NVIDIA H200", "tf32", 494),
        ("NVIDIA H200", "float32", 67),
        ("NVIDIA GH200 480GB", "bfloat16", 989),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA A100-SXM4-40GB", "float32", 19.5),
        ("NVIDIA A10", "bfloat16", 125),
        ("NVIDIA B200", "bfloat16", 2250),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 362),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165),
        ("AMD Instinct MI300X", "bfloat16", 1307),
    ],
)
def test_devices_are_listed_by_name(name, compute_type, teraflops):
    assert listed_peak(name, compute_type) == pytest.approx(teraflops * 1e12, rel=0.01)


@pytest.mark.parametrize(
    "name", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A1000", "Tesla T4"]
)
def test_a_device_of_another_name_is_not_taken_for_one_that_is_listed(name):
    assert listed_peak(name, "bfloat16") is None


def test_a_type_that_is_not_listed_is_measured():
    assert listed_peak("NVIDIA H200", "float64") is None


@pytest.mark.parametrize(("precision", "teraflops"), [("highest", 67), ("high", 494)])
def test_float32_on_cuda_is_what_torch_was_told_it_is(monkeypatch, precision, teraflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    peak = peak_flops(CUDA, torch.float32)
    assert peak.flops_per_second == pytest.approx(teraflops * 1e12, rel=0.01)
    assert peak.source == "listed for NVIDIA H200"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert peak_flops(CUDA, torch.bfloat16).flops_per_second == pytest.approx(989e12, rel=0.01)


def test_what_is_stated_beats_what_is_listed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert peak_flops(CUDA, torch.bfloat16, 5e14) == (5e14, "bfloat16", "Trainer.peak_flops")


def test_a_device_that_is_not_listed_is_measured_in_a_moment():
    measured_peak.cache_clear()
    begun = time.monotonic()
    peak = peak_flops(CPU, torch.float32)
    assert time.monotonic() - begun < 2.0  # a quarter of a second, and what a busy machine takes
    assert peak.compute_type == "float32"
    assert "measured" in peak.source
    assert peak_flops(CPU, torch.float32) == peak  # and only once


def test_the_measured_peak_is_about_what_numpy_reaches_on_as_many_threads():
    """Within a factor of three: other kernels, and caches that other processes share."""
    matrix = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    times = []
    for _ in range(4):
        begun = time.process_time()  # of all threads together, so that their number does not matter
        matrix @ matrix
        times.append(time.process_time() - begun)
    rate = 2.0 * 1024**3 / min(times)
    for num_threads in (1, torch.get_num_threads()):
        measured_peak.cache_clear()
        threads = min(num_threads, len(os.sched_getaffinity(0)))
        assert 1 / 3 < measured_peak(CPU, torch.float32, num_threads) / threads / rate < 3.0


def test_threads_that_no_processor_is_left_for_do_not_count():
    measured_peak.cache_clear()
    all_threads = len(os.sched_getaffinity(0))
    before = torch.get_num_threads()
    try:
        many = measured_peak(CPU, torch.float32, 64 * all_threads)
        assert many < 4.0 * measured_peak(CPU, torch.float32, all_threads)
    finally:
        torch.set_num_threads(before)


def test_measuring_leaves_the_number_of_threads_alone():
    measured_peak.cache_clear()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        peak_flops(CPU, torch.float32)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("precision", "compute_type"),
    [("Float32", "float32"), ("MixedBFloat16", "bfloat16"), ("PureBFloat16", "bfloat16")],
)
def test_the_peak_of_a_run_is_that_of_its_matrix_products(tiny, monkeypatch, precision, compute_type):
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: True)
    assert tiny(f"Trainer.precision = @{precision}").peak_flops(CPU).compute_type == compute_type


def test_measuring_leaves_the_random_state_alone():
    measured_peak.cache_clear()
    before = torch.get_rng_state()
    measured_peak(CPU, torch.bfloat16, torch.get_num_threads())
    assert torch.equal(torch.get_rng_state(), before)
