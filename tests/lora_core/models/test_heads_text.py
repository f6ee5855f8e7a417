import copy
import json
import pickle

import peft
import pytest
import torch
from torch.nn import functional as F

import lora_core
from lora_core.models import build_model, config_from_dict, load_pretrained, save_pretrained
from lora_core.models.encoders.recurrent import LastToken
from lora_core.models.heads import FILTERS, HEADS, AttentionPooling, ResidualMLP, TextCNN
from lora_core.whole import is_waiting

FAMILIES = {
    "bert": {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 16,
    },
    "roberta": {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 18,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
    "distilbert": {
        "vocab_size": 50,
        "dim": 24,
        "n_layers": 2,
        "n_heads": 3,
        "hidden_dim": 40,
        "max_position_embeddings": 16,
    },
    "deberta-v2": {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 16,
        "relative_attention": True,
        "pos_att_type": "p2c|c2p",
        "position_buckets": 4,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    "modernbert": {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
        "local_attention": 6,
    },
    "lstm": {"vocab_size": 50, "embedding_size": 12, "hidden_size": 24},
    "bilstm-attention": {"vocab_size": 50, "embedding_size": 12, "hidden_size": 24},
}
LABELS = ("O", "B-a", "I-a")
MODELS = [
    (family, head)
    for family in FAMILIES
    for head in ("default", *HEADS)
    if not (head in ("linear", "mlp") and "lstm" in family)
]


def make(family, head, labels=LABELS, seed=0, task=None):
    task = task or (HEADS[head].task if head in HEADS else "text-classification")
    model = build_model(config_from_dict({"model_type": family, **FAMILIES[family]}), task, labels, head=head)
    return randomise(model, seed)


@torch.no_grad()
def randomise(model, seed):
    """Zeros and small weights would hide a part that is left out."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def scores(model, input_ids, mask):
    """The logits, of token classification those of real tokens and of transitions."""
    with torch.no_grad():
        logits = model(input_ids, mask)
    if model.task == "token-classification":
        return torch.cat([logits[:, : mask.shape[1]][mask != 0], logits[0, mask.shape[1] :]])
    return logits


@pytest.mark.parametrize(("family", "head"), MODELS)
def test_a_text_s_logits_do_not_depend_on_the_padding_of_its_batch(batch, family, head):
    model = make(family, head)
    lengths = [9, 1, 2, 5, 9]
    input_ids, mask = batch(lengths, model.config.pad_token_id)
    together = model(input_ids, mask)
    for row, length in enumerate(lengths):
        ids = input_ids[row : row + 1, :length]
        if model.task == "text-classification":
            torch.testing.assert_close(together[row : row + 1], model(ids), rtol=1e-4, atol=1e-5)
        else:
            alone = model(ids)[0]
            places = [*range(length), *range(9, together.shape[1])] if head == "crf" else [*range(length)]
            torch.testing.assert_close(together[row, places], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0, :3], together[1, :3])


@pytest.mark.parametrize(("family", "head"), MODELS)
def test_a_saved_model_comes_back_with_its_head(batch, tmp_path, caplog, family, head):
    model = make(family, head)
    if head == "attention":
        model.classifier.mark_confusing([4, 7], 2.0)
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path, model.task)
    assert not caplog.records
    assert (type(again), again.labels, again.fresh_parameters) == (type(model), LABELS, ())
    assert json.loads((tmp_path / "config.json").read_text()).get("head", "default") == head
    inputs = batch([7, 3], model.config.pad_token_id)
    assert torch.equal(scores(again, *inputs), scores(model, *inputs))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(scores(twin, *inputs), scores(model, *inputs))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert"])
@pytest.mark.parametrize("head", HEADS)
def test_an_adapter_carries_the_head(batch, tmp_path, family, head):
    """PEFT is the oracle: it loads the file into the same base, and gives the same logits."""
    save_pretrained(make(family, "default", task=HEADS[head].task), tmp_path / "base")

    def base(seed):
        return load_pretrained(tmp_path / "base", HEADS[head].task, LABELS, head=head, seed=seed)

    model = base(seed=1)
    fresh = {name for name, _ in model.named_parameters() if name.startswith("classifier.")}
    assert set(model.fresh_parameters) == fresh
    if head == "attention":
        model.classifier.mark_confusing([4, 7], 2.0)
    lora_core.inject_lora(model, r=2)
    inputs = batch([7, 3], model.config.pad_token_id)
    before = scores(model, *inputs)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert fresh < trained.keys()
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    after = scores(model, *inputs)
    assert not torch.allclose(before, after)
    model(*inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in trained.values())

    lora_core.save_adapter(model, tmp_path / "adapter")
    again = lora_core.load_adapter(base(seed=2), tmp_path / "adapter")
    assert torch.equal(scores(again, *inputs), after)
    reference = peft.PeftModel.from_pretrained(base(seed=3), tmp_path / "adapter").base_model.model.eval()
    torch.testing.assert_close(scores(reference, *inputs), after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_trained_in_fp32_on_a_base_in_half_precision(batch, head):
    model = lora_core.inject_lora(make("bert", head).bfloat16(), r=2)
    logits = model(*batch([7, 3], 0))
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    own = {path: parameter for path, parameter in model.classifier.named_parameters() if not is_waiting(path)}
    assert {(parameter.dtype, parameter.grad.dtype) for parameter in own.values()} == {(torch.float32, torch.float32)}


def test_labels_may_be_asked_for_in_another_order(batch, tmp_path):
    for head in HEADS:
        model = make("bert", head)
        save_pretrained(model, tmp_path / head)
        order = (2, 0, 1)
        other = load_pretrained(tmp_path / head, model.task, [LABELS[row] for row in order])
        input_ids, mask = batch([6, 4], 0)
        expected, found = model(input_ids, mask), other(input_ids, mask)
        if head == "crf":
            assert torch.equal(found[:, 7:], expected[:, 7:][:, order][:, :, order])
            expected, found = expected[:, :7], found[:, :7]
        assert torch.equal(found, expected[..., order])


def test_another_head_than_the_checkpoint_s_is_new(tmp_path, caplog):
    save_pretrained(make("bert", "mlp"), tmp_path)
    for head in ("default", "linear"):
        model = load_pretrained(tmp_path, "text-classification", LABELS, head=head)
        assert model.head_kind == head
        parts = {name.split(".")[0] for name in model.fresh_parameters}
        assert parts == ({"classifier", "bert"} if head == "default" else {"classifier"})
        assert "drawn at random" in caplog.text
    kept = load_pretrained(tmp_path, "text-classification", fresh_head=True)
    assert kept.head_kind == "mlp"
    assert kept.labels == LABELS
    assert load_pretrained(tmp_path, "token-classification", LABELS).head_kind == "default"


def test_a_head_that_does_not_suit_is_refused(tmp_path):
    save_pretrained(make("bert", "default"), tmp_path)
    with pytest.raises(ValueError, match="no head 'crf' for text-classification; there are default, linear, mlp"):
        load_pretrained(tmp_path, "text-classification", LABELS, head="crf")
    with pytest.raises(ValueError, match="no head 'mlp' for token-classification; there are default, crf"):
        build_model(config_from_dict({"model_type": "bert"}), "token-classification", LABELS, head="mlp")
    with pytest.raises(ValueError, match="a bare encoder has no head"):
        load_pretrained(tmp_path, head="mlp")
    with pytest.raises(ValueError, match="'linear' reads the first token, where lstm models have not seen the text"):
        build_model(config_from_dict({"model_type": "lstm"}), "text-classification", LABELS, head="linear")


@pytest.mark.parametrize("head", HEADS)
def test_fresh_heads_are_drawn_from_the_seed_and_buffers_are_zero(head):
    task = HEADS[head].task
    config = config_from_dict({"model_type": "bert", **FAMILIES["bert"]})
    one, same, other = (build_model(config, task, LABELS, head=head, seed=seed).classifier for seed in (1, 1, 2))
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
        assert torch.equal(parameter, other.get_parameter(name)) == (not parameter.any())
        assert parameter.abs().max() < 0.3
    assert not any(buffer.any() for buffer in one.buffers())


# What each head computes


HIDDEN = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
IDS = torch.arange(12).reshape(2, 6)


def test_the_mlp_has_a_residual():
    head = ResidualMLP(8, 3, 0.0)
    first = HIDDEN[:, 0]
    expected = head.out_proj(first + F.gelu(head.dense(first)))
    torch.testing.assert_close(head(HIDDEN, MASK, IDS), expected)


def test_the_last_token_is_the_last_real_one():
    head = LastToken(8, 3, 0.0)
    torch.testing.assert_close(head(HIDDEN, MASK, IDS), head.out_proj(torch.stack([HIDDEN[0, 5], HIDDEN[1, 3]])))


def test_textcnn_equals_windows_written_out():
    head = randomise(TextCNN(8, 3, 0.0), 1)
    rows = []
    for hidden, mask in zip(HIDDEN, MASK, strict=True):
        text = hidden[mask != 0]
        found = []
        for width, convolution in zip((3, 4, 5), head.convolutions, strict=True):
            zeros = torch.zeros(width, 8)
            padded = torch.cat([zeros, text, zeros])
            starts = range(width - (width - 1) // 2, width - (width - 1) // 2 + len(text))
            values = [(convolution.weight * padded[s : s + width].T).sum((1, 2)) + convolution.bias for s in starts]
            found.append(torch.stack(values).amax(0).clamp(min=0))
        rows.append(torch.cat(found))
    assert rows[0].shape == (3 * FILTERS,)
    torch.testing.assert_close(head(HIDDEN, MASK, IDS), head.out_proj(torch.stack(rows)), rtol=1e-4, atol=1e-5)


def test_attention_takes_the_penalty_from_the_scores_of_confusing_tokens():
    head = randomise(AttentionPooling(8, 3, 0.0, vocab_size=12), 1)
    head.mark_confusing([2, 7], 1.5)
    weights = head.weights(HIDDEN, MASK, IDS)
    scores = (torch.tanh(HIDDEN @ head.dense.weight.T + head.dense.bias) @ head.energy.weight.T).squeeze(-1)
    scores[0, 2] -= 1.5
    scores[1, 1] -= 1.5
    expected = torch.stack([scores[0].softmax(0), F.pad(scores[1, :4].softmax(0), (0, 2))])
    torch.testing.assert_close(weights, expected)
    mean = torch.einsum("bt,bth->bh", expected, HIDDEN)
    torch.testing.assert_close(head(HIDDEN, MASK, IDS), head.out_proj(mean))
    head.mark_confusing([3], 0.0)
    assert head.confusing.nonzero().flatten().tolist() == [3]
    with pytest.raises(ValueError, match=r"token ids \[12\] are not in the vocabulary of 12"):
        head.mark_confusing([12], 1.0)
    with pytest.raises(ValueError, match="penalty is -1"):
        head.mark_confusing([1], -1)
