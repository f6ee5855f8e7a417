import numpy as np
import pytest

from trainers.finished import FinishedRun
from trainers.report.calibration import answers_of, coverage, expected_calibration_error
from trainers.report.evidence import Evidence, Options


def test_the_error_is_the_mean_distance_from_the_diagonal():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.65, 0.65, 1.0])
    right = np.array([True, True, False, False, True, False, True])
    error, bins = expected_calibration_error(confidence, right)
    # The bin from 0.9 on has 5 answers: confidence 0.96 on average, 3 of 5 right; that from 0.6 on has 0.65 and 1 of 2.
    assert error == pytest.approx((5 * 0.36 + 2 * 0.15) / 7)
    assert [row[2] for row in bins] == [0, 0, 0, 0, 0, 0, 2, 0, 0, 5]
    assert bins[6][3:] == pytest.approx((65.0, 50.0))
    assert bins[0][3:] == (None, None)


def test_answers_that_are_as_often_right_as_they_say_have_no_error():
    generator = np.random.default_rng(0)
    confidence = generator.random(200_000)
    error, _ = expected_calibration_error(confidence, generator.random(200_000) < confidence)
    assert error < 0.01
    assert expected_calibration_error(confidence, np.ones(200_000, bool))[0] == pytest.approx(0.5, abs=0.01)


def test_the_most_confident_are_kept_first():
    confidence = np.array([0.9, 0.2, 0.8, 0.4])
    rows = coverage(confidence, np.array([True, False, True, False]))
    kept = {percent: (right, least) for percent, right, least in rows}
    assert kept[25] == (100.0, 0.9)
    assert kept[50] == (100.0, 0.8)
    assert kept[75] == (pytest.approx(200 / 3), 0.4)
    assert kept[100] == (50.0, 0.2)


def test_answers_are_labels_or_predicted_entities(finished, finished_text):
    texts = Evidence(FinishedRun.open(finished_text), Options())
    answers = answers_of(texts)
    assert answers.right.mean() == pytest.approx(texts.run.run.result["test"]["accuracy"])
    assert np.all(answers.confidence >= 0.5)  # of two labels the likelier
    words = Evidence(FinishedRun.open(finished["full"]), Options())
    found = answers_of(words)
    assert found.noun == "predicted entities"
    assert found.right.mean() == pytest.approx(words.run.run.result["test"]["precision"])
