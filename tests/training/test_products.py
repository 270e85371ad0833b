"""Products in bfloat16 on a device that has no instructions for them: warning, peak, and the iteration of Muon."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ml.training import Muon, products
from ml.training.metrics.peak_flops import measured_peak, peak_flops
from ml.training.optimizers import ParameterGroup
from ml.training.preflight import warnings_of
from ml.training.products import cpu_multiplies_bfloat16, slowdown, warning_of_products

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def emulating(monkeypatch):
    """Makes oneDNN say that it has no bfloat16 instructions."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    cpu_multiplies_bfloat16.cache_clear()
    yield
    cpu_multiplies_bfloat16.cache_clear()


@pytest.mark.parametrize(("precision", "is_warned"), [("Float32", 0), ("MixedBFloat16", 1), ("PureBFloat16", 1)])
def test_a_run_with_emulated_products_is_warned_of_before_it_starts(tiny, emulating, monkeypatch, precision, is_warned):
    monkeypatch.setattr(products, "slowdown", lambda dtype: 52.04)
    found = warnings_of(tiny(f"Trainer.precision = @{precision}"), CPU)
    assert found == is_warned * [
        f"Trainer.precision = @{precision} multiplies in bfloat16, which this CPU emulates: a product takes 52.0 times "
        "as long as in float32. Set Trainer.precision = @Float32"
    ]
    assert warnings_of(tiny(f"Trainer.precision = @{precision}"), None) == []  # planned for another machine


def test_the_answer_agrees_with_a_measurement():
    script = "from ml.training.products import *; print(cpu_multiplies_bfloat16(), slowdown(torch.bfloat16))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", f"import torch; {script}"]
    answer, factor = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert answer == "False"
    assert float(factor) > 3.0  # 30 and more on an x86 CPU
    if cpu_multiplies_bfloat16():
        assert slowdown(torch.bfloat16) < 1.5


def test_a_build_that_cannot_tell_is_measured(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    for factor, answer in ((1.4, True), (4.0, False)):
        cpu_multiplies_bfloat16.cache_clear()
        monkeypatch.setattr(products, "slowdown", lambda dtype, factor=factor: factor)
        assert cpu_multiplies_bfloat16() is answer
    cpu_multiplies_bfloat16.cache_clear()


@pytest.mark.parametrize(("capability", "is_warned"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_cuda_devices_before_ampere_emulate(monkeypatch, capability, is_warned):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    warning = warning_of_products(CUDA, torch.bfloat16, "Trainer.precision = @MixedBFloat16")
    assert (warning is not None) is is_warned
    if warning:
        assert "which Tesla T4 (compute capability 7.5) emulates. Set Trainer.precision = @Float32" in warning


def test_the_peak_of_emulated_products_is_that_of_float32(emulating):
    assert peak_flops(CPU, torch.bfloat16) == peak_flops(CPU, torch.float32)
    assert peak_flops(CPU, torch.bfloat16).compute_type == "float32"
    assert peak_flops(CPU, torch.bfloat16).flops_per_second == measured_peak(
        CPU, torch.float32, torch.get_num_threads()
    )


class ProductTypes(TorchDispatchMode):
    """Records the dtypes of batched products."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "addbmm" in str(function):
            self.found = {*getattr(self, "found", ()), args[1].dtype}
        return function(*args, **(kwargs or {}))


def step_of_muon():
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(12, 20))
    optimizer = Muon(0.1).create([ParameterGroup(1.0, None, ["a.weight"], [weight])])
    weight.grad = torch.randn(12, 20, generator=generator)
    with ProductTypes() as types:
        optimizer.step()
    return weight.detach(), types.found


def test_muon_iterates_in_float32_where_bfloat16_is_emulated(monkeypatch, emulating):
    emulated, types = step_of_muon()
    assert types == {torch.float32}
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    cpu_multiplies_bfloat16.cache_clear()
    native, types = step_of_muon()
    assert types == {torch.bfloat16}
    # Five iterations in bfloat16 err by a few 2^-8 of a value of 0.02 to 0.1.
    torch.testing.assert_close(emulated, native, rtol=0.0, atol=0.03 * native.abs().max().item())
