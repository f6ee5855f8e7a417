"""Trainable rows of the input embedding, with PEFT as oracle."""

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from lora_core import (
    add_adapter,
    disable_adapters,
    inject_lora,
    load_adapter,
    merge_lora,
    save_adapter,
    set_adapter,
    unmerge_lora,
)
from lora_core.targets import input_embedding

ROWS = (7, 3, 50)  # an order of its own: the file's rows follow it
KEY = "base_model.model.bert.embeddings.word_embeddings.token_adapter.trainable_tokens_delta"


def injected(make, **fields):
    return inject_lora(make("bert"), r=4, target_modules=["query"], trainable_token_indices=ROWS, **fields)


def ids() -> torch.Tensor:
    return torch.tensor([[7, 3, 50, 4, 5], [7, 7, 8, 9, 1]])


def test_fresh_rows_change_nothing_and_train_alone(make, run):
    model = injected(make)
    table = model.bert.embeddings.word_embeddings.weight.clone()
    assert torch.equal(run(model), run(make("bert")))
    model.train()(ids()).logits.sum().backward()
    rows = model.bert.embeddings.word_embeddings.lora["default"].trainable_tokens_delta
    assert rows.shape == (3, 32)
    assert bool(rows.grad.any(1).all())
    assert model.bert.embeddings.word_embeddings.weight.grad is None
    torch.optim.SGD([rows], 0.1).step()
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, table)


def test_gradients_are_those_of_a_trained_table(make):
    model = injected(make)
    embedding = model.bert.embeddings.word_embeddings
    embedding(ids()).square().sum().backward()
    full = make("bert").bert.embeddings.word_embeddings
    full(ids()).square().sum().backward()
    torch.testing.assert_close(embedding.lora["default"].trainable_tokens_delta.grad, full.weight.grad[list(ROWS)])


def test_peft_reads_and_writes_the_same_file(make, randomise, peft_model, peft_load, tmp_path):
    model = randomise(injected(make, modules_to_save=["classifier"]))
    save_adapter(model, tmp_path / "ours")
    assert load_file(tmp_path / "ours" / "adapter_model.safetensors")[KEY].shape == (3, 32)
    expected = model(ids()).logits
    torch.testing.assert_close(peft_load(make("bert"), tmp_path / "ours")(ids()).logits, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(load_adapter(make("bert"), tmp_path / "ours")(ids()).logits, expected)
    theirs = randomise(peft_model(make("bert"), r=4, target_modules=["query"], trainable_token_indices=list(ROWS)))
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_adapter(make("bert"), tmp_path / "theirs")
    torch.testing.assert_close(loaded(ids()).logits, theirs(ids()).logits, atol=1e-5, rtol=1e-4)


def test_merge_disable_and_switch(make, randomise):
    base = make("bert")(ids()).logits
    model = randomise(injected(make))
    adapted = model(ids()).logits
    with disable_adapters(model):
        assert torch.equal(model(ids()).logits, base)
    torch.testing.assert_close(merge_lora(model)(ids()).logits, adapted, atol=1e-6, rtol=1e-5)
    assert torch.equal(unmerge_lora(model)(ids()).logits, adapted)
    add_adapter(model, "other", r=2, target_modules=["key"], trainable_token_indices=[4], modules_to_save=())
    set_adapter(model, ["default", "other"])
    torch.testing.assert_close(model(ids()).logits, adapted)  # fresh rows are the table's
    add_adapter(model, "clash", r=2, target_modules=["key"], trainable_token_indices=[3], modules_to_save=())
    with pytest.raises(ValueError, match="both train token 3"):
        set_adapter(model, ["default", "clash"])


def test_half_precision_rows_are_trained_in_fp32(make):
    model = inject_lora(make("ours").to(torch.bfloat16), trainable_token_indices=ROWS)
    embedding = model.bert.embeddings.word_embeddings
    assert embedding.lora["default"].trainable_tokens_delta.dtype is torch.float32
    assert embedding(ids()).dtype is torch.bfloat16


def test_refusals(make, state, same):
    model = make("bert")
    before = state(model)
    for rows, message in (((60,), "below 60"), ((3, 3), "different numbers")):
        with pytest.raises(ValueError, match=message):
            inject_lora(model, target_modules=["query"], trainable_token_indices=rows)
    with pytest.raises(ValueError, match="choose one of them"):
        inject_lora(model, target_modules=["word_embeddings"], trainable_token_indices=(3,))
    assert same(before, state(model))
    with pytest.raises(ValueError, match=r"no nn\.Embedding"):
        inject_lora(make("conv"), target_modules=["first"], trainable_token_indices=(3,))


def test_input_embedding_is_the_model_s_own(make):
    assert input_embedding(make("bert")) == input_embedding(make("ours")) == "bert.embeddings.word_embeddings"
    assert input_embedding(nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2))) == "1"


def test_embeddings_that_cannot_learn_rows_are_refused(state, same):
    """One that scales what it looks up, and one whose weight turns vectors into words again, which PEFT trains too."""
    sizes = {"vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}  # fmt: skip
    bart = transformers.BartModel(transformers.BartConfig(**sizes))
    bert = transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))  # fmt: skip
    for model, why in ((bart, "shared is a BartScaledWordEmbedding"), (bert, "decoder shares its weight with bert")):
        before = state(model)
        with pytest.raises(ValueError, match=f"trainable_token_indices: .*{why}"):
            inject_lora(model, target_modules=r".*(query|q_proj)", modules_to_save=(), trainable_token_indices=[3])
        assert same(before, state(model))
