"""Memory of the training process: pages that stay with it, and objects that garbage collection skips."""

import contextlib
import ctypes
import gc
import mmap
import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

_TRIM_THRESHOLD, _MOST_MAPPINGS = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MOST_MAPPINGS: 65536}  # of glibc
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_NEVER = "2"  # overcommits: reserved memory is missing elsewhere


def keep_freed_pages() -> bool:
    """Keeps the pages of freed tensors in the process, for the next step to reuse.

    By default glibc returns large tensors to the kernel, and each step faults their pages in and clears them again:
    8% of a float32 step on a CPU (benchmarks/RESULTS.md). The peak of the memory does not change; between peaks less
    is returned. Linux backs the pages with huge ones, where it may, as tensors beyond the caches are read and written
    faster.

    Returns:
        True if the allocator of this process can do so; False without glibc, where nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    is_kept = bool(library.mallopt(_MOST_MAPPINGS, 0) and library.mallopt(_TRIM_THRESHOLD, -1))
    if is_kept:
        _reserve_huge_pages(library)
    return is_kept


def _reserve_huge_pages(library: ctypes.CDLL) -> None:
    """Grows the heap by half of the memory, without a page of it, and advises the kernel to use huge pages there."""
    if not _OVERCOMMIT.exists() or _OVERCOMMIT.read_text().strip() == _NEVER:
        return
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:  # `ulimit -v`: addresses are limited
        return
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 2
    begin = library.malloc(size)
    if begin is None:
        return
    offset = begin % mmap.PAGESIZE
    library.madvise(begin - offset, size + offset, mmap.MADV_HUGEPAGE)
    library.free(begin)


@contextlib.contextmanager
def freed_pages_kept() -> Iterator[None]:
    """Keeps freed pages in the body; after it they are returned to the kernel, as by default."""
    is_kept = keep_freed_pages()
    try:
        yield
    finally:
        if is_kept:
            library = ctypes.CDLL(None)
            for parameter, value in _DEFAULTS.items():
                library.mallopt(parameter, value)
            library.malloc_trim(0)


@contextlib.contextmanager
def unfrozen_afterwards() -> Iterator[None]:
    """Returns the objects of the body that `freeze_objects` froze to garbage collection."""
    try:
        yield
    finally:
        gc.unfreeze()


def freeze_objects() -> None:
    """Exempts all objects of the process from garbage collection, except for recent garbage, which is freed first.

    A later full collection then visits only newer objects, instead of those of the configuration, the model and
    compilation: 300,000 in a tiny run, which take 0.2 s, in each process at a different step.
    """
    gc.collect(1)
    gc.freeze()
