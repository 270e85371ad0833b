"""Memory of the training process: kept pages, and objects that are exempt from garbage collection."""

import gc
import platform
import resource
import weakref

import pytest
from warm_python import run_python

from ml.training.host_memory import freeze_objects, unfrozen_afterwards

NUM_ELEMENTS = 10_000_000  # 40 MB, above the largest block that glibc reuses by default
FAULTS_OF_FREED_TENSORS = f"""
import resource
import torch
from ml.training.host_memory import keep_freed_pages
{{before}}
for step in range(60):
    if step == 50:  # the first steps leave gaps of other sizes
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones({NUM_ELEMENTS})
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""
NUM_PAGES = 10 * NUM_ELEMENTS * 4 // resource.getpagesize()


def page_faults(before, folder):
    """Page faults of ten tensors after others of their size were freed, in a separate process."""
    done = run_python("-c", FAULTS_OF_FREED_TENSORS.format(before=before), cwd=folder)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep pages")
def test_the_pages_of_freed_tensors_are_used_again_without_page_faults(tmp_path):
    assert page_faults("keep_freed_pages()", tmp_path) < 0.2 * NUM_PAGES
    assert page_faults("", tmp_path) > 0.9 * NUM_PAGES  # what it prevents


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep pages")
def test_pages_are_returned_again_after_a_run(tmp_path):
    body = "from ml.training.host_memory import freed_pages_kept\nwith freed_pages_kept():\n    torch.ones(10)"
    assert page_faults(body, tmp_path) > 0.9 * NUM_PAGES


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
