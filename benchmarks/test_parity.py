"""What each encoder agrees with: `pytest benchmarks/test_parity.py` (five minutes).

Small models of every family with random weights, as transformers makes them. Largest differences, relative to the
largest value of what is compared:

    logits, gradients    of a token classifier, to transformers', padded texts or pictures
    fused                logits and gradients of LoRA's parameters, fused layers to plain ones
    PEFT                 logits with a random adapter of ours in PEFT, and of PEFT's in ours
    ONNX                 logits of the exported file to the model's

and what int8 costs: each model is trained, from nothing, to classify AG News (where LORA_DATA_DIR holds it; else a
sample), vision models the digits, and the score of the int8 file on validation data compared with the model's.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import lora_core
from lora_core.kernels.fused import fuse
from lora_core.models import load_pretrained, resolve
from trainers.config import RunConfig
from trainers.data.images.digits import BASE, write_digits
from trainers.data.images.processing import ImageProcessing
from trainers.experiment import run
from trainers.serve.export import export_run

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore::FutureWarning")]

SMALL = os.environ.get("LORA_BENCHMARK_SIZE") == "small"
LABELS = ("O", "B", "I")
VOCABULARY = 30522
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 128, "max_position_embeddings": 160, "pad_token_id": 0,
}  # fmt: skip
PICTURES: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 28,
    "patch_size": 7, "mlp_ratio": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "BERT": (transformers.BertConfig, TEXT, ["query", "value"]),
    "RoBERTa": (transformers.RobertaConfig, {**TEXT, "pad_token_id": 1}, ["query", "value"]),
    "DistilBERT": (
        transformers.DistilBertConfig,
        {"vocab_size": VOCABULARY, "dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 128,
         "max_position_embeddings": 160},
        ["q_lin", "v_lin"],
    ),
    "ELECTRA": (transformers.ElectraConfig, {**TEXT, "embedding_size": 32}, ["query", "value"]),
    "ALBERT": (transformers.AlbertConfig, {**TEXT, "embedding_size": 32}, ["query", "value"]),
    "MPNet": (transformers.MPNetConfig, {**TEXT, "pad_token_id": 1}, ["attn.q", "attn.v"]),
    "DeBERTa-v2, v3": (
        transformers.DebertaV2Config,
        {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32,
         "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
        ["query_proj", "value_proj"],
    ),
    "ModernBERT": (
        transformers.ModernBertConfig,
        {**TEXT, "local_attention": 16, "bos_token_id": 101, "eos_token_id": 102, "cls_token_id": 101,
         "sep_token_id": 102},
        ["Wqkv"],
    ),
    "ViT": (transformers.ViTConfig, PICTURES, ["query", "value"]),
    "DINOv2": (transformers.Dinov2Config, PICTURES, ["query", "value"]),
}  # fmt: skip


def is_vision(name: str) -> bool:
    return name in ("ViT", "DINOv2")


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference over the largest value."""
    most = max(float(each.abs().max()) for each in expected)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / most


def oracle_of(name: str, folder: Path) -> Any:
    """A random model of transformers, saved with what its inputs need."""
    config_class, sizes, _ = FAMILIES[name]
    kinds = transformers.AutoModelForTokenClassification, transformers.AutoModelForImageClassification
    torch.manual_seed(0)
    model: Any = kinds[is_vision(name)].from_config(config_class(**sizes, num_labels=len(LABELS))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:  # biases of 0 and norms of 1 would hide one that is left out
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: row for row, label in enumerate(LABELS)}
    model.save_pretrained(str(folder))
    if is_vision(name):
        ImageProcessing(size=(28, 28), resize_to=(28, 28), resample=3).save(folder)
    else:
        shutil.copy(resolve("embedded") / "tokenizer.json", folder)
    return model


def inputs_of(name: str) -> tuple[dict[str, Tensor], Tensor]:
    """A batch, and where its logits count."""
    generator = torch.Generator().manual_seed(1)
    if is_vision(name):
        pictures = torch.randn(4, 3, 28, 28, generator=generator)
        return {"pixel_values": pictures}, torch.ones(4, dtype=torch.bool)
    lengths = torch.tensor([7, 31, 64, 3])
    mask = torch.arange(64) < lengths[:, None]
    ids = torch.randint(1000, VOCABULARY, (4, 64), generator=generator).masked_fill(~mask, 0)
    return {"input_ids": ids, "attention_mask": mask.long()}, mask


def logits_and_gradients(model: Any, name: str, trained: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (n, L) that count, and the gradients of the mean of their squares, by parameter."""
    inputs, counts = inputs_of(name)
    model.zero_grad()
    found = model(**inputs)
    logits = (found if isinstance(found, Tensor) else found.logits)[counts]
    if logits.requires_grad:
        logits.square().mean().backward()
    chosen = {key: p for key, p in model.named_parameters() if p.grad is not None and (p.requires_grad or not trained)}
    return logits.detach(), {key: p.grad for key, p in chosen.items()}


def under_checkpoint_names(model: Any, folder: Path) -> dict[str, Tensor]:
    """The gradients of a model of transformers by the names in its checkpoints, which are others than its own."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(str(folder))
    return load_file(folder / "model.safetensors")


def randomise(model: Any) -> None:
    """Adapters that do something: B starts at zero."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.1)


def parity(name: str, folder: Path) -> list[float]:
    """Logits, gradients, fused logits, fused gradients, our adapter in PEFT, PEFT's in ours."""
    targets = FAMILIES[name][2]
    task = "image-classification" if is_vision(name) else "token-classification"
    oracle = oracle_of(name, folder / "model")
    model = load_pretrained(folder / "model", task)
    (ours, own), (theirs, _) = (logits_and_gradients(each, name) for each in (model, oracle))
    others = under_checkpoint_names(oracle, folder / "gradients")
    figures = [relative([ours], [theirs]), relative(list(own.values()), [others[key] for key in own])]

    lora_core.inject_lora(model, r=4, target_modules=targets, lora_dropout=0.0)
    randomise(model)
    model.train()
    for module in model.modules():
        if hasattr(module, "p"):  # dropout, whose random numbers fused layers draw in another order
            module.p = 0.0  # type: ignore[assignment]
    plain, before = logits_and_gradients(model, name, trained=True)
    fused, after = logits_and_gradients(fuse(model), name, trained=True)
    assert before.keys() == after.keys()
    figures += [relative([fused], [plain]), relative(list(after.values()), [before[key] for key in after])]

    adapter = lora_core.save_adapter(model, folder / "adapter")
    in_peft = peft.PeftModel.from_pretrained(oracle_of(name, folder / "model"), str(adapter)).eval()
    figures.append(relative([logits_and_gradients(in_peft, name)[0]], [plain]))
    kind: Any = {} if is_vision(name) else {"task_type": "TOKEN_CLS"}
    # transformers calls the layers of vision models otherwise than their checkpoints do
    named = ["q_proj", "v_proj"] if is_vision(name) else targets
    config = peft.LoraConfig(r=4, target_modules=named, **kind)
    theirs_adapted = peft.get_peft_model(oracle_of(name, folder / "model"), config).eval()
    randomise(theirs_adapted)
    theirs_adapted.save_pretrained(str(folder / "theirs"))
    loaded = load_pretrained(folder / "model", task)
    lora_core.load_adapter(loaded, folder / "theirs")
    expected = logits_and_gradients(theirs_adapted, name)[0]
    figures.append(relative([logits_and_gradients(loaded.eval(), name)[0]], [expected]))
    return figures


def exported(name: str, folder: Path) -> tuple[float, float, float]:
    """Difference of ONNX's logits; the model's score and the points that int8 loses, in percent."""
    oracle_of(name, folder / "model")
    settings: dict[str, Any] = {
        "model": str(folder / "model"), "method": "full", "fresh_head": True, "learning_rate": 2e-3,
        "epochs": 1 if SMALL else 3, "batch_size": 32, "warmup": 0.1, "quiet": True, "output_dir": folder / "run",
    }  # fmt: skip
    if is_vision(name):
        digits = write_digits(folder / "digits")[BASE]
        settings |= {"task": "image-classification", "data": str(digits), "epochs": 1 if SMALL else 10}
    else:
        real = Path(os.environ.get("LORA_DATA_DIR", "/nowhere"), "ag_news")
        sample = Path(__file__).resolve().parents[1] / "examples" / "data" / "news"
        settings |= {"task": "text-classification", "data": str(real if real.is_dir() else sample), "max_length": 64}
    done = run(RunConfig.from_dict(settings, "parity"))
    fp32, int8 = export_run(done.folder, points_lost=100.0, activations="static")
    assert fp32.difference is not None
    assert int8.points_lost is not None
    return fp32.difference, 100 * done.result["validation"][int8.metric], int8.points_lost


HEADER = (
    f"{'largest relative difference':<16.16}{'logits':>9}{'gradients':>11}{'fused':>9}{'gradients':>11}"
    f"{'in PEFT':>9}{'of PEFT':>9}{'ONNX*':>9}{'score':>8}{'int8 loses':>12}"
)


@pytest.mark.parametrize("name", FAMILIES)
def test_parity(name: str, table: list[str], tmp_path: Path) -> None:
    transformers.logging.set_verbosity_error()
    figures = parity(name, tmp_path)
    difference, score, lost = exported(name, tmp_path / "trained")
    if not table:
        table.append(HEADER)
    logits, gradients, fused, fused_gradients, out, back = (f"{figure:.0e}" for figure in figures)
    table.append(
        f"{name:<16}{logits:>9}{gradients:>11}{fused:>9}{fused_gradients:>11}{out:>9}{back:>9}{difference:>9.0e}"
        f"{score:>8.2f}{lost:>12.2f}"
    )
    if name == list(FAMILIES)[-1]:
        table.append("* absolute, of logits of a trained model; its score is F1 on validation data, in percent")
    assert max(figures) < 1e-4
