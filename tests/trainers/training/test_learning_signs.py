import pytest

from trainers.training.learning_signs import sign_of_failure, warning_of


def epoch(number, loss, **scores):
    return {"epoch": number, "train_loss": loss, "validation": scores}


GOOD = {"f1": 0.5, "confusion": [[3, 1], [2, 4]], "types": {"no": {}, "yes": {}}}


@pytest.mark.parametrize(
    ("epochs", "sign"),
    [
        ([epoch(1, 0.7, **GOOD)], None),
        ([epoch(1, 0.7, **GOOD), epoch(2, 0.5, **GOOD)], None),
        ([epoch(1, 0.7, f1=0.0)], "the validation f1 is 0: nothing is predicted rightly"),
        (
            [epoch(1, 0.7, **GOOD | {"confusion": [[0, 4], [0, 6]]})],
            "all 10 validation examples are predicted to be 'yes'",
        ),
        ([epoch(1, 0.7, **GOOD | {"confusion": [[0, 0], [0, 6]]})], None),  # there is no other label to be found
        (
            [epoch(1, 0.7, **GOOD), epoch(2, 0.2, **GOOD), epoch(3, 0.695, **GOOD)],
            "the training loss has not fallen: 0.7000 in epoch 1, 0.6950 in epoch 3",
        ),
        (
            [epoch(1, 9.0, pearson=0.2, r2=-5.0), epoch(2, 7.0, pearson=0.2, r2=-4.565)],
            "the validation R2 is -456.5%, worse than the labels' mean for all would be: learn them scaled to a mean "
            "near 0 and a deviation near 1",
        ),
        ([epoch(1, 9.0, pearson=0.2, r2=-5.0)], None),  # there is more to come
        ([epoch(1, 9.0, pearson=0.2, r2=-5.0), epoch(2, 1.0, pearson=0.2, r2=0.5)], None),
    ],
)
def test_signs(epochs, sign):
    assert sign_of_failure(epochs, "f1") == sign


def test_a_warning_comes_after_the_first_epoch_and_the_last():
    epochs = [epoch(number, 0.7, f1=0.0) for number in (1, 2, 3)]
    first, second, last = (warning_of(epochs[:n], "f1", 2e-3, ended=n == 3) for n in (1, 2, 3))
    assert first.startswith("After the first epoch the validation f1 is 0")
    assert "three times lower or higher than 0.002 (--learning-rate)" in first
    assert second is None
    assert last.startswith("At the end of training the validation f1 is 0")
    assert warning_of([epoch(1, 0.7, **GOOD)], "f1", 2e-3, ended=True) is None
