"""Preparing FiNER-139 against the `datasets` library: `pytest benchmarks/test_finer_prepare.py`.

The files have the sizes and the schema of FiNER-139 (JSON lines; 45 words a sentence, one sentence in six with
entities of 139 types), but made-up words. Each side runs in a process of its own, on one thread, and does the same:
read, keep the four most frequent types, drop sentences without them, write JSON lines. Ours also counts, draws a
picture of the whole, and keeps equal sentences together. A tenth of the files shows what memory grows by with each
sentence. LORA_BENCHMARK_SIZE=small takes a hundredth of it all.
"""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]

SCALE = 100 if os.environ.get("LORA_BENCHMARK_SIZE") == "small" else 1
SENTENCES = {"train": 900_384 // SCALE, "validation": 112_494 // SCALE, "test": 108_378 // SCALE}
TYPES = 139
BOUND = 600e6
"""Bytes that our process may take at most, interpreter and libraries (torch, matplotlib) included."""
GROWTH = 200
"""Bytes that it may take for each further sentence, of about 750 bytes in its file."""

MEASURE = """
import json, os, sys, time
{setup}
def status(key):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(key))) * 1024
before, start, cpu = status("VmRSS"), time.perf_counter(), time.process_time()
{work}
print(json.dumps({{"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "before": before,
                  "peak": status("VmHWM")}}))
"""

OURS = MEASURE.format(
    setup="from trainers.corpus.prepare import Preparation, prepare",
    work="prepare(sys.argv[1], sys.argv[2], Preparation(top=4))",
)
THEIRS = MEASURE.format(
    setup="import collections, datasets; datasets.disable_caching()",
    work="""
corpus = datasets.load_dataset("json", data_files={split: f"{sys.argv[1]}/{split}.jsonl"
                                                   for split in ("train", "validation", "test")})
counts = collections.Counter()
for split in corpus.values():
    for row in split:
        counts.update(tag[2:] for tag in row["ner_tags"] if tag[:2] == "B-")
names = ["O", *("B-" + name for name, _ in counts.most_common(4))]
ids = {name: index for index, name in enumerate(names)}
for name, split in corpus.items():
    split = split.map(lambda row: {"tags": [ids.get(tag, 0) for tag in row["ner_tags"]]}, remove_columns=["ner_tags"])
    split = split.filter(lambda row: any(row["tags"])).select_columns(["tokens", "tags"])
    split.to_json(f"{sys.argv[2]}/{name}.json")
""",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the corpus's sizes."""
    folder = tmp_path_factory.mktemp("finer")
    generator = np.random.default_rng(0)
    words = np.array([json.dumps(word) for word in made_up_words(30_000, generator)])
    word_shares = 1 / np.arange(3, len(words) + 3)
    type_shares = 1 / (np.arange(TYPES) + 4)
    for split, sentences in SENTENCES.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(sentences):
                if number % 10_000 == 0:
                    pool = words[generator.choice(len(words), 400_000, p=word_shares / word_shares.sum())].tolist()
                    kinds = generator.choice(TYPES, 10_000, p=type_shares / type_shares.sum()).tolist()
                    lengths = np.clip(generator.gamma(4.0, 11.3, 10_000), 3, 300).astype(int).tolist()
                    starts = generator.integers(0, 399_000, 10_000).tolist()
                row, length = number % 10_000, lengths[number % 10_000]
                tags = ['"O"'] * length
                if row % 6 == 0:
                    tags[length // 2] = tags[length // 3] = f'"B-Type{kinds[row]:03}"'
                tokens = pool[starts[row] : starts[row] + length]
                file.write(f'{{"id": {number}, "tokens": [{", ".join(tokens)}], "ner_tags": [{", ".join(tags)}]}}\n')
    return folder


def tenth(corpus: Path, folder: Path) -> Path:
    """A copy with the first tenth of every file."""
    folder.mkdir()
    for split, sentences in SENTENCES.items():
        with (corpus / f"{split}.jsonl").open("rb") as whole, (folder / f"{split}.jsonl").open("wb") as part:
            part.writelines(islice(whole, sentences // 10))
    return folder


def made_up_words(count: int, generator: np.random.Generator) -> list[str]:
    """Words of two to twelve letters, and numbers."""
    letters = generator.integers(97, 123, (count, 12)).astype(np.uint8)
    sizes = generator.integers(2, 13, count)
    return [f"{index / 8:,.2f}" if index % 8 == 0 else bytes(row[:size]).decode()
            for index, (row, size) in enumerate(zip(letters, sizes, strict=True))]  # fmt: skip


def measured(code: str, corpus: Path, output: Path) -> dict[str, float]:
    """What a process of its own says of its work."""
    output.mkdir()
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, **threads, "PYTHONPATH": root, "HF_HOME": str(output / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(corpus), str(output)], env=environment, check=True,
                          capture_output=True, text=True)  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_preparation(corpus: Path, tmp_path: Path, benchmark: Any, table: list[str]) -> None:
    sentences, size = sum(SENTENCES.values()), sum(path.stat().st_size for path in corpus.iterdir())
    ours = benchmark.pedantic(measured, args=(OURS, corpus, tmp_path / "ours"), rounds=1)
    theirs = measured(THEIRS, corpus, tmp_path / "theirs")
    less = measured(OURS, tenth(corpus, tmp_path / "tenth"), tmp_path / "less")
    written = [sum(1 for _ in (tmp_path / side / name).open("rb"))
               for side, name in (("ours", "train.json"), ("theirs", "train.json"))]  # fmt: skip
    assert written[0] == written[1]
    growth = (ours["peak"] - less["peak"]) / (0.9 * sentences)
    assert ours["peak"] < BOUND
    assert SCALE > 1 or growth < GROWTH
    for name, figures in (("ours", ours), ("datasets", theirs)):
        seconds = figures["seconds"]
        table.append(
            f"{name:<9} {sentences / seconds:>9,.0f} sentences/s, {size / seconds / 1e6:6.1f} MB/s, {seconds:6.1f} s "
            f"({figures['cpu']:.1f} s CPU), peak {figures['peak'] / 1e6:,.0f} MB, "
            f"of which before the work {figures['before'] / 1e6:,.0f} MB"
        )
    table.append(
        f"{sentences:,} sentences, {size / 1e6:,.0f} MB; time {theirs['seconds'] / ours['seconds']:.2f}x, "
        f"CPU time {theirs['cpu'] / ours['cpu']:.2f}x, memory {ours['peak'] / theirs['peak']:.2f}x of datasets; "
        f"ours on a tenth: peak {less['peak'] / 1e6:,.0f} MB, so {growth:.0f} bytes a sentence"
    )
    benchmark.extra_info["ratio to datasets"] = theirs["seconds"] / ours["seconds"]
