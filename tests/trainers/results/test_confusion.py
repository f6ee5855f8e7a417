import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from trainers.results.confusion import entity_confusion, word_confusion, write_confusion
from trainers.run_folder import Run, save_predictions

LABELS = ["O", "B-Rate", "I-Rate", "B-Cap"]


def test_words_as_in_sklearn():
    generator = np.random.default_rng(0)
    gold, predicted = ([generator.integers(0, 4, size) for size in (5, 1, 9)] for _ in range(2))
    expected = confusion_matrix(np.concatenate(gold), np.concatenate(predicted), labels=range(4))
    assert (word_confusion(gold, predicted, LABELS) == expected).all()


def test_words_of_many_labels_in_narrow_integers():
    labels = [str(number) for number in range(279)]  # as of FiNER-139; the cache keeps labels in 16 bits
    gold, predicted = np.array([278, 0, 278], dtype=np.int16), np.array([278, 278, 1])
    found = word_confusion([gold], [predicted], labels)
    assert (found == confusion_matrix(gold, predicted, labels=range(279))).all()


def test_entities_meet_when_both_ends_agree():
    gold = [["B-Rate", "I-Rate", "O", "B-Cap", "O"], ["B-Cap", "O"], ["B-Rate", "I-Rate"]]
    predicted = [["B-Rate", "I-Rate", "O", "B-Rate", "B-Cap"], ["O", "O"], ["B-Rate", "O"]]
    assert entity_confusion(gold, predicted, ["Rate", "Cap"]).tolist() == [
        [1, 0, 1],  # one right, one missed because its end differs
        [1, 0, 1],  # one taken for a rate, one missed
        [1, 1, 0],  # a rate and a capacity from nothing
    ]


def run(folder, labels=LABELS):
    folder.mkdir(parents=True)
    save_predictions(folder, "test", [np.array([1, 2, 0])], [np.array([1, 2, 3])])
    return Run(folder, folder.name, {}, [], {"labels": labels})


def test_pictures_of_runs_side_by_side(tmp_path):
    runs = [run(tmp_path / "full"), run(tmp_path / "lora")]
    paths = write_confusion(runs, tmp_path / "out")
    assert [path.name for path in paths] == ["confusion_words.png", "confusion_entities.png"]
    assert all(path.stat().st_size > 10_000 for path in paths)
    with pytest.raises(ValueError, match=r"full has the labels .* but .*other has"):
        write_confusion([runs[0], run(tmp_path / "other", ["O", "B-X"])], tmp_path / "out")
    with pytest.raises(ValueError, match=r"validation\.npz does not exist"):
        write_confusion(runs, tmp_path / "out", "validation")
