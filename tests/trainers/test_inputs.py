"""A run goes on with the inputs that it began with, and all its processes have the same."""

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from trainers import inputs
from trainers.config import RunConfig
from trainers.data.images.batches import ImageBatches, ImageDataset
from trainers.data.images.processing import ImageProcessing
from trainers.experiment import run
from trainers.run_folder import MetricsLog, RunFolder, read_run

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def original(tiny, tmp_path_factory):
    """Folders "model" and "data", and "run", which was stopped at the end of its second epoch."""
    root = tmp_path_factory.mktemp("original")
    tiny.write_checkpoint(root / "model")
    tiny.write_data(root / "data")

    def stop(self, event, **values):
        if values.get("epoch") == 2:
            raise KeyboardInterrupt
        write(self, event, **values)

    write, MetricsLog.write = MetricsLog.write, stop
    before = Path.cwd()
    try:
        os.chdir(root)
        with pytest.raises(KeyboardInterrupt):
            run(CONFIG)
    finally:
        os.chdir(before)
        MetricsLog.write = write
    return root


CONFIG = RunConfig(model="model", data="data", output_dir=Path("run"), epochs=2, batch_size=4, metric="loss")
RESUMED = dataclasses.replace(CONFIG, resume="auto")


@pytest.fixture
def here(original, tmp_path, monkeypatch):
    """A copy to change things in, as the working directory."""
    monkeypatch.setenv("LORA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(shutil.copytree(original, tmp_path / "here"))
    return Path.cwd()


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lose_a_sentence(here):
    write_rows(here / "data/train.json", rows_of(here / "data/train.json")[:-1])


def another_word(here):
    rows = rows_of(here / "data/train.json")
    rows[3]["tokens"][0] = "junb" if rows[3]["tokens"][0] != "junb" else "il2"
    write_rows(here / "data/train.json", rows)


def another_tag(here):
    rows = rows_of(here / "data/valid.json")
    rows[3]["tags"][0] = (rows[3]["tags"][0] + 1) % 5
    write_rows(here / "data/valid.json", rows)


def another_order(here):
    write_rows(here / "data/train.json", rows_of(here / "data/train.json")[::-1])


def labels_swapped(here):
    names = json.loads((here / "data/label.json").read_text())
    names["B-DNA"], names["I-DNA"] = names["I-DNA"], names["B-DNA"]
    (here / "data/label.json").write_text(json.dumps(names))


def tokenizer_of_the_same_size(here):
    tokenizer = json.loads((here / "model/tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["gene"], vocabulary["binds"] = vocabulary["binds"], vocabulary["gene"]
    (here / "model/tokenizer.json").write_text(json.dumps(tokenizer))


def a_bit_of_the_base(here):
    path = here / "model/model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors["bert.encoder.layer.1.output.dense.weight"].view(torch.int32)[0, 0] ^= 1
    save_file(tensors, path, metadata={"format": "pt"})


def another_epsilon(here):
    config = json.loads((here / "model/config.json").read_text())
    config["layer_norm_eps"] = 1e-5
    (here / "model/config.json").write_text(json.dumps(config))


CHANGES = {
    lose_a_sentence: r"begun with other inputs: data of split train: was 21 examples, now 20 examples\. Restore them",
    another_word: r"data of split train: 21 examples both times, but others, or in another order\.",
    another_tag: r"inputs: data of split validation: 9 examples both times, but others",
    another_order: r"data of split train: 21 examples both times, but others, or in another order\.",
    labels_swapped: r"labels was \['O', .*'B-DNA', 'I-DNA'\], now \['O', .*'I-DNA', 'B-DNA'\]\.",
    tokenizer_of_the_same_size: r"other inputs: tokenizer was [0-9a-f]{12}, now [0-9a-f]{12}\. Restore",
    a_bit_of_the_base: r"other inputs: model\.safetensors of the base model was [0-9a-f]{12} \([0-9,]+ bytes\), now",
    another_epsilon: r"other inputs: config\.json of the base model was",
}


@pytest.mark.fault("data, labels, tokenizer or base weights change", "refused at the resume, old against new", "none")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_run_does_not_go_on_with_other_inputs(here, change):
    before = {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()}
    change(here)
    if change is labels_swapped:  # the checkpoint's head follows them by name
        assert json.loads((here / "data/label.json").read_text())["B-DNA"] == 4
    with pytest.raises(ValueError, match=CHANGES[change]) as error:
        run(RESUMED)
    assert "--overwrite" in str(error.value)
    assert {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()} == before
    done = run(dataclasses.replace(CONFIG, overwrite=True, epochs=1))
    assert len(done.epochs) == 1


def test_what_changes_no_example_changes_nothing(here, caplog):
    """The same rows in another form, and a cache that is not there."""
    rows = rows_of(here / "data/train.json")
    (here / "data/train.json").write_text(
        "\n".join(json.dumps(row, indent=None, separators=(",", ":")) for row in rows)
    )
    with caplog.at_level(logging.WARNING, "trainers"):
        done = run(dataclasses.replace(RESUMED, cache=False))
    assert len(done.epochs) == 2
    assert "inputs" not in caplog.text


def test_another_test_split_is_said_and_scored(here, caplog):
    write_rows(here / "data/test.json", rows_of(here / "data/test.json")[:-2])
    before = RunFolder(here / "run").read_inputs()
    run(RESUMED)
    assert "The test split is another than when the run began (9 examples, now 7 examples)" in caplog.text
    after = RunFolder(here / "run").read_inputs()
    assert after["data"]["test"]["examples"] == 7
    assert (after["run"], after["data"]["train"]) == (before["run"], before["data"]["train"])


def test_a_run_that_is_older_than_the_digests_goes_on_and_says_so(here, caplog):
    RunFolder(here / "run").inputs.unlink()
    lose_a_sentence(here)
    run(RESUMED)
    assert (
        "run has no inputs.json: whether data, tokenizer and base weights are as when the run was begun" in caplog.text
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"texts": []}'])
def test_a_file_of_that_name_which_is_none_of_ours(here, text):
    (here / "run/inputs.json").write_text(text)
    with pytest.raises(ValueError, match=r"inputs\.json .*restore it, or delete it"):
        run(RESUMED)
    new = here / "new"
    new.mkdir()
    (new / "inputs.json").write_text(text)
    with pytest.raises(ValueError, match=r"inputs\.json .*restore it, or delete it"):
        run(dataclasses.replace(CONFIG, output_dir=new))
    assert (new / "inputs.json").read_text() == text


def test_equal_runs_are_told_by_the_same_name_and_others_by_another(here):
    names = {}
    for name, changes in {"first": {}, "again": {"workers": 1, "keep_checkpoints": 3}, "seed": {"seed": 9}}.items():
        run(dataclasses.replace(CONFIG, epochs=0, output_dir=here / name, **changes))
        names[name] = RunFolder(here / name).run_id()
    assert names["first"] == names["again"] != names["seed"]


def test_texts_and_pictures_have_digests_too(finished_text, finished_image):
    for folder, sizes, own in (
        (finished_text, (24, 10, 12), "tokenizer"),
        (finished_image, (12, 6, 7), "preprocessing"),
    ):
        stored = RunFolder(folder).read_inputs()
        splits = [stored["data"][split] for split in ("train", "validation", "test")]
        assert tuple(split["examples"] for split in splits) == sizes
        assert len({split["sha256"] for split in splits}) == 3
        assert len(stored[own]) == 64
        assert stored["labels"] == read_run(folder).result["labels"]


def test_pictures_are_told_by_their_files_or_their_pixels(tmp_path):
    def digest(images, targets=(0, 1)):
        dataset = ImageDataset(images, np.array(targets), ("a", "b"), "somewhere")
        count, parts = ImageBatches(dataset, ImageProcessing()).content()
        assert count == 2
        return inputs._digest(parts)

    paths = []
    for place in ("one", "two"):
        for number, size in enumerate((5, 6)):
            path = tmp_path / place / "cat" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((size, size), dtype=np.uint8)).save(path)
            paths.append(path)
    first = digest(paths[:2])
    assert digest(paths[2:]) == first  # a folder may be moved
    assert digest(paths[1::-1]) != first
    assert digest(paths[:2], (1, 0)) != first
    with paths[2].open("ab") as file:
        file.write(b"more")
    assert digest(paths[2:]) != first
    pixels = np.zeros((2, 4, 4), dtype=np.uint8)
    other = pixels.copy()
    other[1, 3, 3] = 1
    assert len({digest(pixels), digest(other), digest([b"ab", b"c"]), digest([b"a", b"bc"])}) == 4


def test_large_weights_are_told_by_their_size_and_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "WHOLE", 1 << 20)
    monkeypatch.setattr(inputs, "BLOCK", 1 << 10)
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(3 << 20))
    digests = [inputs._digest_of_file(path)]
    for place in (0, (3 << 20) - 1):  # the beginning and the end are always read
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\1")
        digests.append(inputs._digest_of_file(path))
    assert len(set(digests)) == 3


def test_weights_in_several_files_have_a_digest_each(here):
    path = here / "model/model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, here / "model" / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (here / "model/model.safetensors.index.json").write_text(json.dumps(index))
    run(dataclasses.replace(CONFIG, epochs=0, output_dir=here / "new"))
    model = RunFolder(here / "new").read_inputs()["model"]
    assert model.keys() == {"config.json", "model.safetensors.index.json", *shards}
    assert {name: about["bytes"] for name, about in model.items()} == {
        name: (here / "model" / name).stat().st_size for name in model
    }


# Across processes


@pytest.mark.fault("one process reads other data", "ends before the first step; rank and split are named", "none")
def test_a_process_with_other_data_is_named_before_the_first_step(meeting, here, tmp_path):
    other = shutil.copytree(here, tmp_path / "other")
    lose_a_sentence(other)
    arguments = ["train", "--model", "model", "--data", "data", "--output-dir", str(tmp_path / "new"), "--epochs", "1"]
    errors = meeting.run_ranks("-m", "trainers", *arguments, folders=(here, other), status=2)
    expected = (
        "error: The processes do not have the same inputs. Rank 1 differs from rank 0: data of split train: "
        "on rank 0 21 examples, on rank 1 20 examples."
    )
    assert any(expected in error for error in errors)
    assert not (tmp_path / "new").exists()
