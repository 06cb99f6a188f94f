"""Calls of several pictures run together, and each gets what it would have got alone."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from safelight.runtime.backends import Array, TensorSpec
from safelight.runtime.serving.batching import Batcher, Cancelled, NumericalError, Ran, Seat

LIMIT = 30  # seconds after which a test is stuck


class Doubling:
    """A network: twice the sample, plus the timestep, plus a row's mean; it notes the batches that it was given."""

    def __init__(self, *, fails: Callable[[Array], bool] = lambda _: False, error: Any = None) -> None:
        self.inputs = (
            TensorSpec("sample", np.dtype(np.float32), ("batch", 2, "height")),
            TensorSpec("timestep", np.dtype(np.float32), ("batch",)),
        )
        self.outputs = (TensorSpec("out_sample", np.dtype(np.float32), ("batch", 2, "height")),)
        self.batches: list[Array] = []
        self.fails, self.error = fails, error or RuntimeError("broken")
        self.entered, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()
        self.closed = False

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        sample, timestep = inputs["sample"], inputs["timestep"]
        self.batches.append(sample.copy())
        self.entered.set()
        assert self.may_end.wait(LIMIT)
        if self.fails(sample):
            raise self.error
        return {"out_sample": 2 * sample + timestep[:, None, None] + sample.mean(axis=(1, 2), keepdims=True)}

    def close(self) -> None:
        self.closed = True


def expected(sample: Array, timestep: float) -> Array:
    return Doubling()({"sample": sample, "timestep": np.full(len(sample), timestep, np.float32)})["out_sample"]


@pytest.fixture
def ran() -> list[Ran]:
    return []


@pytest.fixture
def batcher(ran: list[Ran]) -> Iterator[Batcher]:
    opened = Batcher(ran=ran.append)
    yield opened
    opened.close()


class Pictures:
    """Pictures that are made in threads, which begin together."""

    def __init__(self, batcher: Batcher) -> None:
        self.batcher = batcher
        self.seats: list[Seat] = []
        self.found: dict[int, Any] = {}
        self._works: list[Callable[[], Any]] = []

    def add(self, work: Callable[[], Any]) -> Seat:
        self.seats.append(Seat())
        self._works.append(work)
        return self.seats[-1]

    def start(self) -> None:
        barrier = threading.Barrier(len(self._works))
        self.threads = [
            threading.Thread(target=self._make, args=(index, barrier), daemon=True) for index in range(len(self._works))
        ]
        for thread in self.threads:
            thread.start()

    def join(self) -> dict[int, Any]:
        for thread in self.threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
        return self.found

    def made(self) -> dict[int, Any]:
        self.start()
        return self.join()

    def _make(self, index: int, barrier: threading.Barrier) -> None:
        try:
            with self.batcher.seated(self.seats[index]):
                barrier.wait(LIMIT)
                self.found[index] = self._works[index]()
        except BaseException as error:
            self.found[index] = error


def call(network: Any, sample: Array, timestep: float) -> Array:
    found = network({"sample": sample, "timestep": np.full(len(sample), timestep, np.float32)})
    return found["out_sample"]


def sample(seed: int, rows: int = 2, height: int = 3) -> Array:
    return np.random.default_rng(seed).random((rows, 2, height), dtype=np.float32)


def test_calls_of_pictures_at_different_steps_are_one_batch(batcher: Batcher, ran: list[Ran]) -> None:
    inner = Doubling()
    shared = batcher.shared("unet", inner, most=8)
    pictures = Pictures(batcher)
    for index, rows in enumerate((2, 1, 2)):
        pictures.add(lambda index=index, rows=rows: call(shared, sample(index, rows), 10.0 * index))
    found = pictures.made()
    for index, rows in enumerate((2, 1, 2)):
        np.testing.assert_array_equal(found[index], expected(sample(index, rows), 10.0 * index))
    assert [len(batch) for batch in inner.batches] == [5]
    assert [(each.network, each.calls, each.rows) for each in ran] == [("unet", 3, 5)]


def test_calls_of_other_shapes_or_outputs_wait_for_their_own_turn(batcher: Batcher) -> None:
    inner = Doubling()
    shared = batcher.shared("unet", inner, most=8)
    pictures = Pictures(batcher)
    for index, height in enumerate((3, 4, 3, 5)):
        pictures.add(lambda index=index, height=height: call(shared, sample(index, 1, height), 1.0))
    found = pictures.made()
    assert sorted(batch.shape for batch in inner.batches) == [(1, 2, 4), (1, 2, 5), (2, 2, 3)]
    for index, height in enumerate((3, 4, 3, 5)):
        np.testing.assert_array_equal(found[index], expected(sample(index, 1, height), 1.0))


def test_no_more_than_so_many_share_a_call_and_nobody_is_forgotten(batcher: Batcher) -> None:
    inner = Doubling()
    shared = batcher.shared("unet", inner, most=2)
    pictures = Pictures(batcher)
    for index in range(5):
        pictures.add(lambda index=index: [call(shared, sample(10 * index + step, 1), step) for step in range(4)])
    found = pictures.made()
    assert max(len(batch) for batch in inner.batches) == 2
    for index in range(5):
        for step in range(4):
            np.testing.assert_array_equal(found[index][step], expected(sample(10 * index + step, 1), step))


def test_pictures_leave_and_others_go_on(batcher: Batcher) -> None:
    inner = Doubling()
    shared = batcher.shared("unet", inner, most=8)
    pictures = Pictures(batcher)
    for index, steps in enumerate((1, 2, 3)):
        pictures.add(lambda index=index, steps=steps: [call(shared, sample(index, 1), step) for step in range(steps)])
    found = pictures.made()
    assert [len(batch) for batch in inner.batches] == [3, 2, 1]
    assert [len(found[index]) for index in range(3)] == [1, 2, 3]


def test_who_does_something_else_keeps_nobody_waiting(batcher: Batcher) -> None:
    inner = Doubling()
    shared = batcher.shared("unet", inner, most=8)
    pictures = Pictures(batcher)
    first_done = threading.Event()

    def apart() -> Array:
        with batcher.apart():
            assert first_done.wait(LIMIT)  # it never is, if the other waits for this picture's call
        return call(shared, sample(1, 1), 1.0)

    def first() -> Array:
        found = call(shared, sample(0, 1), 0.0)
        first_done.set()
        return found

    pictures.add(first)
    pictures.add(apart)
    found = pictures.made()
    np.testing.assert_array_equal(found[1], expected(sample(1, 1), 1.0))
    assert len(inner.batches) == 2


def test_outside_of_a_picture_a_network_runs_at_once(batcher: Batcher) -> None:
    inner = Doubling()
    np.testing.assert_array_equal(call(batcher.shared("unet", inner, most=8), sample(0), 5.0), expected(sample(0), 5.0))
    assert threading.active_count() >= 2
    assert len(inner.batches) == 1


def test_one_that_breaks_the_engine_breaks_no_other(batcher: Batcher) -> None:
    inner = Doubling(fails=lambda batch: bool((batch == 99).any()))
    shared = batcher.shared("unet", inner, most=8)
    pictures = Pictures(batcher)
    for index in range(3):
        broken = np.full((1, 2, 3), 99, np.float32)
        pictures.add(lambda index=index, broken=broken: call(shared, broken if index == 1 else sample(index, 1), 0.0))
    found = pictures.made()
    assert isinstance(found[1], RuntimeError)
    assert str(found[1]) == "broken"
    for index in (0, 2):
        np.testing.assert_array_equal(found[index], expected(sample(index, 1), 0.0))
    assert [len(batch) for batch in inner.batches] == [3, 1, 1, 1]


def test_a_batch_that_is_too_large_is_made_smaller_from_then_on(batcher: Batcher) -> None:
    inner = Doubling(fails=lambda batch: len(batch) > 2, error=MemoryError("full"))
    shared = batcher.shared("unet", inner, most=8)
    pictures = Pictures(batcher)
    for index in range(4):
        pictures.add(lambda index=index: [call(shared, sample(index, 1), step) for step in range(3)])
    found = pictures.made()
    for index in range(4):
        np.testing.assert_array_equal(found[index], [expected(sample(index, 1), step) for step in range(3)])
    assert [len(batch) for batch in inner.batches] == [4, 1, 1, 1, 1, 2, 2, 2, 2]


def test_one_that_waits_is_cancelled_at_once(batcher: Batcher) -> None:
    inner = Doubling()
    shared = batcher.shared("unet", inner, most=8)
    holder, waiting = Seat(), Seat()
    ready = threading.Event()
    found: list[Any] = []

    def wait() -> None:
        try:
            with batcher.seated(waiting):
                ready.set()
                call(shared, sample(0), 0.0)
        except Cancelled as error:
            found.append(error)

    with batcher.seated(holder):  # takes part, and calls nothing: the other waits
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        assert ready.wait(LIMIT)
        batcher.cancel(waiting)
        thread.join(LIMIT)
    assert len(found) == 1
    assert not inner.batches


def test_one_whose_call_runs_is_cancelled_after_it_and_the_others_get_theirs(batcher: Batcher) -> None:
    inner = Doubling()
    inner.may_end.clear()
    shared = batcher.shared("unet", inner, most=8)
    pictures = Pictures(batcher)
    calls: list[int] = []

    def steps(index: int) -> Array:
        for _ in range(3):
            calls.append(index)
            found = call(shared, sample(index, 1), 0.0)
        return found

    for index in range(2):
        pictures.add(lambda index=index: steps(index))
    pictures.start()
    assert inner.entered.wait(LIMIT)
    batcher.cancel(pictures.seats[0])
    inner.may_end.set()
    found = pictures.join()
    assert isinstance(found[0], Cancelled)
    np.testing.assert_array_equal(found[1], expected(sample(1, 1), 0.0))
    assert calls.count(0) == 1
    assert [len(batch) for batch in inner.batches] == [2, 1, 1]


def test_numbers_that_are_not_finite_are_the_pictures_own_error(batcher: Batcher) -> None:
    shared = batcher.shared("unet", Doubling(), most=8)
    pictures = Pictures(batcher)
    pictures.add(lambda: call(shared, np.full((1, 2, 3), np.nan, np.float32), 0.0))
    pictures.add(lambda: call(shared, sample(1, 1), 0.0))
    found = pictures.made()
    assert isinstance(found[0], NumericalError)
    assert "unet" in str(found[0])
    np.testing.assert_array_equal(found[1], expected(sample(1, 1), 0.0))


def test_an_engine_of_fixed_sizes_meets_powers_of_two(ran: list[Ran]) -> None:
    batcher = Batcher(fixed_sizes=True, ran=ran.append)
    inner = Doubling()
    shared = batcher.shared("unet", inner, most=8)
    pictures = Pictures(batcher)
    for index in range(7):
        pictures.add(lambda index=index: call(shared, sample(index, 2 if index < 6 else 1), 0.0))
    found = pictures.made()
    batcher.close()
    assert sorted(len(batch) for batch in inner.batches) == [1, 4, 8]
    for index in range(7):
        np.testing.assert_array_equal(found[index], expected(sample(index, 2 if index < 6 else 1), 0.0))


def test_closing_ends_those_that_wait_and_the_network_is_closed_by_its_owner(batcher: Batcher) -> None:
    inner = Doubling()
    shared = batcher.shared("unet", inner, most=8)
    with batcher.seated(Seat()):
        pictures = Pictures(batcher)
        pictures.add(lambda: call(shared, sample(0), 0.0))
        pictures.start()
        batcher.close()
        assert isinstance(pictures.join()[0], Cancelled)
    shared.close()
    assert inner.closed


def test_the_rows_of_one_call_are_spread_over_the_streams(ran: list[Ran]) -> None:
    batcher = Batcher(streams=2, ran=ran.append)
    inner = Doubling()
    shared = batcher.shared("unet", inner, most=8)
    pictures = Pictures(batcher)
    pictures.add(lambda: [call(shared, sample(step, 5), step) for step in range(3)])
    found = pictures.made()
    batcher.close()
    assert sorted(len(batch) for batch in inner.batches) == [2, 2, 2, 3, 3, 3]
    np.testing.assert_array_equal(found[0], [expected(sample(step, 5), step) for step in range(3)])
    assert [each.calls for each in ran] == [1] * 6


def test_batches_of_two_streams_run_at_the_same_time() -> None:
    batcher = Batcher(streams=2)
    inner = Doubling()
    together = threading.Barrier(2)
    inner.fails = lambda _: together.wait(LIMIT) < 0  # nobody passes alone
    shared = batcher.shared("unet", inner, most=8)
    pictures = Pictures(batcher)
    for index, height in enumerate((3, 4)):
        pictures.add(lambda index=index, height=height: call(shared, sample(index, 1, height), 1.0))
    found = pictures.made()
    batcher.close()
    for index, height in enumerate((3, 4)):
        np.testing.assert_array_equal(found[index], expected(sample(index, 1, height), 1.0))


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_nothing_is_mixed_up_among_many(streams: int) -> None:
    batcher = Batcher(streams=streams)
    shared = batcher.shared("unet", Doubling(), most=4)
    pictures = Pictures(batcher)
    kinds = [(index, 1 + index % 3, 3 + index % 2, 2 + index % 5) for index in range(12)]
    for index, rows, height, steps in kinds:
        pictures.add(
            lambda index=index, rows=rows, height=height, steps=steps: [
                call(shared, sample(100 * index + step, rows, height), step) for step in range(steps)
            ]
        )
    pictures.start()
    batcher.cancel(pictures.seats[4])
    found = pictures.join()
    batcher.close()
    for index, rows, height, steps in kinds:
        if index != 4:
            right = [expected(sample(100 * index + step, rows, height), step) for step in range(steps)]
            np.testing.assert_array_equal(found[index], right)


def test_a_part_that_fails_fails_its_picture_alone() -> None:
    batcher = Batcher(streams=2)
    inner = Doubling(fails=lambda batch: bool((batch == 99).any()))
    shared = batcher.shared("unet", inner, most=8)
    broken = sample(7, 2)
    broken[1] = 99
    pictures = Pictures(batcher)
    pictures.add(lambda: call(shared, broken, 0.0))
    pictures.add(lambda: [call(shared, sample(1, 2), step) for step in range(3)])
    found = pictures.made()
    batcher.close()
    assert isinstance(found[0], RuntimeError)
    np.testing.assert_array_equal(found[1], [expected(sample(1, 2), step) for step in range(3)])
