"""How long a run still takes, by the rate of its last steps and the time of its last evaluations."""

import math
import time
from collections.abc import Callable

SETTLING = 2
"""First steps that do not count: they find memory, compile and fill caches."""
STEPS, SECONDS = 5, 2.0
"""How many steps, and seconds of training, there must have been to tell anything."""
EVALUATION_RATE = 3.0
"""How many times as fast as training evaluation is taken to be, before there has been one."""


class Forecast:
    """The time left of a run whose work is counted in tokens (or images), which tell more than steps do.

    The rate is that of the last quarter to half of an epoch, so that the forecast follows a machine that becomes
    slower or faster.
    """

    def __init__(
        self,
        epoch_tokens: int,
        epochs: int,
        evaluation_tokens: int,
        final_tokens: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            epoch_tokens: useful tokens of a whole epoch.
            epochs: of the whole run.
            evaluation_tokens: useful tokens of the evaluation after each epoch.
            final_tokens: those that are scored when training is over.
        """
        self._total, self._epochs = epoch_tokens * epochs, epochs
        self._window = max(1, epoch_tokens // 4)
        self._evaluation_tokens = evaluation_tokens
        self._final = final_tokens / max(1, evaluation_tokens)
        self._evaluation: float | None = None
        self._clock, self._steps = clock, 0
        self._older = self._newer = self._now = (0, 0.0)  # (tokens, seconds of training)

    def step(self, tokens: int, seconds: float) -> None:
        """Count a step, after which so many tokens and seconds of training are done in the whole run."""
        self._steps += 1
        self._now = now = (tokens, seconds)
        if self._steps <= SETTLING:
            self._older = self._newer = now
        elif tokens - self._newer[0] >= self._window:
            self._older, self._newer = self._newer, now

    def evaluated(self, seconds: float) -> None:
        """Note how long an evaluation has taken, with all that is done before the next epoch."""
        self._evaluation = seconds

    def left(self, epochs_done: int) -> float | None:
        """Seconds until the end, with all evaluations; None: there is too little to tell by."""
        tokens, seconds = (now - then for now, then in zip(self._now, self._older, strict=True))
        if self._steps < SETTLING + STEPS or not tokens or (seconds < SECONDS and self._evaluation is None):
            return None
        rate = seconds / tokens
        evaluation = self._evaluation
        if evaluation is None:
            evaluation = rate * self._evaluation_tokens / EVALUATION_RATE
        evaluations = max(0, self._epochs - epochs_done) + self._final
        return rate * max(0, self._total - self._now[0]) + evaluation * evaluations

    def end(self, epochs_done: int) -> str:
        """The time of day at which the run ends, as "14:32", with the date if that is another day; "" if not known."""
        left = self.left(epochs_done)
        return "" if left is None else time_of_day(left)

    def now(self) -> float:
        """The clock's reading in seconds."""
        return self._clock()


def time_of_day(seconds: float) -> str:
    """The time in so many seconds, to the minute: "14:32", or "2030-01-31 14:32" on another day."""
    now = time.time()
    end = time.localtime(60 * math.ceil((now + seconds) / 60))
    same_day = end[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M" if same_day else "%Y-%m-%d %H:%M", end)
