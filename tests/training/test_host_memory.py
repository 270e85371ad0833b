"""Memory of the training process: kept pages, and objects that are exempt from garbage collection."""

import functools
import gc
import platform
import resource
import weakref
from pathlib import Path
from unittest.mock import Mock

import pytest
from warm_python import run_python

from ml.training import host_memory
from ml.training.host_memory import freeze_objects, unfrozen_afterwards

NUM_ELEMENTS = 10_000_000  # 40 MB, above the largest block that glibc reuses by default
FREED_TENSORS = f"""
import resource
import torch
from ml.training.host_memory import keep_freed_pages
{{before}}
for step in range(60):
    if step == 50:  # the first steps leave gaps of other sizes
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor = torch.ones({NUM_ELEMENTS})
    del tensor
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun
tensor = torch.ones({NUM_ELEMENTS})
flags = []
for line in open("/proc/self/smaps"):
    words = line.split()
    if "-" in words[0]:
        begin, end = (int(bound, 16) for bound in words[0].split("-"))
    elif words[0] == "VmFlags:" and begin <= tensor.data_ptr() + tensor.nbytes // 2 < end:
        flags = words[1:]
print(faults, "hg" in flags)
"""
NUM_PAGES = 10 * NUM_ELEMENTS * 4 // resource.getpagesize()
KEPT = "keep_freed_pages()"
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep pages")


@functools.cache
def freed_tensors(before):
    """Page faults of ten tensors after others of their size were freed, in a separate process; the advice for one."""
    done = run_python("-c", FREED_TENSORS.format(before=before), cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    faults, is_huge = done.stdout.split()
    return int(faults), is_huge == "True"


@needs_glibc
def test_the_pages_of_freed_tensors_are_used_again_without_page_faults():
    assert freed_tensors(KEPT)[0] < 0.2 * NUM_PAGES
    assert freed_tensors("")[0] > 0.9 * NUM_PAGES  # what it prevents


@needs_glibc
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
def test_kept_pages_are_huge_where_the_kernel_has_them():
    assert freed_tensors(KEPT)[1]
    assert not freed_tensors("")[1]


@needs_glibc
def test_pages_are_returned_again_after_a_run():
    body = "from ml.training.host_memory import freed_pages_kept\nwith freed_pages_kept():\n    torch.ones(10)"
    faults, is_huge = freed_tensors(body)
    assert faults > 0.9 * NUM_PAGES
    assert not is_huge


@pytest.mark.parametrize(
    ("policy", "address", "called"),
    [
        ("0", 4097, ["malloc", "madvise", "free"]),
        ("1", 4097, ["malloc", "madvise", "free"]),
        ("0", None, ["malloc"]),  # a limit of the process
        ("2", 4097, []),
        (None, 4097, []),
    ],
)
def test_addresses_are_reserved_only_where_they_do_not_count_as_memory(policy, address, called, tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "_OVERCOMMIT", tmp_path / "overcommit_memory")
    if policy is not None:
        (tmp_path / "overcommit_memory").write_text(f"{policy}\n")
    library = Mock()
    library.malloc.return_value = address
    host_memory._reserve_huge_pages(library)
    assert [name for name, *_ in library.mock_calls] == called


def test_no_addresses_are_reserved_under_a_limit_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "_OVERCOMMIT", tmp_path / "overcommit_memory")
    (tmp_path / "overcommit_memory").write_text("0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**40, resource.RLIM_INFINITY))
    library = Mock()
    host_memory._reserve_huge_pages(library)
    assert not library.mock_calls


class Ring:
    """An object in a reference cycle, which only garbage collection frees."""

    def __init__(self):
        self.itself = self


def test_frozen_objects_are_skipped_until_the_run_ends_and_garbage_is_freed_first():
    with unfrozen_afterwards():
        ring = weakref.ref(Ring())
        kept = Ring()
        is_alive = weakref.ref(kept)
        freeze_objects()
        assert ring() is None
        assert gc.get_freeze_count() > 0
        del kept
        gc.collect()
        assert is_alive() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert is_alive() is None
