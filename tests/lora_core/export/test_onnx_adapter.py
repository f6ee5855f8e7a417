from concurrent.futures import ThreadPoolExecutor

import onnxruntime
import pytest
import torch

import lora_core
from lora_core.adapters import whole_tensors
from lora_core.export import (
    OnnxModel,
    export_onnx,
    export_onnx_base,
    fused_counts,
    parity_batches,
    quantize_onnx,
    save_onnx_adapter,
    verify_onnx,
    verify_onnx_adapter,
)
from lora_core.export.session import read_adapter

ADAPTERS = {
    "qv": {"r": 2, "lora_alpha": 3, "bias": "all"},
    "dense": {"r": 5, "target_modules": ["query", "key", "output.dense"]},
    "all": {"r": 3, "target_modules": "all-linear", "modules_to_save": ["classifier"], "use_rslora": True},
    "pissa": {"r": 4, "target_modules": ["key"], "init_lora_weights": "pissa"},
}


def adapted(make, family="bert", task="token-classification", adapters=ADAPTERS):
    """A model with adapters of different ranks, targets, scalings and owned tensors, none of them zero."""
    model = make(family, task)
    names = {
        "distilbert": {"query": "q_lin", "key": "k_lin", "output.dense": "out_lin"},
        "deberta-v2": {"query": "query_proj", "key": "key_proj"},
    }.get(family, {})
    for seed, (name, options) in enumerate(adapters.items()):
        targets = options.get("target_modules")
        if isinstance(targets, list):
            options = {**options, "target_modules": [names.get(target, target) for target in targets]}
        lora_core.inject_lora(model, adapter_name=name, **options)
        lora_core.set_adapter(model, name)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2"])
@pytest.mark.parametrize("task", ["token-classification", "text-classification"])
def test_each_adapter_gives_the_models_logits_and_switching_is_exact(make, batch, texts, tmp_path, family, task):
    model = adapted(make, family, task)
    path = export_onnx_base(model, tmp_path / "base.onnx", metadata={"tokenizer.json": "{}"})
    base = OnnxModel(path)
    views = {}
    for name in ADAPTERS:
        file = save_onnx_adapter(model, name, tmp_path / f"{name}.onnx_adapter", metadata={"note": name})
        assert verify_onnx_adapter(model, name, base, file, parity_batches(model, texts)) < 1e-5
        views[name] = base.load_adapter(file, name)
        assert views[name].metadata["note"] == name
        assert views[name].metadata["tokenizer.json"] == "{}"
        assert views[name].session is base.session
    inputs = batch(model)
    first = {name: view(**inputs) for name, view in views.items()}
    plain = base(**inputs)
    with lora_core.disable_adapters(model):
        torch.testing.assert_close(plain, model(**inputs).detach(), rtol=1e-4, atol=1e-5)
    assert all((logits - plain).abs().max() > 0.01 for logits in first.values())
    for name in reversed(ADAPTERS):
        assert torch.equal(views[name](**inputs), first[name])
        assert torch.equal(base(**inputs), plain)
    with ThreadPoolExecutor(4) as pool:
        names = list(ADAPTERS) * 8
        found = list(pool.map(lambda name: views[name](**inputs), names))
    assert all(torch.equal(logits, first[name]) for name, logits in zip(names, found, strict=True))


def test_the_base_is_fused_and_costs_nothing_where_nothing_is_adapted(make, tmp_path):
    model = adapted(make, adapters={"one": {"r": 2, "target_modules": ["layer.1.attention.self.query"]}})
    counts = fused_counts(export_onnx_base(model, tmp_path / "base.onnx"))
    merged = fused_counts(export_onnx(model, tmp_path / "merged.onnx"))
    fused = ("attention", "skip_layer_norm", "bias_gelu", "embedding")
    assert [counts[name] for name in fused] == [merged[name] for name in fused] == [2, 4, 2, 1]
    assert counts["nodes"] == merged["nodes"] + 5  # two factors, their sum, and projection and split on their own


def test_an_int8_base(make, batch, tmp_path):
    model = adapted(make)
    base = OnnxModel(quantize_onnx(export_onnx_base(model, tmp_path / "base.onnx"), tmp_path / "int8.onnx"))
    inputs = batch(model)
    for name in ADAPTERS:
        view = base.load_adapter(save_onnx_adapter(model, name, tmp_path / f"{name}.onnx_adapter"), name)
        lora_core.set_adapter(model, name)
        logits = model(**inputs).detach()
        assert (view(**inputs) - logits).square().mean().sqrt() < 0.1 * logits.std()


def test_adapters_of_other_processes_with_their_own_labels(make, batch, tmp_path):
    """Each was trained on the same encoder with a head of its own."""
    models = {}
    for name, labels in {"a": ("x", "y"), "b": ("O", "B-1", "I-1", "B-2", "I-2")}.items():
        model = make("bert", "token-classification", labels=labels)
        model.bert.load_state_dict(make("bert", "token-classification").bert.state_dict())
        lora_core.inject_lora(model, r=len(labels), adapter_name="default")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(labels)))
        models[name] = model
    base = OnnxModel(export_onnx_base(models["a"], tmp_path / "base.onnx"))
    for name, model in models.items():
        view = base.load_adapter(save_onnx_adapter(model, "default", tmp_path / f"{name}.onnx_adapter"), name)
        assert view.labels == model.labels
        torch.testing.assert_close(view(**batch(model)), model(**batch(model)).detach(), rtol=1e-4, atol=1e-5)
        assert base.adapter(name).labels == model.labels
    assert base.labels == ("x", "y")


def test_images(make, batch, tmp_path):
    model = make("vit", "image-classification")
    lora_core.inject_lora(model, r=2, target_modules=["query", "key", "value"])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    base = OnnxModel(export_onnx_base(model, tmp_path / "base.onnx"))
    view = base.load_adapter(save_onnx_adapter(model, "default", tmp_path / "a.onnx_adapter"), "a")
    torch.testing.assert_close(view(**batch(model)), model(**batch(model)).detach(), rtol=1e-4, atol=1e-5)


def test_the_model_stays_as_it_was(make, batch, tmp_path):
    model = adapted(make)
    lora_core.set_adapter(model, "qv")
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    base = export_onnx_base(model, tmp_path / "base.onnx")
    save_onnx_adapter(model, "all", tmp_path / "all.onnx_adapter")
    lora_core.merge_lora(model)
    assert export_onnx_base(model, tmp_path / "again.onnx").read_bytes() == base.read_bytes()
    lora_core.unmerge_lora(model)
    after = model.state_dict(keep_vars=True)
    assert all(id(after[name]) == key and torch.equal(after[name], tensor) for name, (key, tensor) in before.items())
    assert model.lora_state.active == ("qv",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "uses DoRA, which rescales the whole of .*query.* Export it merged"),
        (
            {"target_modules": ["word_embeddings"]},
            "adapts .*word_embeddings, a Embedding; only updates of linear layers",
        ),
    ],
)
def test_adapters_that_cannot_stay_apart(make, tmp_path, options, message):
    model = make("bert", "token-classification")
    lora_core.inject_lora(model, **options)
    with pytest.raises(ValueError, match=message):
        export_onnx_base(model, tmp_path / "base.onnx")
    with pytest.raises(ValueError, match=message):
        save_onnx_adapter(model, "default", tmp_path / "a.onnx_adapter")
    assert list(tmp_path.iterdir()) == []


def test_refusals(make, batch, tmp_path):
    model = adapted(make)
    base = OnnxModel(export_onnx_base(model, tmp_path / "base.onnx"))
    file = save_onnx_adapter(model, "all", tmp_path / "all.onnx_adapter")
    with pytest.raises(ValueError, match=r"There is no adapter 'none'; the model has \['all'"):
        save_onnx_adapter(model, "none", file)
    with pytest.raises(ValueError, match="has no adapters"):
        export_onnx_base(make("bert", "token-classification"), tmp_path / "none.onnx")
    with pytest.raises(ValueError, match=r"no adapter 'all' is loaded; there are \[\]"):
        base.adapter("all")
    with pytest.raises(FileNotFoundError, match="does not exist; save it with save_onnx_adapter"):
        base.load_adapter(tmp_path / "none.onnx_adapter", "none")

    merged = OnnxModel(export_onnx(model, tmp_path / "merged.onnx"))
    with pytest.raises(ValueError, match="takes no adapters; export it with export_onnx_base"):
        merged.load_adapter(file, "all")

    few = adapted(make, adapters={"qv": ADAPTERS["qv"]})
    with pytest.raises(ValueError, match=r"sets \d+ weights that the base keeps fixed, first bert\.encoder\.layer"):
        OnnxModel(export_onnx_base(few, tmp_path / "few.onnx")).load_adapter(file, "all")

    other = adapted(make)
    with torch.no_grad():
        other.bert.encoder.layer[0].output.dense.weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="load it on the base that it was trained on"):
        base.load_adapter(save_onnx_adapter(other, "all", tmp_path / "other.onnx_adapter"), "other")
    assert base.adapters == {}


def test_damaged_adapters(make, tmp_path):
    model = adapted(make)
    base = OnnxModel(export_onnx_base(model, tmp_path / "base.onnx"))
    file = save_onnx_adapter(model, "all", tmp_path / "all.onnx_adapter")
    settable = {node.name: node.shape for node in base.session.get_overridable_initializers()}
    _, values = read_adapter(file, base.metadata, settable)
    content = file.read_bytes()
    weight = values["classifier.bias"].tobytes()
    assert content.count(weight) == 1
    at = content.index(weight)
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(ValueError, match="was changed after it was written"):
        base.load_adapter(file, "all")
    for damaged in (b"", b"text", content[:200]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"all\.onnx_adapter is not an adapter of save_onnx_adapter, or damaged"):
            base.load_adapter(file, "all")
    foreign = onnxruntime.AdapterFormat()
    foreign.set_parameters({"x": onnxruntime.OrtValue.ortvalue_from_numpy(values["classifier.bias"])})
    foreign.export_adapter(str(file))
    with pytest.raises(ValueError, match="is not an adapter of save_onnx_adapter"):
        base.load_adapter(file, "all")
    whole_tensors(model, "all")["classifier.bias"].data[0] = float("inf")
    with pytest.raises(ValueError, match=r"not saved: classifier\.bias holds NaN or infinity"):
        save_onnx_adapter(model, "all", file)


def test_a_wrong_adapter_is_deleted_and_the_base_stays(make, texts, tmp_path):
    model = adapted(make)
    lora_core.set_adapter(model, "qv")
    base = OnnxModel(export_onnx_base(model, tmp_path / "base.onnx"))
    file = save_onnx_adapter(model, "all", tmp_path / "all.onnx_adapter")
    with pytest.raises(ValueError, match="differ from the model's"):
        verify_onnx_adapter(model, "dense", base, file, parity_batches(model, texts))
    assert not file.exists()
    assert base.path.exists()
    assert model.lora_state.active == ("qv",)
    with lora_core.disable_adapters(model):
        verify_onnx(model, base.path, parity_batches(model, texts))
