"""A function over many items in threads."""

import threading

import pytest

from vprompt.data.threads import MAX_WORKERS, ahead, in_threads


@pytest.mark.parametrize("count", [0, 1, 2, 4 * MAX_WORKERS - 1, 4 * MAX_WORKERS, 4 * MAX_WORKERS + 1, 100])
def test_results_are_in_the_order_of_the_items(count):
    assert list(in_threads(lambda item: item * item, range(count))) == [item * item for item in range(count)]
    assert list(ahead(iter(range(count)))) == list(range(count))


@pytest.mark.parametrize("count", [1, 2, 100])
def test_no_thread_is_left_with_the_last_result(count):
    """What would wait for threads in a finaliser swallows a Ctrl-C that comes in the middle of it."""
    before = threading.active_count()
    results = in_threads(abs, range(count))
    taken = [next(results) for _ in range(count)]
    assert (taken, threading.active_count()) == (list(range(count)), before)


@pytest.mark.parametrize("early", [0, 3, 99])
def test_an_error_is_raised_where_its_result_would_be_and_leaves_no_thread(early):
    before = threading.active_count()
    taken = []
    results = in_threads(lambda item: 1 // (early - item) or item, range(100))
    with pytest.raises(ZeroDivisionError):
        taken.extend(results)
    assert len(taken) == early
    assert threading.active_count() == before
