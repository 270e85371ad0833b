"""Prefetching in background threads."""

import subprocess
import sys
import threading
import time

import pytest

from ml.data.prefetch import prefetched


@pytest.mark.parametrize("num_workers", [0, 1, 2, 5])
def test_results_are_in_order_independent_of_completion(num_workers):
    def slow_at_first(item):
        time.sleep(0.02 / (item + 1))
        return item * item

    assert list(prefetched(slow_at_first, range(12), num_workers)) == [item * item for item in range(12)]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_at_most_one_more_result_than_workers_is_prefetched(num_workers):
    begun = []
    results = prefetched(begun.append, iter(range(100)), num_workers)
    for taken in range(1, 6):
        next(results)
        time.sleep(0.02)
        assert len(begun) <= taken + (num_workers + 1 if num_workers else 0)
    results.close()
    assert len(begun) <= 5 + num_workers + 1


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_an_error_is_raised_in_order_and_ends_the_threads(num_workers):
    before = threading.active_count()
    results = prefetched(lambda item: 1 // item, [1, 1, 0, 1], num_workers)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before


def test_all_workers_run_in_parallel():
    together = threading.Barrier(3, timeout=10)
    assert list(prefetched(lambda item: together.wait() >= 0, range(6), 3)) == [True] * 6


def test_closing_early_stops_all_threads():
    before = threading.active_count()
    results = prefetched(lambda item: time.sleep(0.01), range(1000), 4)
    next(results)
    begun = time.monotonic()
    results.close()
    assert time.monotonic() - begun < 1.0
    assert threading.active_count() == before


def test_closing_skips_pending_work():
    begun = []
    results = prefetched(lambda item: begun.append(item) or time.sleep(0.2 * item), range(100), 1)
    next(results)
    results.close()
    assert begun == [0, 1]


def test_a_hanging_thread_does_not_block_exit():
    program = """if True:
        import itertools, sys, threading
        from ml.data import prefetch
        prefetch._CLOSE_TIMEOUT = 0.1
        results = prefetch.prefetched(lambda item: item or threading.Event().wait(), itertools.count(1 - 2), 1)
        print(next(results), flush=True)
        results.close()
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "-1\n"), done.stderr
