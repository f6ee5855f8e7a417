"""ViT here against transformers + PEFT, both measured in turn in the same run: `pytest benchmarks/test_vit.py`.

Every row is a ratio of the two best rounds, theirs over ours, in processor time: above 1 means that we are ahead. Both
models hold the same weights, of ViT-base's size, and the same adapter (r 8 on query, key and value, the classifier
trained in full); their logits are compared first. Ours train with the fused layers, as our loop does. Run it on a quiet
machine, with OMP_NUM_THREADS=1 for steadier figures; it takes about four minutes. LORA_BENCHMARK_SIZE=small tries the
file on a tiny model.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import lora_core
from lora_core.kernels.fused import fuse
from lora_core.models import load_pretrained

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # PEFT's and transformers' own are not the subject
    pytest.mark.timeout(1800),
    pytest.mark.benchmark(timer=time.process_time),
]

SMALL = os.environ.get("LORA_BENCHMARK_SIZE") == "small"
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
ROUNDS = 2 if SMALL else 5
BATCH = 8

Step = Callable[[], object]


class Pair(NamedTuple):
    """The same adapted model twice, and the same images for both."""

    ours: nn.Module
    theirs: Any
    pixels: Tensor
    gold: Tensor
    interpolate: bool


@pytest.fixture(scope="module")
def table(publish: Callable[[list[str]], None]) -> Iterator[list[tuple[str, float, float]]]:
    """Rows (what, our seconds, their seconds), printed when all are measured."""
    rows: list[tuple[str, float, float]] = []
    yield rows
    head = f"{f'ViT-base, {BATCH} images':<44}{'ours, ms':>12}{'PEFT, ms':>12}{'ratio':>9}"
    lines = [f"{what:<44}{ours * 1e3:>12.1f}{theirs * 1e3:>12.1f}{theirs / ours:>9.2f}" for what, ours, theirs in rows]
    publish([head, *lines])


@pytest.fixture
def race(benchmark, table) -> Callable[[str, Step, Step], None]:
    """Time two steps in turn."""

    def run(what: str, ours: Step, theirs: Step) -> None:
        times: list[float] = []

        def setup() -> None:
            start = time.process_time()
            theirs()
            times.append(time.process_time() - start)

        benchmark.pedantic(ours, setup=setup, rounds=ROUNDS, warmup_rounds=1)
        best = min(times[1:])
        benchmark.extra_info["ratio to PEFT"] = best / benchmark.stats.stats.min
        table.append((what, benchmark.stats.stats.min, best))

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint for 224 pixels with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vit")
    fields: dict[str, Any] = {**(SIZE if SMALL else {}), "num_labels": 2}
    transformers.ViTForImageClassification(transformers.ViTConfig(**fields)).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=[128, 224])
def pair(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    size = request.param
    ours = load_pretrained(folder, "image-classification", image_size=size)
    lora_core.inject_lora(ours, r=8, lora_alpha=16, target_modules="qkv", init_lora_weights=False)
    adapter = lora_core.save_adapter(ours, tmp_path_factory.mktemp("adapter"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = transformers.ViTForImageClassification.from_pretrained(folder)
        theirs = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(BATCH, 3, size, size, generator=generator)
    made = Pair(ours, theirs, pixels, torch.arange(BATCH) % 2, interpolate=size != 224)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(pixels), their_logits(made, theirs.eval()), rtol=1e-4, atol=1e-4)
    return made


def their_logits(pair: Pair, model: Any) -> Tensor:
    return model(pixel_values=pair.pixels, interpolate_pos_encoding=pair.interpolate).logits


@pytest.mark.parametrize("merged", [False, True], ids=["adapter", "merged"])
def test_forward(merged, pair, race):
    ours, theirs = pair.ours.eval(), pair.theirs.eval()
    if merged:
        lora_core.merge_lora(ours)
        theirs.merge_adapter()

    @torch.inference_mode()
    def our_step() -> Tensor:
        return ours(pair.pixels)

    @torch.inference_mode()
    def their_step() -> Tensor:
        return their_logits(pair, theirs)

    state = "adapter merged" if merged else "LoRA r 8 on qkv"
    race(f"{pair.pixels.shape[-1]} px, forward, {state}", our_step, their_step)
    if merged:
        lora_core.unmerge_lora(ours)
        theirs.unmerge_adapter()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_training_step(dropout, pair, race):
    """Forward, loss, backward and AdamW on the adapter and the classifier."""
    fuse(pair.ours)
    for model in (pair.ours, pair.theirs):
        model.train()
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleDict) and name.endswith("lora_dropout"):  # PEFT's
                module["default"] = nn.Dropout(dropout) if dropout else nn.Identity()
            elif name.endswith("lora_dropout"):
                module.p = dropout

    def step(model: nn.Module, logits: Callable[[], Tensor]) -> Step:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        def run() -> None:
            optimizer.zero_grad()
            F.cross_entropy(logits(), pair.gold).backward()
            optimizer.step()

        return run

    race(f"{pair.pixels.shape[-1]} px, training step, LoRA dropout {dropout}",
         step(pair.ours, lambda: pair.ours(pair.pixels)),
         step(pair.theirs, lambda: their_logits(pair, pair.theirs)))  # fmt: skip
