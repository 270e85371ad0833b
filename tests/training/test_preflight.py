"""Warnings before a run: too little memory, data read too often."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ml.data import ByteTokenizer
from ml.data.token_files.writing import TokenWriter
from ml.distributed import MeshSizes
from ml.models.summary import memory_of_model
from ml.training import memory, preflight
from ml.training.guide import Guide
from ml.training.memory import available_cpu_memory, available_memory
from ml.training.preflight import memory_warning, repetition_warnings, warnings_of
from ml.training.summary import memory_of_training

CPU = torch.device("cpu")
GIB = 2**30


def machine(root, available=None, cgroup="", limits=()):
    """The files that Linux would have in `root`."""
    (root / "proc/self").mkdir(parents=True)
    if available is not None:
        (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemFree: 5 kB\nMemAvailable:  {available} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for file, limit in dict(limits).items():
        path = root / "sys/fs/cgroup" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    return root


CASES = {
    "no limit": (100, "0::/\n", {}, 100 * 1024),
    "limit of version 2": (100, "0::/a/b\n", {"a/b/memory.max": 4096}, 4096),
    "limit of a group above": (100, "0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": 5000}, 5000),
    "limit of the root of a container": (100, "0::/\n", {"memory.max": 6000}, 6000),
    "less free than allowed": (2, "0::/a\n", {"a/memory.max": 999_999}, 2048),
    "limit of version 1": (100, "5:cpu:/x\n4:memory:/c\n0::/\n", {"memory/c/memory.limit_in_bytes": 7000}, 7000),
    "several controllers": (100, "4:cpu,memory:/c\n", {"memory/c/memory.limit_in_bytes": 7000}, 7000),
    "a group of something else": (100, "4:cpu:/c\n", {"memory/c/memory.limit_in_bytes": 7000}, 100 * 1024),
}


@pytest.mark.parametrize(("available", "cgroup", "limits", "expected"), CASES.values(), ids=CASES)
def test_memory_of_a_cpu_is_what_is_free_and_allowed(tmp_path, available, cgroup, limits, expected):
    assert available_cpu_memory(machine(tmp_path, available, cgroup, limits)) == expected


def test_memory_of_a_machine_without_these_files_is_what_the_system_states(tmp_path, monkeypatch):
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert available_cpu_memory(tmp_path) == 4_096_000


def test_memory_of_a_cuda_device_is_all_that_it_has(monkeypatch):
    properties = {1: SimpleNamespace(total_memory=80 * GIB)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties[device.index])
    assert available_memory(torch.device("cuda", 1)) == 80 * GIB


def test_a_run_that_needs_more_memory_than_there_is_is_warned_of():
    needed = {"weights": 6 * GIB, "gradients": 6 * GIB, "optimizer state": 12 * GIB}
    assert memory_warning(needed, 24 * GIB, CPU) is None
    assert memory_warning(needed, None, CPU) is None
    warning = memory_warning(needed, 16 * GIB, CPU)
    assert "needs 24.0 GiB (weights, gradients, optimizer state) before any activation, and cpu has 16.0 GiB" in warning


def test_the_memory_of_a_run_is_its_weights_gradients_and_what_the_optimizer_keeps(tiny, monkeypatch):
    trainer = tiny()
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    tensors = len(list(trainer.model.parameters()))
    exact = 4 * (4 * count + tensors)  # float32: weights, gradients, two moments, and a count of steps for each tensor
    for available, number in ((exact, 0), (exact - 1, 1)):
        monkeypatch.setattr(preflight, "available_memory", lambda device, available=available: available)
        assert len(warnings_of(trainer, CPU)) == number


def test_data_read_more_than_ten_times_is_warned_of():
    assert repetition_warnings({"": 10.0}) == []
    assert repetition_warnings({"books": 3.0, "code": 9.9}) == []
    (warning,) = repetition_warnings({"": 42.4})
    assert "the run reads its data 42 times" in warning
    (warning,) = repetition_warnings({"books": 3.0, "code/python": 10.6})
    assert "the run reads the part 'code/python' of its data 11 times" in warning


def times(warnings):
    return [int(re.search(r"(\d+) times", warning)[1]) for warning in warnings]


def test_how_often_open_data_is_read_is_known(tiny, text_file):
    num_tokens = len(text_file.read_text())
    sequences = ((num_tokens - round(0.05 * num_tokens)) - 1) // 16
    trainer = tiny("TextData.validation_fraction = 0.05", "Trainer.num_steps = 1100")
    expected = 1100 * 4 / sequences
    assert expected > 10
    assert times(warnings_of(trainer, CPU, trainer.open_data().training)) == [pytest.approx(expected, rel=0.02)]
    assert warnings_of(trainer, CPU) == []  # text is not read before it is opened


def test_how_often_token_files_are_read_is_known_before_they_are_opened(tiny, tmp_path):
    folder = tmp_path / "tokens"
    writer = TokenWriter(folder, ByteTokenizer(), shard_tokens=1000)
    writer.append(np.ones(1600, dtype=np.uint8), np.arange(100, 1601, 100), num_bytes=1584)
    writer.finish({})
    bindings = ["Trainer.data = @TokenFiles", f"TokenFiles.paths = {str(folder)!r}", "Validation.every = None"]
    trainer = tiny(*bindings, "TokenFiles.validation_fraction = 0.5", "Trainer.num_steps = 250")
    assert times(warnings_of(trainer, CPU)) == [250 * 4 * 16 / 800]
    assert warnings_of(tiny(*bindings, "Trainer.num_steps = 250"), CPU) == []  # ten times exactly
    missing = [*bindings, f"TokenFiles.paths = {str(tmp_path / 'missing')!r}"]
    assert warnings_of(tiny(*missing, "Trainer.num_steps = 250000"), CPU) == []


def test_memory_is_that_of_one_process_of_a_mesh(tiny, monkeypatch):
    trainer = tiny()
    needed = sum({**memory_of_model(trainer.model), **memory_of_training(trainer)}.values())
    monkeypatch.setattr(preflight, "available_memory", lambda device: needed // 2 + 8)
    assert len(warnings_of(trainer, CPU)) == 1
    assert warnings_of(trainer, CPU, sizes=MeshSizes(data_shard=2)) == []
    assert warnings_of(trainer, CPU, sizes=MeshSizes(tensor=2, data_replicate=2)) == []
    assert len(warnings_of(trainer, CPU, sizes=MeshSizes(data_replicate=2))) == 1  # each replica has all of it


class Frozen(Guide):
    def __init__(self, model):
        self.model = model

    def inputs(self, batch, model):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("device", "sizes", "expected"),
    [("meta", MeshSizes(), 400), ("meta", MeshSizes(data_shard=2), 400), ("cpu", MeshSizes(), 0)],
)
def test_the_memory_warning_counts_a_frozen_model_unless_it_is_loaded(tiny, monkeypatch, device, sizes, expected):
    trainer, guide = tiny(), Frozen(nn.Linear(10, 10, bias=False, device=device))
    own = {**memory_of_model(trainer.model), **memory_of_training(trainer)}
    needed = sum(size // sizes.world_size for size in own.values()) + expected
    for available, number in ((needed, 0), (needed - 1, 1)):
        monkeypatch.setattr(preflight, "available_memory", lambda device: available)  # noqa: B023
        assert len(warnings_of(trainer, CPU, sizes=sizes, guide=guide)) == number


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(memory, "available_cpu_memory", lambda: 8 * GIB)
    assert available_memory(CPU) == 2 * GIB
