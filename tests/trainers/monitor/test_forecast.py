"""A run whose speed is known is the oracle: the forecast must hit its end."""

import re
import time

import pytest

from trainers.monitor.forecast import Forecast, time_of_day

EPOCHS, STEPS, TOKENS, EVALUATION = 4, 40, 100, 30.0


def simulate(seconds_of_step, at, final=0):
    """Run to the step ``at``; the forecast of what is left, and what is."""
    now = 0.0
    forecast = Forecast(STEPS * TOKENS, EPOCHS, evaluation_tokens=10, final_tokens=10 * final, clock=lambda: now)
    trained, told, truth = 0.0, None, None
    for step in range(1, EPOCHS * STEPS + 1):
        trained += seconds_of_step(step)
        now += seconds_of_step(step)
        forecast.step(step * TOKENS, trained)
        if step == at:
            told, truth = forecast.left((step - 1) // STEPS), -now
        if step % STEPS == 0:
            before, now = now, now + EVALUATION
            forecast.evaluated(now - before)
    return told, truth + now + final * EVALUATION


def test_after_the_first_evaluation_the_end_is_right_to_the_second():
    for at in (STEPS + 1, 2 * STEPS - 3, 3 * STEPS + 20):
        told, truth = simulate(lambda step: 0.5, at)
        assert told == pytest.approx(truth)


def test_the_scoring_at_the_end_counts():
    told, truth = simulate(lambda step: 0.5, STEPS + 7, final=3)
    assert told == pytest.approx(truth)


def test_slow_first_steps_do_not_count():
    told, truth = simulate(lambda step: 60.0 if step <= 2 else 0.5, STEPS + 5)
    assert told == pytest.approx(truth)


def test_it_follows_a_machine_that_becomes_slower():
    told, truth = simulate(lambda step: 0.5 if step <= 2 * STEPS else 1.0, 2 * STEPS + STEPS // 2 + 2)
    assert told == pytest.approx(truth, rel=0.02)


def test_too_little_says_nothing():
    assert simulate(lambda step: 0.5, 6)[0] is None  # too few steps
    assert simulate(lambda step: 0.01, 30)[0] is None  # too short a time
    told, truth = simulate(lambda step: 0.5, 8)
    assert told < truth  # evaluation is taken to be fast until one is seen
    assert told > 0.5 * (EPOCHS * STEPS - 8)


def test_a_run_that_goes_on_is_told_by_its_own_steps():
    forecast = Forecast(1000, 2, 0, clock=lambda: 0.0)
    for step in range(1, 10):  # 1,000 tokens in 500 s were done before, on another machine
        forecast.step(1000 + 10 * step, 500.0 + step)
    assert forecast.left(1) == pytest.approx(91)


def test_the_end_is_a_time_of_day():
    assert re.fullmatch(r"\d\d:\d\d", time_of_day(0)) or time.strftime("%H:%M") == "23:59"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", time_of_day(86400 * 2))
    hours, minutes = map(int, time_of_day(90).split(" ")[-1].split(":"))
    then = time.localtime(time.time() + 90)
    assert (60 * hours + minutes - 60 * then.tm_hour - then.tm_min) % 1440 in (0, 1)  # rounded up
