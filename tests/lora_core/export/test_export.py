import json

import numpy as np
import onnx
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import lora_core
from lora_core.export import OnnxModel, export_onnx, fused_counts, parity_batches, read_metadata
from lora_core.export.parameters import merged_parameters, sha256_of
from lora_core.models import build_model, load_pretrained
from lora_core.models.layers import ACTIVATIONS

CASES = [
    *[
        (family, task)
        for family in ("bert", "roberta", "distilbert")
        for task in ("token-classification", "text-classification")
    ],
    ("xlm-roberta", "token-classification"),
    ("camembert", "text-classification"),
    ("vit", "image-classification"),
    ("deit", "image-classification"),
]

ORACLES = {
    "token-classification": "ForTokenClassification",
    "text-classification": "ForSequenceClassification",
    "image-classification": "ForImageClassification",
}
STEMS = {
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "vit": "ViT",
    "deit": "DeiT",
}


def difference(model, onnx_model, inputs):
    with torch.no_grad():
        return float((onnx_model(**inputs) - model(**inputs)).abs().max())


@pytest.mark.parametrize(("family", "task"), CASES)
def test_logits_equal_the_models_and_every_layer_is_fused(make, batch, tmp_path, family, task):
    model = make(family, task)
    path = export_onnx(model, tmp_path / "model.onnx")
    onnx_model = OnnxModel(path)
    for lengths in ((9, 4, 1), (1,), (16,), (2, 2), (16, 1, 8, 3, 3)):
        inputs = batch(model, lengths)
        assert onnx_model(**inputs).shape == model(**inputs).shape
        assert difference(model, onnx_model, inputs) < 1e-5
    counts = fused_counts(path)
    assert (counts["layers"], counts["attention"], counts["skip_layer_norm"], counts["bias_gelu"]) == (2, 2, 4, 2)
    assert counts["embedding"] == (0 if task == "image-classification" else 1)
    assert (onnx_model.labels, onnx_model.task, onnx_model.model_type) == (model.labels, task, family)


@pytest.mark.parametrize(("family", "task"), CASES[:-1])
def test_a_checkpoint_of_transformers_gives_the_logits_of_transformers(tmp_path, batch, make, family, task):
    config = getattr(transformers, f"{STEMS[family]}Config")(
        **{name: value for name, value in make(family, task).config.to_dict().items() if name != "model_type"},
        id2label={0: "a", 1: "b", 2: "c", 3: "d"},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        oracle = getattr(transformers, f"{STEMS[family]}{ORACLES[task]}")(config).eval()
        with torch.no_grad():
            for parameter in oracle.parameters():
                parameter.normal_(0, 0.3)
    oracle.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, task)
    onnx_model = OnnxModel(export_onnx(model, tmp_path / "model.onnx"))
    assert onnx_model.labels == ("a", "b", "c", "d")
    inputs = batch(model, (9, 16, 1))
    with torch.no_grad():
        expected = oracle(**inputs).logits
    torch.testing.assert_close(onnx_model(**inputs), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=8)
@given(
    heads=st.integers(1, 3),
    size=st.integers(1, 5),
    layers=st.integers(1, 3),
    wide=st.integers(1, 40),
    labels=st.integers(1, 5),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    family=st.sampled_from(["bert", "roberta", "distilbert"]),
    task=st.sampled_from(["token-classification", "text-classification"]),
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=4),
)
def test_random_sizes(
    make, batch, tmp_path_factory, heads, size, layers, wide, labels, activation, family, task, lengths
):
    hidden = 4 * heads * size
    sizes = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "hidden_act": activation,
    }
    if family == "distilbert":
        sizes = dict(zip(("n_layers", "n_heads", "dim", "hidden_dim", "activation"), sizes.values(), strict=True))
    model = make(family, task, tuple(f"label {i}" for i in range(labels)), **sizes)
    path = export_onnx(model, tmp_path_factory.mktemp("random") / "model.onnx")
    assert difference(model, OnnxModel(path), batch(model, tuple(lengths))) < 3e-5


def test_images_of_another_shape_without_biases(make, batch, tmp_path):
    model = make("vit", "image-classification", image_size=(12, 8), qkv_bias=False, hidden_act="relu")
    onnx_model = OnnxModel(export_onnx(model, tmp_path / "model.onnx"))
    assert difference(model, onnx_model, batch(model)) < 1e-5


def test_padding_on_the_left_and_inside(make, tmp_path):
    for family in ("bert", "roberta"):
        model = make(family, "token-classification")
        padding = model.config.pad_token_id
        ids = torch.tensor([[padding, padding, 5, 6, 7], [8, 9, padding, 10, padding]])
        inputs = {"input_ids": ids, "attention_mask": (ids != padding).long()}
        onnx_model = OnnxModel(export_onnx(model, tmp_path / f"{family}.onnx"))
        assert difference(model, onnx_model, inputs) < 1e-5
        assert difference(model, onnx_model, {"input_ids": ids}) < 1e-5


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}, {"lora_bias": True}])
def test_adapters_are_merged_and_the_model_stays_as_it_was(make, batch, texts, tmp_path, options):
    model = make("bert", "token-classification")
    lora_core.inject_lora(model, r=3, lora_alpha=5, target_modules="all-linear", bias="none", **options)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.2)
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    model.train()
    onnx_model = OnnxModel(export_onnx(model, tmp_path / "model.onnx"))
    assert model.training
    after = model.eval().state_dict(keep_vars=True)
    assert before.keys() == after.keys()
    assert all(id(after[name]) == key and torch.equal(after[name], tensor) for name, (key, tensor) in before.items())
    inputs = batch(model)
    assert difference(model, onnx_model, inputs) < 1e-5
    with lora_core.disable_adapters(model):
        assert difference(model, onnx_model, inputs) > 0.01
        base = OnnxModel(export_onnx(model, tmp_path / "base.onnx"))
        assert difference(model, base, inputs) < 1e-5
    lora_core.merge_lora(model)
    assert difference(model, OnnxModel(export_onnx(model, tmp_path / "merged.onnx")), inputs) < 1e-5


@pytest.mark.parametrize("merged", [False, True])
def test_a_half_precision_model_is_merged_in_fp32(make, batch, tmp_path, merged):
    """A small update of a large bf16 weight would be rounded away in bf16."""
    model = make("bert", "token-classification").bfloat16()
    lora_core.inject_lora(model, r=2, target_modules=["query"])
    layer = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    with torch.no_grad():
        layer.lora["default"].lora_B.weight.normal_(0, 1e-3, generator=torch.Generator().manual_seed(0))
    update = layer.lora["default"].lora_B.weight @ layer.lora["default"].lora_A.weight
    expected = layer.weight.detach().float() + update
    if merged:
        lora_core.merge_lora(model)
    tensor = merged_parameters(model).tensors["bert.encoder.layer.0.attention.self.query.weight"]
    np.testing.assert_allclose(tensor, expected.detach().numpy(), rtol=0, atol=1e-7)
    assert model.classifier.weight.dtype == torch.float32  # as injected: trained in full
    assert merged_parameters(model).tensors["classifier.weight"].dtype == np.float32
    OnnxModel(export_onnx(model, tmp_path / "model.onnx"))(**batch(model))


def test_the_file_says_what_it_is(make, tmp_path):
    model = make("roberta", "text-classification", labels=("ja", "nein", "weiß nicht"))
    path = export_onnx(model, tmp_path / "new" / "model.onnx", metadata={"tokenizer.json": "{}"})
    metadata = read_metadata(path)
    assert json.loads(metadata["labels"]) == ["ja", "nein", "weiß nicht"]
    expected = {
        "task": "text-classification",
        "model_type": "roberta",
        "precision": "fp32",
        "layers": "2",
        "max_tokens": "16",
        "vocab_size": "50",
        "pad_token_id": "1",
        "opset": "18",
        "tokenizer.json": "{}",
        "torch_version": torch.__version__,
        "onnx_version": onnx.__version__,
    }
    assert metadata.items() >= expected.items()
    assert metadata["weights_sha256"] == sha256_of({n: p.detach().numpy() for n, p in model.named_parameters()})
    assert [path.name for path in path.parent.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(str(path))
    again = export_onnx(model, tmp_path / "again.onnx", metadata={"tokenizer.json": "{}"})
    assert again.read_bytes() == path.read_bytes()


def test_graph_optimisers_of_others_may_read_it(make, batch, tmp_path):
    """With onnxruntime's default options, as a user without this library runs the file."""
    import onnxruntime

    model = make("distilbert", "token-classification")
    path = export_onnx(model, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = batch(model)
    logits = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
    np.testing.assert_allclose(logits, model(**inputs).detach().numpy(), atol=1e-5)


def test_refusals(make, tmp_path):
    path = tmp_path / "model.onnx"
    model = make("bert", "token-classification")
    with pytest.raises(ValueError, match="cannot export a BertModel; expected a task model"):
        export_onnx(build_model(model.config), path)
    with pytest.raises(ValueError, match=r"metadata \['labels'\] is the file's own"):
        export_onnx(model, path, metadata={"labels": "[]"})
    lora_core.inject_lora(model, r=2)
    with lora_core.mixed_batch(model, ["default", "default"]), pytest.raises(ValueError, match="export outside"):
        export_onnx(model, path)
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.self.value.lora["default"].lora_B.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layer\.1\.attention\.self\.value\.weight holds NaN or infinity"):
        export_onnx(model, path)
    assert not path.exists()


def test_all_lengths_of_the_parity_batches(make, texts):
    model = make("roberta", "token-classification")
    batches = parity_batches(model, [*texts, list(range(3, 40))])
    lengths = [batch["attention_mask"].sum(1).tolist() for batch in batches]
    assert all(batch["input_ids"].shape[1] == 16 for batch in batches[2:])
    assert lengths == [[1], [1], [16], [16], [1, 3, 4, 7, 12, 16], [0, 1, 3, 4, 7, 12, 16, 0], [16, 1]]
    for batch in batches:
        assert ((batch["input_ids"] == 1) == (batch["attention_mask"] == 0)).all()
