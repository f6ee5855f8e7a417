"""Training and evaluation on a GPU, as far as a machine without one can show it: every task, encoder, head and kind of
adapter runs whole on torch's meta device, where a tensor left on the CPU raises (device_watch.py).

WAITS is the list of all places where the host waits for the device, and how often at most.
"""

import importlib
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import lora_core
from lora_core.kernels import fused
from lora_core.kernels.transformer_layer import run_layer
from lora_core.models import build_model, config_from_dict
from lora_core.models.encoders.build import ENCODERS
from lora_core.models.heads import HEADS
from trainers import loop
from trainers.config import TrainConfig
from trainers.data.images.batches import ImageBatches, ImageDataset
from trainers.data.images.processing import ImageProcessing
from trainers.data.texts.encode import EncodedTexts, WindowCutter
from trainers.loop import fit
from trainers.processes.distributed import World
from trainers.tasks.classification import Classification, MultiLabelClassification, Regression
from trainers.tasks.token import CRFTokenClassification, TokenClassification
from trainers.training.losses import MultiLabelLoss, TrainingLoss


class Counts(NamedTuple):
    """How much a run does."""

    steps: int
    epochs: int
    passes: int
    """Of evaluation."""


WAITS: dict[str, Callable[[Counts], int]] = {
    "trainers/training/optim.py take_step": lambda run: run.steps,  # whether the gradient is finite, before the step
    "trainers/training/state.py read_loss": lambda run: run.epochs + run.steps // 20,  # for the log and the bar
    "trainers/loop.py _predict": lambda run: run.epochs,  # the summed loss
    "trainers/tasks/token.py predict": lambda run: run.passes,  # the predictions of a batch
    "trainers/tasks/classification.py predict": lambda run: run.passes,
    "trainers/training/checkpoints.py save_checkpoint": lambda run: 1000 * run.epochs,  # every tensor, once an epoch
    "trainers/training/checkpoints.py save_best": lambda run: 1000 * run.epochs,
    "trainers/training/checkpoints.py restore_best": lambda run: 1000,
}
"""Where the host waits for the device, and how often at most. All but what is between epochs is once a step, or once a
batch of evaluation; a place that is not here must not wait."""

TEXT = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 32}  # fmt: skip
IMAGES = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "intermediate_size": 32}  # fmt: skip
SCRATCH = {"vocab_size": 60, "hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 1}
FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet"), TEXT),
    "albert": {**TEXT, "embedding_size": 8},
    "distilbert": {"vocab_size": 60, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32,
                   "max_position_embeddings": 32},
    "deberta-v2": {**TEXT, "relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 8,
                   "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False},
    "modernbert": {**TEXT, "local_attention": 4, "pad_token_id": 0},
    **dict.fromkeys(("vit", "deit"), IMAGES),
    "dinov2": {name: value for name, value in IMAGES.items() if name != "intermediate_size"},
    **dict.fromkeys(("lstm", "bilstm-attention"), SCRATCH),
}  # fmt: skip
LABELS = ("a", "b", "c")
BIO = ("O", "B-protein", "I-protein", "B-DNA", "I-DNA")


def build(family: str = "bert", task: str = "token-classification", head: str = "default", **fields) -> nn.Module:
    config = config_from_dict({"model_type": family, **FAMILIES[family], **fields})
    return build_model(config, task, BIO if task.startswith("token") else LABELS, head=head)


def texts(targets: np.ndarray, *, pairs: bool = False, cut: bool = False) -> EncodedTexts:
    """As many texts of 5 to 20 tokens as there are targets."""
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(random.integers(5, 21, len(targets)))])
    ids = random.integers(5, 60, offsets[-1]).astype(np.int32)
    segments = random.integers(0, 2, offsets[-1]).astype(np.int8) if pairs else None
    cutter = WindowCutter(8, 1, 1) if cut else None
    return EncodedTexts(ids, offsets, targets, 0, 0, cutter=cutter, token_type_ids=segments)


def pictures(count: int) -> ImageBatches:
    pixels = np.random.default_rng(0).integers(0, 255, (count, 8, 8), dtype=np.uint8)
    dataset = ImageDataset(pixels, np.arange(count) % 3, LABELS, "pictures")
    return ImageBatches(dataset, ImageProcessing(size=(8, 8), resize_to=(8, 8)), "crop")


SINGLE = texts(np.arange(16) % 3)
SEVERAL = texts((np.arange(48) % 2).reshape(16, 3).astype(np.float32))
NUMBERS = texts(np.linspace(0, 1, 16, dtype=np.float32))
WORDS = "words"
"""Stands for the windows of tiny.py."""


FILES = ("loop.save_best", "loop.restore_best", "training.checkpoint_schedule.save_checkpoint")
"""What writes and reads files between epochs."""


@pytest.fixture
def on_device(tiny, device_watch, monkeypatch, tmp_path):
    """Trains a model for two epochs on the meta device, and holds the waits against WAITS."""

    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, *rest, **more: autocast(device.replace("meta", "cpu"), *rest,
                                                                                 **more))  # fmt: skip
    fused_on = importlib.import_module("torch.optim.optimizer")  # the name torch.optim.optimizer is deleted again
    monkeypatch.setattr(fused_on, "_get_fused_kernels_supported_devices", lambda: ["meta"])

    monkeypatch.setattr("trainers.monitor.monitor.REFRESH", math.inf)  # the bar reads the loss once a second

    def run(model, task, data=WORDS, *, writes=False, **settings) -> Counts:
        for name in () if writes else FILES:
            monkeypatch.setattr(f"trainers.{name}", lambda *arguments: None)
        train, validation = (tiny.windows(16), tiny.windows(6, 1)) if data is WORDS else (data, data)
        config = TrainConfig(epochs=1, batch_size=8, metric="loss", **settings)
        world = World(rank=0, size=1, device=device_watch.META)
        model.to(world.device)
        with device_watch.DeviceWatch() as watch:
            state = fit(model, task, train, validation, config, world, tmp_path)
        assert state.step == 2
        counts = Counts(state.step, state.epoch, passes=state.epoch * 10)
        unlisted = {place: count for place, count in watch.waits.items() if place not in WAITS}
        assert not unlisted, "the host waits for the device where it did not before"
        assert all(count <= WAITS[place](counts) for place, count in watch.waits.items()), watch.waits
        return counts

    return run


@pytest.mark.parametrize("adversarial", ["none", "fgm", "awp"])
def test_words(on_device, adversarial):
    on_device(build(), TokenClassification(BIO), adversarial=adversarial)


def test_words_by_crf(on_device):
    on_device(build(head="crf"), CRFTokenClassification(BIO))


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    ("task", "data"), [(Classification, SINGLE), (MultiLabelClassification, SEVERAL), (Regression, NUMBERS)]
)
def test_texts(on_device, task, data, cut):
    labels = LABELS[:1] if task is Regression else LABELS
    model = build_model(config_from_dict({"model_type": "bert", **TEXT}), "text-classification", labels)
    on_device(model, task(labels, windows=cut), texts(data.targets, cut=cut))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_pairs_of_texts(on_device, family):
    data = texts(np.arange(16) % 3, pairs=family == "bert")
    on_device(build(family, "text-classification"), Classification(LABELS), data)


@pytest.mark.parametrize(
    ("task", "data"),
    [
        (TokenClassification(BIO, TrainingLoss((1.0, 2.0, 1.0, 3.0, 1.0), 2.0, 0.1)), WORDS),
        (Classification(LABELS, TrainingLoss((1.0, 2.0, 3.0), 2.0, 0.1)), SINGLE),
        (MultiLabelClassification(LABELS, MultiLabelLoss((1.0, 2.0, 3.0), 2.0, 0.1)), SEVERAL),
    ],
    ids=["words", "texts", "several labels"],
)
def test_weighted_losses(on_device, task, data):
    kind = "token-classification" if data is WORDS else "text-classification"
    on_device(build(task=kind), task, data)


def test_every_family_is_here():
    assert FAMILIES.keys() == ENCODERS.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders(on_device, family):
    if ENCODERS[family].reads == "images":
        on_device(build(family, "image-classification"), Classification(LABELS), pictures(16))
    else:
        on_device(build(family), TokenClassification(BIO))


@pytest.mark.parametrize("family", [name for name, encoder in ENCODERS.items() if encoder.reads == "text"])
def test_their_own_text_heads(on_device, family):
    on_device(build(family, "text-classification"), Classification(LABELS), SINGLE)


def test_long_texts_in_blocks(on_device):
    """ModernBERT's windowed attention."""
    model = build("modernbert", local_attention=2)
    on_device(model, TokenClassification(BIO))


@pytest.mark.parametrize("head", sorted(HEADS.keys() - {"crf"}))
def test_heads(on_device, head):
    on_device(build("bert", "text-classification", head), Classification(LABELS), SINGLE)


ADAPTERS = {
    "plain": {},
    "all linear layers, rsLoRA, biases": {"target_modules": "all-linear", "use_rslora": True, "bias": "all"},
    "DoRA": {"use_dora": True, "target_modules": "all-linear"},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "a bias of B": {"lora_bias": True, "bias": "lora_only"},
    "embeddings": {"target_modules": ("word_embeddings", "query")},
    "embeddings, DoRA": {"target_modules": ("word_embeddings",), "use_dora": True},
    "new tokens": {"trainable_token_indices": (5, 7)},
    "saved whole": {"modules_to_save": ("LayerNorm",)},
}


@pytest.mark.parametrize("fields", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_adapters(on_device, fields):
    model = lora_core.inject_lora(build(), r=4, **{"lora_dropout": 0.0 if "token" in str(fields) else 0.1, **fields})
    on_device(model, TokenClassification(BIO))


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_of_convolutions(on_device, use_dora):
    model = build("vit", "image-classification")
    lora_core.inject_lora(model, target_modules=["projection"], use_dora=use_dora)
    on_device(model, Classification(LABELS), pictures(16))


class OfTorch(nn.Module):
    """A model of torch's own layers, with their fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.classifier = nn.Linear(16, len(BIO))

    def forward(self, input_ids, attention_mask):
        hidden = self.layer(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        return self.classifier(hidden)


def test_adapters_of_multi_head_attention(on_device):
    model = lora_core.inject_lora(OfTorch(), target_modules=["self_attn", "linear1"], modules_to_save=["classifier"])
    on_device(model, TokenClassification(BIO))


@pytest.mark.parametrize(
    "fields", [None, {}, {"lora_dropout": 0.2, "target_modules": "all-linear"}, {"use_dora": True}]
)
@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta-v2", "modernbert", "mpnet", "vit", "dinov2"])
def test_fused_layers(on_device, monkeypatch, family, fields):
    """Packed rows and all that a GPU computes with them: the layout is made of what the host knows."""
    monkeypatch.setattr(loop, "choose_kernels", lambda model, config, device: fused.fuse(model))
    images = ENCODERS[family].reads == "images"
    model = build(family, "image-classification" if images else "token-classification")
    if fields is not None:
        lora_core.inject_lora(model, r=4, **fields)
    runs = []
    monkeypatch.setattr(fused, "run_layer", lambda *given: runs.append(1) or run_layer(*given))
    if images:
        on_device(model, Classification(LABELS), pictures(16))
    else:
        on_device(model, TokenClassification(BIO))
    assert len(runs) == 2 + 1, "two steps and an evaluation of one layer each"


def test_a_tensor_of_the_cpu_is_noticed(on_device):
    class Wrong(TokenClassification):
        def training_loss_sum(self, logits, labels):
            return super().training_loss_sum(logits, labels) + torch.ones(3).sum(0, keepdim=True)[0] * torch.ones(2)[0]

    class Mixed(TokenClassification):
        def training_loss_sum(self, logits, labels):
            return super().training_loss_sum(logits + torch.ones(len(BIO)), labels)

    with pytest.raises(RuntimeError, match="cpu"):
        on_device(build(), Mixed(BIO))
    on_device(build(), Wrong(BIO))  # a number is none


def test_a_new_wait_is_noticed(on_device):
    class Eager(TokenClassification):
        def training_loss_sum(self, logits, labels):
            loss = super().training_loss_sum(logits, labels)
            assert loss.item() >= 0
            return loss

    with pytest.raises(AssertionError, match="waits for the device where it did not before"):
        on_device(build(), Eager(BIO))


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16"])
def test_a_step_asks_for_one_number(tiny, alone, device_watch, tmp_path, kind):
    """fp16's loss scaler runs on no meta device, so this counts what is read of tensors on the CPU."""
    config = TrainConfig(epochs=1, batch_size=8, metric="loss", precision=kind, kernels="plain")
    with device_watch.DeviceWatch(device=torch.device("cpu")) as watch:
        state = fit(build(), TokenClassification(BIO), tiny.windows(24), tiny.windows(6, 1), config, alone, tmp_path)
    assert state.step == 3
    assert watch.waits["trainers/training/optim.py take_step"] == 3
