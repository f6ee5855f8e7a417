"""Batches across requests: a queue in front of a model, whose one thread joins what waits and splits what is large.

Requests take turns, one input each, until a batch is full, so a short one behind a long one waits for one batch and not
for all of it. A batch begins with the first in line whatever its size; others join it if they fit.
"""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

Predict = Callable[[list[Any]], list[Any]]


class QueueFull(Exception):
    """More inputs wait than may."""


class QueueClosed(Exception):
    """The queue takes no more work, or gave up what it had."""


@dataclass(eq=False)
class Job:
    """The inputs of one request on their way through a queue."""

    key: Hashable
    """Jobs with equal keys may share a batch: the same model, adapter, options and kind of input."""
    predict: Predict
    inputs: Sequence[Any]
    costs: Sequence[int]
    """About how many tokens each input has."""
    results: list[Any] = field(default_factory=list)
    future: Future[list[Any]] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def waiting(self) -> int:
        """Inputs without a result."""
        return len(self.inputs) - len(self.results)


@dataclass
class BatchQueue:
    """Jobs in, results out; `start` begins to work.

    A job's results are those of its inputs in order. If a batch fails, its jobs are computed one by one, so that an
    error reaches the request whose input caused it and no other.
    """

    batch_tokens: int
    """Tokens after which a batch is full."""
    wait: float
    """Seconds that the first job waits for as many others as lately came together."""
    most: int
    """Inputs that may wait."""
    on_batch: Callable[[int, int], None] | None = None
    """Called with (inputs, requests) of each batch."""

    def __post_init__(self) -> None:
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._computing = False
        self._together = 1  # jobs that lately were there at once
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Inputs without a result."""
        with self._changed:
            return sum(job.waiting for job in self._jobs if not job.future.cancelled())

    @property
    def works(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    @property
    def computes(self) -> bool:
        """Whether a batch is being computed."""
        return self._computing

    def submit(self, job: Job) -> Future[list[Any]]:
        """Put a job in line. Its future may be cancelled: what is not computed by then never is.

        Raises:
            QueueFull: too many inputs wait already.
            QueueClosed: no more work is taken.
        """
        with self._changed:
            if self._closed:
                raise QueueClosed
            waiting = sum(other.waiting for other in self._jobs if not other.future.cancelled())
            if waiting and waiting + len(job.inputs) > self.most:
                raise QueueFull
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self, *, abandon: bool = False) -> None:
        """Take no more jobs; with ``abandon`` fail those that wait with `QueueClosed`, else finish them."""
        with self._changed:
            self._closed = True
            if abandon:
                for job in self._jobs:
                    self._settle(job, QueueClosed())
                self._jobs.clear()
            self._changed.notify()

    def _work(self) -> None:
        while taken := self._take():
            self._computing = True
            self._compute(taken)
            self._computing = False

    def _take(self) -> list[tuple[Job, int]]:
        """The next batch: (a job, how many of its inputs). Empty: the queue is closed and everything is answered."""
        with self._changed:
            while True:
                self._jobs = [job for job in self._jobs if not job.future.done()]
                if not self._jobs:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                left = self._jobs[0].arrived + self.wait - time.monotonic()
                full = len(self._jobs) >= self._together or self._tokens() >= self.batch_tokens
                if left <= 0 or full or self._closed:
                    return self._choose()
                self._changed.wait(left)

    def _tokens(self) -> int:
        return sum(sum(job.costs[len(job.results) :]) for job in self._jobs)

    def _choose(self) -> list[tuple[Job, int]]:
        key, left = self._jobs[0].key, self.batch_tokens
        counts: dict[Job, int] = {}
        turn = [job for job in self._jobs if job.key == key]
        while turn and left > 0:
            again = []
            for job in turn:
                place = len(job.results) + counts.get(job, 0)
                if counts and job.costs[place] > left:
                    continue
                counts[job] = counts.get(job, 0) + 1
                left -= job.costs[place]
                if place + 1 < len(job.inputs):
                    again.append(job)
            turn = again
        # Those that had no turn stay in front.
        self._jobs = [job for job in self._jobs if job not in counts] + list(counts)
        return list(counts.items())

    def _compute(self, taken: list[tuple[Job, int]]) -> None:
        parts = [list(job.inputs[len(job.results) : len(job.results) + count]) for job, count in taken]
        try:
            results = iter(taken[0][0].predict([one for part in parts for one in part]))
            for (job, _), part in zip(taken, parts, strict=True):
                job.results.extend(next(results) for _ in part)
        except BaseException as error:  # the tokenizers' panics are no Exception, and this thread must go on
            self._compute_alone(taken, parts, error)
        if self.on_batch is not None:
            self.on_batch(sum(map(len, parts)), len(parts))
        with self._changed:
            self._together = max(len(taken), len(self._jobs) - len(taken))
        for job, _ in taken:
            if not job.waiting:
                self._settle(job)

    def _compute_alone(self, taken: list[tuple[Job, int]], parts: list[list[Any]], error: BaseException) -> None:
        for (job, _), part in zip(taken, parts, strict=True):
            if len(taken) == 1:
                self._settle(job, error)
                continue
            try:
                job.results.extend(job.predict(part))
            except BaseException as own:
                self._settle(job, own)

    def _settle(self, job: Job, error: BaseException | None = None) -> None:
        """Give a job its results, or its error, unless it has one already or was cancelled."""
        with self._changed:
            if job.future.done() or not job.future.set_running_or_notify_cancel():
                return
            if error is None:
                job.future.set_result(job.results)
            else:
                job.future.set_exception(error if isinstance(error, Exception) else RuntimeError(type(error).__name__))
