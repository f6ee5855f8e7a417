"""The door from Python: `import trainers`."""

import subprocess
import sys

import pytest

import trainers
from trainers.run_folder import read_run


def test_a_run_on_data_in_memory(checkpoint, tmp_path):
    words, tags = [["il2", "binds"], ["the", "gene"]], [["B-protein", "O"], ["O", "B-DNA"]]
    split = trainers.TokenDataset.from_lists(words, tags)
    # The same tags in another order: they are brought into that of the training split.
    other = trainers.TokenDataset.from_lists(words, tags, names=["B-DNA", "O", "I-DNA", "I-protein", "B-protein"])
    settings = {"model": str(checkpoint), "epochs": 30, "learning_rate": 0.02, "batch_size": 2, "fresh_head": True}
    run = trainers.train(
        {"train": split, "validation": other},
        output_dir=str(tmp_path / "run"),
        target_modules=["all-linear"],
        **settings,
    )
    assert run.result["validation"]["f1"] == 1.0
    assert read_run(tmp_path / "run").result == run.result
    ner = trainers.pipeline("ner", model=run.folder)
    assert [entity["entity_group"] for entity in ner("il2 binds")] == ["protein"]


def test_texts_in_memory_are_held_out_for_validation(checkpoint, tmp_path):
    texts = trainers.TextDataset.from_lists(["il2 binds", "the gene"] * 20, ["protein", "DNA"] * 20)
    rest, validation = trainers.hold_out(texts, groups=list(range(40)))
    assert (len(rest), len(validation)) == (36, 4)
    run = trainers.train(
        {"train": rest, "validation": validation},
        task="text-classification",
        model=str(checkpoint),
        output_dir=str(tmp_path / "run"),
        epochs=1,
    )
    assert run.result["labels"] == ["DNA", "protein"]


def test_an_unknown_setting_names_the_nearest(tmp_path):
    with pytest.raises(
        ValueError, match=r"trainers\.train: unknown setting 'learn_rate'\. Did you mean 'learning_rate'"
    ):
        trainers.train({}, learn_rate=1.0)
    with pytest.raises(ValueError, match="The data has no train split"):
        trainers.train({}, output_dir=str(tmp_path / "run"))


def test_the_door_costs_nothing_until_it_is_used():
    code = "import sys, trainers; print('torch' in sys.modules, sorted(trainers.__all__) == sorted(trainers._HOMES))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert {name for name in trainers.__all__ if getattr(trainers, name)} == set(trainers.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trainers.nothing  # noqa: B018
