"""Which layers are adapted and which tensors are owned in full, with PEFT's choice as the oracle."""

import pytest
import torch
from torch import nn

import lora_core
from lora_core import LoRAConfig, inject_lora
from lora_core.adapters import hosts
from lora_core.targets import find_saved, find_targets, head_names

KINDS = ["bert", "bert-text", "bert-question", "roberta", "roberta-text", "distilbert-text", "ours", "ours-text"]


def paths(model: nn.Module) -> list[str]:
    return [path for path, _ in hosts(model)]


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["query", "value"]},
        {"target_modules": ["self.query", "encoder.layer.1.output.dense"]},
        {"target_modules": ["bert.encoder.layer.0.attention.self.key"]},
        {"target_modules": r".*layer\.[01]\.attention.*(query|key)"},
        {"target_modules": r"bert\.encoder\.layer\.1\.output\.dense"},
        {"target_modules": ["query", "word_embeddings"]},
        {"target_modules": ["query", "dense"], "exclude_modules": ["output.dense"]},
        {"target_modules": ["query", "value"], "exclude_modules": r".*layer\.0.*"},
        {"target_modules": ["query"], "layers_to_transform": [1]},
        {"target_modules": ["query"], "layers_to_transform": []},
        {"target_modules": ["query", "value"], "layers_to_transform": 0, "layers_pattern": "layer"},
        {"target_modules": ["query", "classifier"], "modules_to_save": ["classifier"]},
        {"target_modules": "all-linear", "modules_to_save": ["classifier"]},
    ],
)
def test_targets_are_those_of_peft(fields, make, peft_model):
    """Properties 12, 14, 15: a string is a regular expression for the whole path, a list holds dotted suffixes."""
    theirs = peft_model(make("bert"), **fields)
    wanted = [path.removeprefix("base_model.model.") for path, m in theirs.named_modules() if hasattr(m, "lora_A")]
    # PEFT gives a layer both an adapter and a full copy when asked for both; a copy alone is what was meant.
    wanted = [path for path in wanted if "classifier" not in path]
    assert find_targets(make("bert"), LoRAConfig(**fields)) == wanted


@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("target_modules", ["valeu"], "value"),
        ("target_modules", ["query", "valeu"], "value"),
        ("target_modules", ["uery"], "query"),
        ("target_modules", r".*attention\.querry", "query"),
        ("target_modules", "query", "a list to match suffixes"),
        ("exclude_modules", ["layer.7.query"], "query"),
        ("modules_to_save", ["clasifier"], "classifier"),
        ("layers_to_transform", [0, 9], r"there are \[0, 1\]"),
        ("rank_pattern", {"quary": 4}, "query"),
        ("alpha_pattern", {"quary": 4}, "query"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_names(field, value, nearest, make, state, same):
    """Property 11 and complaint 1: in PEFT most of these are silent."""
    model = make("bert")
    before = state(model)
    with pytest.raises(ValueError, match=field) as error:
        inject_lora(model, **{"target_modules": ["query", "value"], field: value})
    assert error.match(nearest)
    assert same(before, state(model))
    assert not hasattr(model, "lora_state")


def test_exclusions_that_leave_nothing_are_an_error(make):
    with pytest.raises(ValueError, match="exclude_modules"):
        inject_lora(make("bert"), target_modules=["query"], exclude_modules=["query"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modules_to_save", [None, ()])
def test_all_linear_never_reaches_the_head(kind, modules_to_save, make, run, train):
    """Property 13 and complaint 2: PEFT fails on token classification and adapts the head without a task_type."""
    model = make(kind)
    heads = head_names(model)
    assert heads
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    inject_lora(model, target_modules="all-linear", modules_to_save=modules_to_save)
    assert paths(model) == [path for path in linear if path.split(".")[0] not in heads]
    train(model, lambda model: run(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["qv", "qkv", "attention", None])
def test_presets_find_the_attention_of_every_family(kind, preset, make):
    model = inject_lora(make(kind), target_modules=preset)
    per_layer = {"qv": 2, None: 2, "qkv": 3, "attention": 4}[preset]
    found = paths(model)
    assert len(found) == 2 * per_layer
    assert not [path for path in found if "ffn" in path or "intermediate" in path or "head" in path]
    assert all(("query" in path or "q_" in path) for path in found[::per_layer])


def test_the_default_is_the_queries_and_values(make):
    model = inject_lora(make("bert"))
    assert {path.rpartition(".")[2] for path in paths(model)} == {"query", "value"}


def test_a_model_without_known_attention_gets_the_names_it_has():
    model = nn.ModuleDict({"stem": nn.Linear(4, 8), "tail": nn.Linear(8, 4)})
    with pytest.raises(ValueError, match="stem, tail"):
        inject_lora(model)
    with pytest.raises(ValueError, match="no layer that LoRA can adapt"):
        inject_lora(nn.Sequential(nn.ReLU()))


def test_a_saved_module_gets_no_adapter(make):
    """Property 14."""
    model = inject_lora(make("roberta-text"), target_modules=["query", "dense"])
    assert not [path for path in paths(model) if path.startswith("classifier")]
    assert "classifier.dense.weight" in model.lora_state.adapters["default"].saved


def test_layers_to_transform_counts_in_the_named_list():
    """Property 15."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            experts = [nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])}) for _ in range(2)]
            self.model = nn.ModuleDict({"layers": nn.ModuleList(experts)})

    config = LoRAConfig(target_modules="all-linear", layers_to_transform=[1], layers_pattern="layers")
    assert find_targets(Mixture(), config) == [f"model.layers.1.experts.{i}" for i in range(3)]
    config = LoRAConfig(target_modules="all-linear", layers_to_transform=[2], layers_pattern=["experts"])
    assert find_targets(Mixture(), config) == [f"model.layers.{i}.experts.2" for i in range(2)]


@pytest.mark.parametrize("container", [nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict])
def test_containers_cannot_be_saved_modules(container):
    """Property 16: they have no forward of their own."""
    inner = {"a": nn.Linear(4, 4) if "Module" in container.__name__ else nn.Parameter(torch.zeros(2))}
    model = nn.ModuleDict({"query": nn.Linear(4, 4)})
    model.extra = container(inner if "Dict" in container.__name__ else inner.values())
    with pytest.raises(ValueError, match=f"extra is a {container.__name__}"):
        inject_lora(model, target_modules=["query"], modules_to_save=["extra"])


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_owned_biases_are_those_that_peft_trains(bias, make, peft_model):
    fields = {"target_modules": ["query", "output.dense"], "bias": bias, "modules_to_save": ["classifier"]}
    theirs = peft_model(make("bert"), **fields)
    wanted = {
        name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".modules_to_save.default", "")
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad and "lora_" not in name and "original_module" not in name
    }
    model = make("bert")
    config = LoRAConfig(**fields)
    found = find_saved(model, config, find_targets(model, config))
    assert len(found) == len(set(found))
    assert set(found) == wanted


def test_heads_are_found_in_models_of_any_origin(make):
    """Complaint 3: without a task_type PEFT leaves a fresh head frozen."""
    wanted = {
        "bert": ("classifier",),
        "bert-question": ("qa_outputs",),
        "distilbert-text": ("pre_classifier", "classifier"),
        "ours": ("classifier",),
        "conv": ("head",),
        "bert-encoder": (),
    }
    assert {kind: head_names(make(kind)) for kind in wanted} == wanted

    class Timm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Linear(4, 4)
            self.last = nn.Linear(4, 2)

        def get_classifier(self) -> nn.Module:
            return self.last

    assert head_names(Timm()) == ("last",)


@pytest.mark.parametrize(
    ("kind", "named", "owned"),
    [
        ("distilbert-text", ["transformer.layer.1.sa_layer_norm"], {"sa_layer_norm", "pre_classifier", "classifier"}),
        ("distilbert-text", ["classifier"], {"pre_classifier", "classifier"}),
        ("roberta-text", ["classifier.out_proj"], {"out_proj"}),
        ("bert", (), set()),
    ],
)
def test_the_head_is_frozen_only_on_purpose(kind, named, owned, make):
    """Complaint 3: naming another module must not freeze a fresh head; () does, and so does naming part of it."""
    model = inject_lora(make(kind), modules_to_save=named)
    saved = model.lora_state.adapters["default"].saved
    assert {key.split(".")[-2] for key in saved} == owned
    assert all(p.requires_grad == (name in saved or ".lora." in name) for name, p in model.named_parameters())


def test_a_second_adapter_does_not_adapt_the_first(make):
    model = inject_lora(make("bert"), target_modules="all-linear")
    lora_core.add_adapter(model, "second", target_modules="all-linear")
    lora_core.add_adapter(model, "third", target_modules=r".*(query|lora_A)")
    assert not [path for path in paths(model) if ".lora." in path]
    records = model.lora_state.adapters
    assert records["second"].targets == records["default"].targets
    assert len(records["third"].targets) == 2
