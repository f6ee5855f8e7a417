"""The queue with a model that the test controls: what is computed together, in which order, and what is not."""

import threading
import time

import pytest

from trainers.service.batches import BatchQueue, Job, QueueClosed, QueueFull


class Model:
    """Doubles numbers, and notes what it was called with; while `held` it computes nothing."""

    def __init__(self):
        self.calls = []
        self.go = threading.Event()
        self.go.set()
        self.began = threading.Event()

    def __call__(self, inputs):
        self.calls.append(list(inputs))
        self.began.set()
        self.go.wait(10)
        if "bad" in inputs:
            raise ValueError("a bad input")
        return [2 * one for one in inputs]


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def make_queue():
    queues = []

    def make(batch_tokens=10, wait=0.0, most=1000, started=True):
        queue = BatchQueue(batch_tokens, wait, most)
        queues.append(queue)
        if started:
            queue.start()
        return queue

    yield make
    for queue in queues:
        queue.close(abandon=True)


def job(model, *inputs, cost=1, key="a"):
    return Job(key, model, inputs, [cost] * len(inputs))


def results(*futures):
    return [future.result(10) for future in futures]


def test_waiting_requests_are_joined_and_each_gets_its_own_in_order(make_queue, model):
    queue = make_queue(started=False)
    futures = [queue.submit(job(model, *numbers)) for numbers in [(1, 2), (3,), (4, 5, 6)]]
    queue.start()
    assert results(*futures) == [[2, 4], [6], [8, 10, 12]]
    assert model.calls == [[1, 2, 3, 4, 5, 6]]


def test_a_short_request_waits_for_one_part_of_a_long_one(make_queue, model):
    model.go.clear()
    queue = make_queue(batch_tokens=4)
    long = queue.submit(job(model, *range(40)))
    assert model.began.wait(10)
    short = queue.submit(job(model, 100))
    model.go.set()
    assert results(short, long) == [[200], [2 * number for number in range(40)]]
    assert [100 in call for call in model.calls].index(True) == 1
    assert all(len(call) <= 4 for call in model.calls)


def test_a_huge_input_is_computed_by_itself_and_in_its_turn(make_queue, model):
    queue = make_queue(started=False)
    small = [queue.submit(job(model, number, cost=3)) for number in (1, 2)]
    huge = queue.submit(job(model, 50, cost=1000))
    later = [queue.submit(job(model, number, cost=3)) for number in (3, 4, 5)]
    queue.start()
    assert results(*small, huge, *later) == [[2], [4], [100], [6], [8], [10]]
    assert model.calls == [[1, 2, 3], [50], [4, 5]]


def test_other_options_are_another_batch_and_nobody_is_passed_over(make_queue, model):
    queue = make_queue(started=False)
    futures = [queue.submit(job(model, number, key=key)) for number, key in enumerate("abab")]
    queue.start()
    assert results(*futures) == [[0], [2], [4], [6]]
    assert model.calls == [[0, 2], [1, 3]]


def test_an_error_reaches_the_request_that_caused_it(make_queue, model):
    queue = make_queue(started=False)
    good, bad, other = (queue.submit(job(model, *inputs)) for inputs in [(1,), ("x", "bad"), (2, 3)])
    queue.start()
    assert results(good, other) == [[2], [4, 6]]
    with pytest.raises(ValueError, match="a bad input"):
        bad.result(10)


def test_a_panic_of_a_library_does_not_end_the_queue(make_queue, model):
    class Panic(BaseException):
        pass

    def panics(inputs):
        raise Panic("a text")

    queue = make_queue()
    with pytest.raises(RuntimeError, match=r"^Panic$"):
        queue.submit(job(panics, 1)).result(10)
    assert results(queue.submit(job(model, 2))) == [[4]]
    assert queue.works


def test_what_was_cancelled_is_not_computed(make_queue, model):
    model.go.clear()
    queue = make_queue(batch_tokens=2)
    first = queue.submit(job(model, 1, 2))
    assert model.began.wait(10)
    unwanted = queue.submit(job(model, *range(500)))
    kept = queue.submit(job(model, 3))
    assert queue.waiting == 503
    assert unwanted.cancel()
    assert queue.waiting == 3
    model.go.set()
    assert results(first, kept) == [[2, 4], [6]]
    assert model.calls == [[1, 2], [3]]


def test_a_full_queue_refuses_and_an_empty_one_takes_anything(make_queue, model):
    model.go.clear()
    queue = make_queue(most=4)
    first = queue.submit(job(model, *range(6)))
    with pytest.raises(QueueFull):
        queue.submit(job(model, 1))
    model.go.set()
    results(first)
    assert results(queue.submit(job(model, 1))) == [[2]]


def test_a_closed_queue_finishes_what_it_has_and_an_abandoned_one_does_not(make_queue, model):
    queue = make_queue(started=False)
    accepted = queue.submit(job(model, 1))
    queue.close()
    with pytest.raises(QueueClosed):
        queue.submit(job(model, 2))
    queue.start()
    assert results(accepted) == [[2]]

    model.go.clear()
    queue = make_queue(batch_tokens=1)
    pair = queue.submit(job(model, 1, 2))
    queue.close(abandon=True)
    with pytest.raises(QueueClosed):
        pair.result(10)


def test_a_lone_client_is_not_kept_waiting_and_several_are_waited_for(make_queue, model):
    queue = make_queue(batch_tokens=100, wait=0.5)
    begin = time.monotonic()
    for number in range(5):
        results(queue.submit(job(model, number)))
    assert time.monotonic() - begin < 0.5
    model.calls.clear()
    model.go.clear()
    model.began.clear()
    futures = [queue.submit(job(model, 1))]
    assert model.began.wait(10)
    futures += [queue.submit(job(model, number)) for number in (2, 3, 4)]
    model.go.set()
    results(*futures)
    # Three came together: the first of the next three waits for the others.
    futures = []
    for number in (5, 6, 7):
        futures.append(queue.submit(job(model, number)))
        time.sleep(0.02)
    results(*futures)
    assert model.calls == [[1], [2, 3, 4], [5, 6, 7]]
