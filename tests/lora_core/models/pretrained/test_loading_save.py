import json

import pytest
import torch
import transformers
from torch import nn

from lora_core.models import BertConfig, build_model, load_pretrained, save_pretrained
from lora_core.models.pretrained import loading as save_module

AUTO_CLASSES = {
    "encoder": transformers.AutoModel,
    "token-classification": transformers.AutoModelForTokenClassification,
    "text-classification": transformers.AutoModelForSequenceClassification,
}
LABELS = ("O", "B-protein", "I-protein")


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
@pytest.mark.parametrize("task", list(AUTO_CLASSES))
def test_transformers_and_we_read_what_we_write(oracle, batch, tmp_path, family, task):
    oracle(family, task, initializer_range=0.03).save_pretrained(tmp_path / "theirs")
    model = load_pretrained(tmp_path / "theirs", task)
    save_pretrained(model, tmp_path / "new" / "ours")
    again = load_pretrained(tmp_path / "new" / "ours", task)
    reference, report = AUTO_CLASSES[task].from_pretrained(tmp_path / "new" / "ours", output_loading_info=True)
    assert not any(report.values())
    assert type(reference).__name__ == json.loads((tmp_path / "new/ours/config.json").read_text())["architectures"][0]
    assert again.config == model.config
    assert again.labels == model.labels
    assert again.fresh_parameters == ()
    if task != "encoder":
        assert reference.config.id2label == dict(enumerate(LABELS))
        assert reference.config.label2id == {name: row for row, name in enumerate(LABELS)}
    input_ids, mask = batch([5, 8], model.config.pad_token_id)
    with torch.no_grad():
        expected = reference(input_ids, attention_mask=mask)[0]
        found = model(input_ids, mask)
        assert torch.equal(again(input_ids, mask), found)
    real = mask.bool() if found.dim() == 3 else slice(None)
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)


def test_a_failed_write_leaves_the_old_files(tmp_path, monkeypatch):
    model = build_model(BertConfig(50, 24, 2, 3, 40), "token-classification", LABELS)
    save_pretrained(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(save_module, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert before.keys() == {"config.json", "model.safetensors"}


def test_adapters_are_refused(tmp_path):
    model = build_model(BertConfig(50, 24, 2, 3, 40), "token-classification", LABELS)
    model.classifier.lora_A = nn.Linear(24, 2)
    with pytest.raises(ValueError, match=r"first classifier\.lora_A\.bias; before .*merge_lora, .*eject_lora"):
        save_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_modules_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot save a Linear"):
        save_pretrained(nn.Linear(2, 2), tmp_path)
