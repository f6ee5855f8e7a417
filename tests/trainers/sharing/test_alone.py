"""Folders of adapters and of models, copied elsewhere without their run, give the run's predictions: here, in PEFT and
in transformers."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from lora_core.models import save_pretrained
from trainers import pipeline
from trainers.cli import main
from trainers.sharing.alone import HEAD_FILE, AdapterHead, load_alone

CLASSES = {
    "token-classification": AutoModelForTokenClassification,
    "text-classification": AutoModelForSequenceClassification,
    "image-classification": AutoModelForImageClassification,
}
TEXTS = ["the gene binds il2 in cells", "nfkb induces the promoter of aa", "il2"]


@pytest.fixture(params=["lora", "text", "image"])
def adapter(request, finished, finished_text, finished_image, tmp_path):
    """(The run, its adapter's folder in another place, inputs to predict from)."""
    run = {"lora": finished["lora"], "text": finished_text, "image": finished_image}[request.param]
    inputs = TEXTS
    if request.param == "image":
        random = np.random.default_rng(1)
        inputs = [Image.fromarray(random.integers(0, 255, (20, 16, 3), dtype=np.uint8)) for _ in range(3)]
    return run, shutil.copytree(run / "adapter", tmp_path / "moved"), inputs


def logits(model, folder, inputs):
    """Of each input alone, by transformers' own preparation of it."""
    found = []
    for one in inputs:
        if isinstance(one, str):
            prepared = AutoTokenizer.from_pretrained(folder)(one, return_tensors="pt", truncation=True)
            prepared.pop("token_type_ids", None)
        else:
            prepared = AutoImageProcessor.from_pretrained(folder)(one, return_tensors="pt")
        with torch.inference_mode():
            found.append(model.eval()(**prepared).logits[0])
    return found


def ours(run, inputs):
    predict = pipeline(model=run)
    served = predict.served
    found = []
    for one in inputs:
        if isinstance(one, str):
            ids = served.tokenizer().encode(one).ids
            with torch.inference_mode():
                found.append(served.model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0])
        else:
            (_, batch), *_ = predict.batches([one])
            found.append(predict.logits(batch)[0])
    return found


def test_an_adapter_alone_predicts_as_its_run(adapter, tmp_path):
    run, moved, inputs = adapter
    expected = pipeline(model=run)(inputs)
    assert pipeline(model=moved)(inputs) == expected
    main(["merge", str(moved), "--output-dir", str(tmp_path / "merged")])
    assert pipeline(model=tmp_path / "merged")(inputs) == expected


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT calls it
def test_an_adapter_alone_in_peft_and_in_transformers(adapter, tmp_path):
    run, moved, inputs = adapter
    if run.parent.name.startswith("finished_text"):
        inputs = inputs[2:]  # the run keeps both ends of longer texts, which transformers cannot
    head = AdapterHead.read(moved)
    base = json.loads((moved / "adapter_config.json").read_text())["base_model_name_or_path"]
    named = {"id2label": dict(enumerate(head.labels)), "label2id": {label: i for i, label in enumerate(head.labels)}}
    kind = CLASSES[head.task]
    if head.image_size:
        named["image_size"] = head.image_size
    expected = ours(run, inputs)
    main(["merge", str(run), "--output-dir", str(tmp_path / "merged")])
    merged = kind.from_pretrained(tmp_path / "merged")
    assert [merged.config.id2label[index] for index in range(len(head.labels))] == list(head.labels)
    models = [(merged, tmp_path / "merged")]
    if not head.image_size:  # position embeddings of another size than the base's are in the merged model alone
        ignore = {"ignore_mismatched_sizes": True}
        models += [
            (PeftModel.from_pretrained(kind.from_pretrained(base, **named, **ignore), moved), moved),
            (kind.from_pretrained(moved, **named, **ignore), moved),
        ]
    for model, folder in models:
        for theirs, mine in zip(logits(model, folder, inputs), expected, strict=True):
            torch.testing.assert_close(theirs, torch.as_tensor(mine), atol=1e-5, rtol=1e-4)


def test_a_model_alone_predicts_as_its_run_here_and_in_transformers(finished, tmp_path):
    moved = shutil.copytree(finished["full"] / "best", tmp_path / "moved")
    assert pipeline(model=moved)(TEXTS) == pipeline(model=finished["full"])(TEXTS)
    model = AutoModelForTokenClassification.from_pretrained(moved)
    for theirs, mine in zip(logits(model, moved, TEXTS), ours(finished["full"], TEXTS), strict=True):
        torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("method", "folder"), [("lora", "adapter"), ("full", "best")])
def test_the_tokenizer_beside_the_weights_is_whole(finished, tiny, method, folder):
    tokenizer = AutoTokenizer.from_pretrained(finished[method] / folder)
    assert tokenizer.model_max_length == tiny.MAX_TOKENS
    assert (tokenizer.pad_token, tokenizer.unk_token, tokenizer.mask_token) == ("[PAD]", "[UNK]", "[MASK]")


def test_other_weights_of_the_base_are_said_and_a_missing_base_is_refused(finished, tmp_path, caplog, tiny):
    moved = shutil.copytree(finished["lora"] / "adapter", tmp_path / "moved")
    base = tmp_path / "base"
    config = json.loads((moved / "adapter_config.json").read_text())
    shutil.copytree(config["base_model_name_or_path"], base)
    rewrite(moved, config, base)
    load_alone(moved)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    other = tiny.build(seed=7)
    save_pretrained(other, base)
    load_alone(moved)
    assert f"the weights of {base} are not the files" in caplog.text
    shutil.rmtree(base)
    with pytest.raises(FileNotFoundError, match="base_model_name_or_path"):
        load_alone(moved)
    rewrite(moved, config, None)
    with pytest.raises(ValueError, match="Write the model's folder or hub id there"):
        load_alone(moved)


def rewrite(folder, config, base):
    values = {**config, "base_model_name_or_path": None if base is None else str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"task": "token-classification"}',
        '{"task": 3, "labels": ["O"]}',
        '{"task": "t", "labels": "O"}',
        '{"task": "t", "labels": ["O", "O"]}',
    ],
)
def test_a_damaged_head_is_refused_by_name(finished, tmp_path, damage):
    moved = shutil.copytree(finished["lora"] / "adapter", tmp_path / "moved")
    (moved / HEAD_FILE).write_text(damage)
    with pytest.raises(ValueError, match=f"{HEAD_FILE}.*Copy the adapter's folder again"):
        pipeline(model=moved)


def test_merge_refuses_a_folder_that_holds_something(finished, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit_:
        main(["merge", str(finished["lora"]), "--output-dir", str(tmp_path)])
    assert exit_.value.code == 2
    assert "exists and is not empty" in capsys.readouterr().err
