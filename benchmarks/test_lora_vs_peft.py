"""LoRA here against PEFT, both measured in turn in the same run: `pytest benchmarks/test_lora_vs_peft.py`.

Every row is a ratio of the two best rounds, PEFT's time over ours: above 1 means that we are ahead. The model is of
BERT-base size with random weights; LORA_BENCHMARK_SIZE=small tries the file on a tiny one. Run it on a quiet machine.
"""

import copy
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import peft
import pytest
import torch
import transformers
from peft.utils.hotswap import hotswap_adapter as peft_hotswap
from torch import nn

import lora_core

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # PEFT's and transformers' own are not the subject
    pytest.mark.timeout(1800),
]

SMALL = os.environ.get("LORA_BENCHMARK_SIZE") == "small"
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 99}
ROUNDS = 3 if SMALL else 9
BATCH, TOKENS = 4, 128
QUERY_VALUE = ["query", "value"]
ALL_LAYERS = ["query", "key", "value", "dense"]

Step = Callable[[], object]


@pytest.fixture(scope="module")
def base() -> nn.Module:
    torch.manual_seed(0)
    size: dict[str, Any] = {**(SIZE if SMALL else {}), "num_labels": 5}
    config = transformers.BertConfig(**size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.BertForTokenClassification(config).eval()


@pytest.fixture(scope="module")
def table(publish: Callable[[list[str]], None]) -> Iterator[list[tuple[str, float, float]]]:
    """Rows (what, our seconds, PEFT's seconds), printed when all are measured."""
    rows: list[tuple[str, float, float]] = []
    yield rows
    lines = [f"{what:<34}{ours * 1e3:>12.2f}{theirs * 1e3:>12.2f}{theirs / ours:>9.2f}" for what, ours, theirs in rows]
    publish([f"{'':<34}{'ours, ms':>12}{'PEFT, ms':>12}{'ratio':>9}", *lines])


@pytest.fixture
def race(benchmark, table) -> Callable[..., None]:
    """Time two steps in turn; each round gets its step from a maker, whose time does not count."""

    def run(what: str, make_ours: Callable[[], Step], make_theirs: Callable[[], Step]) -> None:
        best = {"theirs": float("inf")}

        def setup() -> tuple[tuple[Step], dict]:
            step = make_theirs()
            best["theirs"] = min(best["theirs"], seconds(step))
            return (make_ours(),), {}

        benchmark.pedantic(lambda step: step(), setup=setup, rounds=ROUNDS, warmup_rounds=1)
        ours = benchmark.stats.stats.min
        benchmark.extra_info["ratio to PEFT"] = best["theirs"] / ours
        table.append((what, ours, best["theirs"]))

    return run


def seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def with_ours(base: nn.Module, **fields) -> nn.Module:
    model = copy.deepcopy(base)
    return lora_core.inject_lora(model, r=8, **{"target_modules": QUERY_VALUE, "modules_to_save": (), **fields})


def with_peft(base: nn.Module, **fields) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(
            copy.deepcopy(base), peft.LoraConfig(r=8, lora_alpha=8, **{"target_modules": QUERY_VALUE, **fields})
        )


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        ("inject, query and value", {"target_modules": QUERY_VALUE, "init_lora_weights": True}),
        ("inject, all linear layers", {"target_modules": ALL_LAYERS, "init_lora_weights": True}),
        ("inject, DoRA", {"target_modules": QUERY_VALUE, "use_dora": True}),
        ("inject, pissa_niter_4", {"target_modules": ALL_LAYERS, "init_lora_weights": "pissa_niter_4"}),
        ("inject, olora", {"target_modules": ALL_LAYERS, "init_lora_weights": "olora"}),
    ],
)
def test_inject(what, fields, base, race):
    def ours() -> Step:
        model = copy.deepcopy(base)
        return lambda: lora_core.inject_lora(model, r=8, modules_to_save=(), **fields)

    def theirs() -> Step:
        model, config = copy.deepcopy(base), peft.LoraConfig(r=8, lora_alpha=8, **fields)
        return lambda: peft.get_peft_model(model, config)

    race(what, ours, theirs)


def test_save(base, race, tmp_path):
    ours, theirs = with_ours(base), with_peft(base)
    race("save", lambda: lambda: lora_core.save_adapter(ours, tmp_path / "ours"),
         lambda: lambda: theirs.save_pretrained(tmp_path / "theirs"))  # fmt: skip


def test_load(base, race, tmp_path):
    lora_core.save_adapter(with_ours(base), tmp_path)

    def ours() -> Step:
        model = copy.deepcopy(base)
        return lambda: lora_core.load_adapter(model, tmp_path)

    def theirs() -> Step:
        model = copy.deepcopy(base)
        return lambda: peft.PeftModel.from_pretrained(model, tmp_path)

    race("load", ours, theirs)


def test_hotswap(base, race, tmp_path):
    lora_core.save_adapter(with_ours(base, init_lora_weights=False), tmp_path)
    ours, theirs = with_ours(base), with_peft(base)
    race("hotswap", lambda: lambda: lora_core.hotswap_adapter(ours, tmp_path),
         lambda: lambda: peft_hotswap(theirs, tmp_path, "default"))  # fmt: skip


@pytest.mark.parametrize("variant", ["LoRA", "DoRA"])
@pytest.mark.parametrize("backward", [False, True])
def test_step(variant, backward, base, race, table):
    """One batch of 4 x 128 tokens, and what it costs over the frozen base."""
    fields = {"use_dora": variant == "DoRA"}
    ours, theirs = with_ours(base, **fields), with_peft(base, **fields)
    frozen = copy.deepcopy(base)
    frozen.requires_grad_(False)
    frozen.get_submodule("bert.embeddings").register_forward_hook(lambda module, args, out: out.requires_grad_())
    ids = torch.randint(0, 99, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))

    def step(model: nn.Module) -> Step:
        def run() -> None:
            with torch.set_grad_enabled(backward):
                logits: torch.Tensor = model(input_ids=ids).logits
                if backward:
                    logits.sum().backward()

        return run

    plain = min(seconds(step(frozen)) for _ in range(ROUNDS + 1))
    what = f"{variant}, forward{' and backward' if backward else ''}"
    race(what, lambda: step(ours), lambda: step(theirs))
    table[-1] = (f"{what} ({table[-1][1] / plain:.2f}x base)", *table[-1][1:])


def test_import(benchmark, table):
    """Processor time that `import` adds to `import torch`, each in a process of its own."""

    def added(package: str) -> float:
        code = f"import time, torch; t = time.process_time(); import {package}; print(time.process_time() - t)"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    ours, theirs = (added(package) for package in ("lora_core", "peft"))
    benchmark.extra_info["ratio to PEFT"] = theirs / ours
    benchmark.pedantic(added, args=("lora_core",), rounds=1)
    table.append(("import, over import torch", ours, theirs))
