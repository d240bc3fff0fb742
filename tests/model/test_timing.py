"""Timing that compares."""

import threading
from statistics import median

import pytest
import torch

from vprompt.model.latency import latency

IMAGES = torch.zeros(4, 3, 8, 8)


def work(times):
    matrix = torch.randn(200, 200)

    def run(images):
        for _ in range(times):
            matrix @ matrix
        return images

    return run


def test_the_first_variant_is_what_others_are_compared_with():
    found = latency({"b": work(4), "a": work(1), "c": work(40)}, IMAGES, rounds=5)
    assert list(found) == ["b", "a", "c"]
    assert found["b"].ratio == 1.0
    assert found["b"].spread == (1.0, 1.0)
    assert found["c"].ratio > 2  # ten times the work
    assert found["c"].milliseconds > 2 * found["b"].milliseconds > 0
    assert found["c"].spread[0] <= found["c"].ratio <= found["c"].spread[1]


def test_every_round_asks_each_variant_in_turn_and_the_first_round_does_not_count():
    asked, threads, modes = [], set(), set()

    def variant(name):
        def run(images):
            asked.append(name)
            threads.add(torch.get_num_threads())
            modes.add(torch.is_inference_mode_enabled())
            assert images is IMAGES
            return images

        return run

    latency({"a": variant("a"), "b": variant("b")}, IMAGES, rounds=3)
    assert asked == ["a", "b"] * 4
    assert threads == {1}
    assert modes == {True}


def test_the_number_of_threads_is_as_before():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        latency({"a": work(1)}, IMAGES, rounds=1)
        assert torch.get_num_threads() == before + 1

        def fails(images):
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            latency({"a": fails}, IMAGES, rounds=1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_waiting_does_not_count_on_a_cpu():
    pause = threading.Event()

    def waits(images):
        pause.wait(0.05)
        return images

    found = latency({"works": work(1), "waits": waits}, IMAGES, rounds=3)
    assert found["waits"].milliseconds < 50 / len(IMAGES) / 2  # processor time, not the clock on the wall


def test_milliseconds_are_per_image():
    few, many = torch.zeros(2, 1), torch.zeros(64, 1)
    a, b = (
        median(latency({"a": work(20)}, images, rounds=5)["a"].milliseconds for _ in range(3)) for images in (few, many)
    )
    assert a > 8 * b  # the same work, 32 times as many images
