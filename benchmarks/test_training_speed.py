"""Training speed and memory, here and with PEFT and transformers' Trainer: `pytest benchmarks/test_training_speed.py`.

All train the same token classifier on the same sentences, 16 a step: LoRA of rank 16 with bias="all" and dropout 0.1
on its input and on the hidden states, or every parameter. Sentences have JNLPBA's lengths in tokens (from the data
itself where LORA_DATA_DIR holds bionlp2004, else from its quantiles below), random words and labels; models have the
sizes of MiniLM-L6, BERT-base, DeBERTa-v3-base and ModernBERT-base and random weights, which cost as much to train as
pretrained ones. ModernBERT has no dropout of its own, and one projection for query, key and value, which is adapted as
a whole.

"int8" are products with frozen weights in int8, beside the others in fp32 or bf16.

Our settings are the library's own: batches sorted by length within shuffled windows, no dropout of attention weights.
"Defaults" are those of Trainer and of the models' configs, so attention weights are dropped too (0.1); one opponent is
measured without that, as ours. Each contestant lives in a process of its own and they train in turn, in every round
all of them; rows give the median over the rounds and its spread (largest less smallest ratio, over the median).

Peak memory is what training adds to the process with the model loaded: activations, gradients, the optimiser's moments
and, in bf16, our copy of the frozen weights. The share of the ceiling is useful work over what the machine's matrix
product does in the same round; useful work is 2 operations for each weight of the encoder's linear layers and each real
token, in the forward pass and again for the gradient of the inputs, padding and everything else not counted.

Run it on a quiet machine: about twenty minutes on two cores. LORA_BENCHMARK_SIZE=small tries the file in one.
`python benchmarks/test_training_speed.py "our LoRA, bf16"` profiles some steps of one of our contestants.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import lora_core
from lora_core.models import build_model, config_from_dict
from trainers.config import TrainConfig
from trainers.data.tokens.windows import IGNORED_LABEL, TokenWindows
from trainers.loop import fit
from trainers.processes.distributed import World
from trainers.tasks.token import TokenClassification
from trainers.training.memory import peak_memory_bytes, reset_peak_memory

pytestmark = [pytest.mark.timeout(1800)]

SMALL = os.environ.get("LORA_BENCHMARK_SIZE") == "small"
ROUNDS = 2 if SMALL else 3
BATCH, RANK = 16, 16
LABELS = ("O", *(f"{place}-{number}" for number in range(5) for place in "BI"))
QUANTILES = {0: 4, 0.05: 16, 0.1: 20, 0.2: 25, 0.3: 29, 0.4: 33, 0.5: 37, 0.6: 41, 0.7: 46, 0.8: 52, 0.9: 63,
             0.95: 73, 0.98: 86, 0.99: 97, 0.995: 110, 0.999: 152, 0.9999: 224, 1: 402}  # fmt: skip
"""Tokens of JNLPBA's training sentences: at most so many in this share of them."""
CPU = torch.device("cpu")

TINY: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
MODERN = {"hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12, "intermediate_size": 1152}
DEBERTA = {**BASE, "vocab_size": 128100, "relative_attention": True, "pos_att_type": "p2c|c2p",
           "position_buckets": 256, "share_att_key": True, "norm_rel_ebd": "layer_norm",
           "position_biased_input": False}  # fmt: skip


class Size(NamedTuple):
    """A model, and how much it trains on in a round."""

    fields: dict[str, Any]
    sentences: int
    family: str = "bert"


SIZES = {
    "MiniLM-L6": Size(TINY, 64) if SMALL else Size(MINILM, 480),
    "BERT-base": Size({**TINY, "num_hidden_layers": 3}, 32) if SMALL else Size(BASE, 64),
    "DeBERTa-v3-base": Size({**DEBERTA, **TINY} if SMALL else DEBERTA, 32 if SMALL else 64, "deberta-v2"),
    "ModernBERT-base": Size({**TINY, "num_hidden_layers": 3} if SMALL else MODERN, 32 if SMALL else 64, "modernbert"),
}

TARGETS = {
    "bert": {"qv": ["query", "value"], "all-linear": ["query", "key", "value", "dense"]},
    "deberta-v2": {
        "qv": ["query_proj", "value_proj"],
        "all-linear": ["query_proj", "key_proj", "value_proj", "dense"],
    },
    "modernbert": {"qv": ["Wqkv"], "all-linear": ["Wqkv", "Wi", "attn.Wo", "mlp.Wo"]},
}
"""What PEFT is told, for `Contestant.targets`."""


class Contestant(NamedTuple):
    """How to train."""

    ours: bool
    targets: str | None
    """LoRA's target_modules; None trains every parameter."""
    bf16: bool = False
    int8: bool = False
    """Ours: products with frozen weights in int8, the others as `bf16` says."""
    grouped: bool = True
    """Opponents: group_by_length."""
    fused: bool = True
    """Ours: the kernels of lora_core.kernels."""
    attention_dropout: float = 0.1
    """Opponents."""


CONTESTANTS = {
    "our LoRA": Contestant(True, "qv"),
    "our LoRA, bf16": Contestant(True, "qv", bf16=True),
    "our LoRA, int8": Contestant(True, "qv", int8=True),
    "our LoRA, int8 and bf16": Contestant(True, "qv", bf16=True, int8=True),
    "our LoRA, all linear, int8 and bf16": Contestant(True, "all-linear", bf16=True, int8=True),
    "our LoRA, plain layers": Contestant(True, "qv", fused=False),
    "our LoRA, all linear": Contestant(True, "all-linear"),
    "our full fine-tuning": Contestant(True, None),
    "PEFT, defaults": Contestant(False, "qv", grouped=False),
    "PEFT, by length": Contestant(False, "qv"),
    "PEFT, by length, no attention dropout": Contestant(False, "qv", attention_dropout=0.0),
    "PEFT, by length, bf16": Contestant(False, "qv", bf16=True),
    "PEFT, by length, all linear": Contestant(False, "all-linear"),
    "Trainer, by length, full": Contestant(False, None),
}

# Rows: what, opponent, ours, the aim for its time over ours (None: for information).
ROWS = {
    "MiniLM-L6": [
        ("LoRA, fp32", "PEFT, defaults", "our LoRA", 3.5),
        ("LoRA, fp32", "PEFT, by length", "our LoRA", 1.6),
        ("LoRA, fp32", "PEFT, by length, no attention dropout", "our LoRA", None),
        ("LoRA, bf16", "PEFT, defaults", "our LoRA, bf16", 6.0),
        ("LoRA, bf16", "PEFT, by length, bf16", "our LoRA, bf16", 2.2),
        ("LoRA, int8 and fp32", "PEFT, defaults", "our LoRA, int8", None),
        ("LoRA, int8 and bf16", "PEFT, defaults", "our LoRA, int8 and bf16", 6.0),
        ("LoRA, int8 and bf16", "PEFT, by length, bf16", "our LoRA, int8 and bf16", 2.6),
        ("all linear layers, fp32", "PEFT, by length, all linear", "our LoRA, all linear", 2.0),
        ("all linear layers, int8 and bf16", "PEFT, by length, all linear", "our LoRA, all linear, int8 and bf16", 2.5),
        ("full fine-tuning, fp32", "Trainer, by length, full", "our full fine-tuning", None),
        ("what the kernels bring", "our LoRA, plain layers", "our LoRA", None),
        ("LoRA against full", "our full fine-tuning", "our LoRA", 1.4),
        ("all linear against full", "our full fine-tuning", "our LoRA, all linear", 1.25),
    ],
    "BERT-base": [
        ("LoRA, fp32", "PEFT, defaults", "our LoRA", 3.5),
        ("LoRA, fp32", "PEFT, by length", "our LoRA", 1.6),
        ("LoRA, bf16", "PEFT, by length, bf16", "our LoRA, bf16", 2.2),
        ("LoRA, int8 and bf16", "PEFT, by length, bf16", "our LoRA, int8 and bf16", 4.5),
        ("LoRA against full", "our full fine-tuning", "our LoRA", 1.4),
    ],
    # Of these each contestant takes up to 4 GB, and all of a size train in turn: more rows want more than 24 GB.
    "ModernBERT-base": [
        ("LoRA, fp32", "PEFT, defaults", "our LoRA", 2.5),
        ("LoRA, fp32", "PEFT, by length", "our LoRA", None),
        ("LoRA, bf16", "PEFT, by length, bf16", "our LoRA, bf16", None),
    ],
    "DeBERTa-v3-base": [
        ("LoRA, fp32", "PEFT, defaults", "our LoRA", 2.5),
        ("LoRA, fp32", "PEFT, by length", "our LoRA", 1.0),
        ("LoRA, bf16", "PEFT, by length, bf16", "our LoRA, bf16", 1.0),
    ],
}
MEMORY_AIM = 0.5


def sentence_lengths(count: int) -> np.ndarray:
    """Tokens of so many sentences (count,), the same in every process."""
    generator = np.random.default_rng(0)
    if os.environ.get("LORA_DATA_DIR"):
        from lora_core.models import resolve
        from trainers.data.tokenizer import load_tokenizer
        from trainers.data.tokens.reader import load_token_datasets
        from trainers.data.tokens.windows import encode_tokens

        train = load_token_datasets("bionlp2004")["train"]
        chosen = generator.permutation(len(train.words))[:count]
        windows = encode_tokens([train.words[i] for i in chosen], [train.tags[i] for i in chosen],
                                load_tokenizer(resolve("embedded")), max_length=512, pad_token_id=0)  # fmt: skip
        return windows.lengths
    return np.interp(generator.random(count), list(QUANTILES), list(QUANTILES.values())).round().astype(int)


def random_windows(lengths: np.ndarray) -> TokenWindows:
    """Sentences of these lengths, two of three tokens labelled."""
    generator = np.random.default_rng(1)
    offsets = np.concatenate([[0], lengths.cumsum()])
    total = int(offsets[-1])
    labels = np.where(generator.random(total) < 2 / 3, generator.integers(0, len(LABELS), total), IGNORED_LABEL)
    word_ids = np.where(labels == IGNORED_LABEL, -1, np.arange(total) - offsets[:-1].repeat(lengths))
    return TokenWindows(
        generator.integers(1000, 30000, total).astype(np.int32), labels, word_ids.astype(np.int32), offsets,
        np.arange(len(lengths), dtype=np.int32), pad_token_id=0,
    )  # fmt: skip


# What runs in a contestant's process


def our_training(size: Size, contestant: Contestant, folder: Path) -> Callable[[TokenWindows], float]:
    """A function that trains once over its data and returns the seconds."""
    config = config_from_dict({"model_type": size.family, **size.fields}).with_dropout(attention=0.0, hidden=None)
    model = build_model(config, "token-classification", LABELS)
    if contestant.targets is not None:
        whole = size.family == "modernbert" and contestant.targets == "qv"  # as PEFT, which knows no thirds
        targets = TARGETS[size.family]["qv"] if whole else contestant.targets
        lora_core.inject_lora(model, r=RANK, lora_dropout=0.1, target_modules=targets, bias="all")
    settings = TrainConfig(epochs=1, batch_size=BATCH, learning_rate=5e-4, metric="loss",
                         kernels="fused" if contestant.fused else "plain",
                         frozen="int8" if contestant.int8 else None,
                         precision="bf16" if contestant.bf16 else "fp32")  # fmt: skip
    validation = random_windows(np.array([8]))
    world = World(rank=0, size=1, device=CPU)

    def train(data: TokenWindows) -> float:
        return fit(model, TokenClassification(LABELS), data, validation, settings, world, folder).seconds

    return train


def their_training(size: Size, contestant: Contestant, folder: Path) -> Callable[[TokenWindows], float]:
    import peft
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    sizes: dict[str, Any] = {**size.fields, "num_labels": len(LABELS)}
    model: Any
    own = {} if size.family == "modernbert" else {"attention_probs_dropout_prob": contestant.attention_dropout}
    config = transformers.AutoConfig.for_model(size.family, **sizes, **own)
    model = transformers.AutoModelForTokenClassification.from_config(config)
    if contestant.targets is not None:
        adapter = peft.LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.1, bias="all", task_type="TOKEN_CLS",
                                  target_modules=TARGETS[size.family][contestant.targets])  # fmt: skip
        model = peft.get_peft_model(model, adapter)
    sampling: Any = "group_by_length" if contestant.grouped else "random"
    arguments = transformers.TrainingArguments(
        str(folder), num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=5e-4, use_cpu=True,
        bf16=contestant.bf16, train_sampling_strategy=sampling, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip

    def train(data: TokenWindows) -> float:
        trainer = transformers.Trainer(model, arguments, _Padded(), train_dataset=_Rows(data))
        trainer.remove_callback(transformers.PrinterCallback)
        return float(trainer.train().metrics["train_runtime"])

    return train


class _Rows(torch.utils.data.Dataset):
    """Sentences as Trainer takes them."""

    def __init__(self, data: TokenWindows) -> None:
        bounds = list(zip(data.offsets[:-1], data.offsets[1:], strict=True))
        self.rows = [{"input_ids": data.input_ids[a:b].tolist(), "labels": data.labels[a:b].tolist()}
                     for a, b in bounds]  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


class _Padded:
    """What DataCollatorForTokenClassification makes, without the tokenizer that it wants."""

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

        ids = padded("input_ids", -1)
        return {"input_ids": ids.clamp_min(0), "attention_mask": (ids >= 0).long(),
                "labels": padded("labels", IGNORED_LABEL)}  # fmt: skip


def serve(size_name: str, name: str) -> None:
    """Train once for every line of the standard input, and answer with the figures as a line of JSON."""
    size, contestant = SIZES[size_name], CONTESTANTS[name]
    data = random_windows(sentence_lengths(size.sentences))
    answers, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        training = our_training if contestant.ours else their_training
        training(Size({**size.fields, **TINY}, 2), contestant, Path(folder))(
            random_windows(np.full(2, 8))
        )  # brings lazy imports in
        train = training(size, contestant, Path(folder))
        reset_peak_memory(CPU)
        loaded = peak_memory_bytes(CPU)
        print("ready", file=answers, flush=True)
        for _ in sys.stdin:
            seconds = train(data)
            figures = {"seconds": seconds, "bytes": peak_memory_bytes(CPU) - loaded, "tokens": int(data.lengths.sum())}
            print(json.dumps(figures), file=answers, flush=True)


# What runs in pytest


class Process:
    """A contestant at work."""

    def __init__(self, size_name: str, name: str) -> None:
        command = [sys.executable, __file__, "--serve", size_name, name]
        paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "CUDA_VISIBLE_DEVICES": "",
            "TQDM_DISABLE": "1",
        }
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )  # fmt: skip
        self.name = name

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self.name} ended with status {self.process.wait()}"
        return line

    def run(self) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return json.loads(self.answer())

    def close(self) -> None:
        self.process.communicate()


def product_rate(seconds: float = 1.0) -> float:
    """The machine's best fp32 matrix product, in operations a second."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best


def useful_operations(size: Size) -> int:
    """For a token: forward pass and gradient of the inputs of the encoder's linear layers."""
    hidden, inner = size.fields["hidden_size"], size.fields["intermediate_size"]
    matrices = 3 if size.family == "modernbert" else 2  # the gate is one more
    return 2 * 2 * size.fields["num_hidden_layers"] * (4 * hidden**2 + matrices * hidden * inner)


def spread(values: list[float]) -> str:
    return f"{(max(values) - min(values)) / statistics.median(values):>7.0%}"


@pytest.mark.parametrize("size_name", SIZES)
def test_training(size_name, publish, benchmark):
    size, rows = SIZES[size_name], ROWS[size_name]
    names = [name for name in CONTESTANTS if any(name in row for row in rows)]
    processes = {name: Process(size_name, name) for name in names}
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    rates = []

    def one_round() -> None:
        rates.append(product_rate())
        for name, process in processes.items():
            figures[name].append(process.run())

    try:
        for process in processes.values():  # what is still loading would slow down who trains first
            process.answer()
        benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=0)
    finally:
        for process in processes.values():
            process.close()

    seconds = {name: [figure["seconds"] for figure in found] for name, found in figures.items()}
    rate = {name: statistics.median(figure["tokens"] / figure["seconds"] for figure in found)
            for name, found in figures.items()}  # fmt: skip
    peak = {name: max(figure["bytes"] for figure in found) / 1e6 for name, found in figures.items()}

    text = [f"{size_name}, tokens/s{'':<24}{'opponent':<40}{'theirs':>9}{'ours':>9}{'ratio':>8}{'spread':>7}{'aim':>7}"]
    for what, theirs, ours, aim in rows:
        ratios = [a / b for a, b in zip(seconds[theirs], seconds[ours], strict=True)]
        text.append(f"{what:<{len(size_name) + 34}}{theirs:<40}{rate[theirs]:>9,.0f}{rate[ours]:>9,.0f}"
                    f"{statistics.median(ratios):>8.2f}{spread(ratios)}{aim or '':>7}")  # fmt: skip
        benchmark.extra_info[f"{what}: {theirs}"] = statistics.median(ratios)

    text.append(f"\n{size_name}, peak MB above the loaded model")
    for what, theirs, ours, _ in rows:
        if not CONTESTANTS[theirs].ours:
            text.append(f"{what:<{len(size_name) + 34}}{theirs:<40}{peak[theirs]:>9,.0f}{peak[ours]:>9,.0f}"
                        f"{peak[ours] / peak[theirs]:>8.2f}{'':>7}{MEMORY_AIM:>7}")  # fmt: skip

    operations = useful_operations(size)
    text.append(f"\n{size_name}, share of the fp32 matrix product ({statistics.median(rates) / 1e9:.0f} GFLOP/s)")
    for name in names:
        shares = [figure["tokens"] * operations / figure["seconds"] / best
                  for figure, best in zip(figures[name], rates, strict=True)]  # fmt: skip
        if CONTESTANTS[name].targets is not None and not CONTESTANTS[name].bf16:
            aim = 0.75 if name == "our LoRA" else ""
            text.append(
                f"{'':<{len(size_name) + 34}}{name:<58}{statistics.median(shares):>8.2f}{spread(shares)}{aim:>7}"
            )
    publish(text)


def profile(name: str) -> None:
    """Print where some steps of one of our contestants spend their time."""
    size = SIZES["MiniLM-L6"]
    with tempfile.TemporaryDirectory() as folder:
        train = our_training(size, CONTESTANTS[name], Path(folder))
        data = random_windows(sentence_lengths(10 * BATCH))
        train(data)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            train(data)
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        profile(*sys.argv[1:])
