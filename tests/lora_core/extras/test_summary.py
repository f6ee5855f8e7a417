"""The table of what is adapted."""

import torch

from lora_core import add_adapter, inject_lora, merge_lora, parameter_counts, prepare_hotswap, summary


def test_names_every_layer_and_the_totals(make):
    model = inject_lora(make("ours"), r=4, lora_alpha=6, rank_pattern={"layer.1.attention.self.value": 2})
    add_adapter(model, "other", r=2, target_modules=["query", "word_embeddings"], modules_to_save=())
    lines = summary(model).splitlines()
    row = next(line.split() for line in lines if line.startswith("bert.encoder.layer.1.attention.self.value"))
    assert row == ["bert.encoder.layer.1.attention.self.value", "Linear", "32×32", "default", "2", "3", "128", "active"]
    waiting = next(line.split() for line in lines if line.startswith("bert.embeddings.word_embeddings"))
    assert waiting == ["bert.embeddings.word_embeddings", "Embedding", "60×32", "other", "2", "1", "0", "waiting"]
    head = next(line.split() for line in lines if line.startswith("classifier.weight"))
    assert head == ["classifier.weight", "in", "full", "5×32", "default", "160", "active"]
    trainable, total = parameter_counts(model)
    assert lines[-1] == f"trainable: {trainable:,} of {total:,} parameters ({trainable / total:.4%})"
    assert lines[-2] == "adapters: default (active), other (waiting)"
    rows = [int(line.split()[-2].replace(",", "")) for line in lines[2:-3]]
    assert sum(rows) == trainable


def test_shows_what_is_merged_and_prepared(make):
    model = prepare_hotswap(inject_lora(make("ours"), r=4, lora_alpha=6), 16)
    assert " 4      1.5 " in summary(model)  # the adapter's rank, not the room for it
    with torch.no_grad():
        assert "merged" in summary(merge_lora(model))
