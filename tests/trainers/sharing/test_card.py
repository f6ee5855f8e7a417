"""The card beside a run's weights: metadata that the hub reads, true scores, and code that runs as it stands."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from trainers import pipeline
from trainers.cli import main
from trainers.config import RunConfig
from trainers.finished import FinishedRun
from trainers.run_folder import RunFolder, read_run
from trainers.sharing.card import CARD, card_values, write_card
from trainers.tasks.intervals import f1_interval


@pytest.fixture(params=["lora", "full", "text", "image"])
def run(request, finished, finished_text, finished_image):
    """A finished run of each kind."""
    runs = {"lora": finished["lora"], "full": finished["full"], "text": finished_text, "image": finished_image}
    return read_run(runs[request.param])


def weights(run):
    return RunFolder(run.folder).weights(run.config["method"])


def test_the_metadata_is_what_the_hub_reads(run):
    card = ModelCard((weights(run) / CARD).read_text())
    lora = run.config["method"] == "lora"
    assert card.data.library_name == ("peft" if lora else "transformers")
    assert card.data.pipeline_tag == run.config["task"]
    assert {"lora-core", run.config["task"]} <= set(card.data.tags)
    assert card.data.base_model is None  # a folder of this machine is none of the hub's
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    expected = {("test", key): pytest.approx(run.result["test"][key], abs=1e-6) for key in card.data.metrics}
    assert found == expected
    assert {"f1", "precision", "recall"} <= set(card.data.metrics)


def test_scores_interval_and_example_are_the_runs(run):
    text = (weights(run) / CARD).read_text()
    assert f"| F1 | {100 * run.result['test']['f1']:.2f} |" in text
    finished = FinishedRun.open(run.folder)
    predicted, gold = finished.predictions("test")
    counts = finished.kind.counts(predicted, gold, run.result["labels"])
    low, high = (f"{100 * end:.2f}" for end in f1_interval(counts))
    assert f"The 95% interval of F1 is {low} to {high} (" in text
    assert float(low) <= round(100 * run.result["test"]["f1"], 2) <= float(high)
    shown = re.search(r"> (.*)\n\npredicted: (.*); right: (.*)\n", text)
    dataset = finished.examples("test")
    if run.config["task"] == "text-classification":
        row = dataset.texts.index(shown[1])
        assert [shown[2], shown[3]] == [f"`{finished.labels[ids[row][0]]}`" for ids in (predicted, gold)]
    elif run.config["task"] == "token-classification":
        row = [" ".join(words) for words in dataset.words].index(shown[1])
        entities = [f"`{word}`" for word, tag in zip(dataset.words[row], dataset.tags[row], strict=True) if tag]
        assert re.findall(r"`[^`]*`", shown[3]) == entities


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT calls it
def test_the_code_of_the_card_runs_and_gives_the_models_logits(run, tmp_path, monkeypatch):
    moved = shutil.copytree(weights(run), tmp_path / "moved")
    monkeypatch.chdir(moved)
    if run.config["method"] == "lora":
        main(["merge", ".", "--output-dir", "../merged"])
    blocks = re.findall(r"```python\n(.*?)```", (moved / CARD).read_text(), re.DOTALL)
    assert len(blocks) == (1 if run.config["image_size"] else 3 if run.config["method"] == "lora" else 2)
    image = run.config["task"] == "image-classification"
    one = Image.fromarray(np.full((20, 16, 3), 77, dtype=np.uint8)) if image else "the gene il2"
    expected = None
    for block in blocks:
        names = {}
        exec(block, names)
        if "predict" in names:
            assert names["predict"]([one]) == pipeline(model=run.folder)([one])
            served = names["predict"].served
            if image:
                continue
            ids = torch.tensor([served.tokenizer().encode(one).ids])
            with torch.inference_mode():
                expected = served.model(ids, torch.ones_like(ids))
        else:
            inputs = names["tokenizer"](one, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            with torch.inference_mode():
                torch.testing.assert_close(names["model"].eval()(**inputs).logits, expected, atol=1e-5, rtol=1e-4)


def test_ids_of_the_hub_and_licences_are_named(finished, tmp_path, monkeypatch):
    run = read_run(finished["lora"])
    config = RunConfig.from_dict({**run.config, "output_dir": str(run.folder)}, "here")
    named = dataclasses.replace(config, model="embedded", data="tner/bionlp2004")
    values = card_values(named, run.result)
    card = ModelCard(f"---\n{values['metadata']}---\n")
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert card.data.datasets == ["tner/bionlp2004"]
    assert "https://huggingface.co/datasets/tner/bionlp2004" in values["data"]
    assert "not known here" in values["data"]
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "LICENSE.txt").write_text("\nCC BY 4.0\nmore\n")
    assert "Licence: CC BY 4.0." in card_values(dataclasses.replace(config, data=str(folder)), run.result)["data"]
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setenv("LORA_DATA_DIR", str(tmp_path))
    assert "Licence: mit." in card_values(dataclasses.replace(config, data="corpus"), run.result)["data"]


def test_a_card_of_several_labels_and_of_numbers(tiny, checkpoint, tmp_path):
    for name, label in (("several", [["a"], ["a", "b"], []]), ("number", [0.5, 1.25, 2.75])):
        data = tmp_path / name
        data.mkdir()
        for split in ("train", "valid", "test"):
            rows = [json.dumps({"text": f"the gene {word}", "label": one}) for word in ("il2", "aa") for one in label]
            (data / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
        folder = tmp_path / f"run-{name}"
        main(["train", "--task", "text-classification", "--model", str(checkpoint), "--data", str(data), "--output-dir",
              str(folder), "--epochs", "1", "--fresh-head"])  # fmt: skip
        text = (folder / "adapter" / CARD).read_text()
        assert ModelCard(text).data.eval_results
        assert ("Pearson correlation" in text) == (name == "number")
        assert ("95% interval of F1" in text) == (name == "several")
        assert "> the gene il2\n\npredicted: " in text


def test_a_card_that_its_user_has_changed_is_no_damage(finished, tmp_path, caplog):
    folder = shutil.copytree(finished["lora"], tmp_path / "run")
    (folder / "adapter" / CARD).write_text("mine")
    main(["train", "--config", str(folder / "run.toml"), "--output-dir", str(folder), "--resume", "auto"])
    assert "is finished; nothing is left to do" in caplog.text
    assert (folder / "adapter" / CARD).read_text() == "mine"
    (folder / "adapter" / "tokenizer.json").unlink()  # written again, and the card stays
    main(["train", "--config", str(folder / "run.toml"), "--output-dir", str(folder), "--resume", "auto"])
    assert (folder / "adapter" / "tokenizer.json").is_file()
    assert (folder / "adapter" / CARD).read_text() == "mine"
    run = read_run(folder)
    write_card(FinishedRun.open(folder).config, run.result)
    assert "## A prediction" not in (folder / "adapter" / CARD).read_text()
