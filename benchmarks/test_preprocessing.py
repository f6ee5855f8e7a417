"""A file of tagged sentences to model inputs: here, and with `datasets.map`: `pytest benchmarks/test_preprocessing.py`.

Sentences are generated with JNLPBA's lengths (26 words, 1.4 pieces a word) and a vocabulary that grows with the text.
Every figure comes from a process of its own: seconds by the clock, and peak memory above what the process holds after
its imports. Both sides tokenise, align labels and store the result; both give the same ids and labels, which is
checked. A ratio above 1 means that we are ahead. LORA_BENCHMARK_SIZE=small tries the file on fewer sentences.

`datasets` first turns the file into its own format (`load_dataset`); the row "map alone" leaves that out for it, and
leaves nothing out for us. Ours is one Python thread; `num_proc=2` gives the opponent a second process.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.timeout(1200)]

SMALL = os.environ.get("LORA_BENCHMARK_SIZE") == "small"
SIZES = (1_000, 3_000, 10_000) if SMALL else (10_000, 100_000, 1_000_000)
MIDDLE = SIZES[1]
ROUNDS = 2 if SMALL else 3
MAX_LENGTH = 512
LABELS = ("O", "B-DNA", "I-DNA", "B-RNA", "I-RNA", "B-cell_line", "I-cell_line", "B-cell_type", "I-cell_type",
          "B-protein", "I-protein")  # fmt: skip
CHUNK = 10_000

Figures = dict[str, Any]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Holds a gigabyte while this file runs, and is removed at the end."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def corpora(folder) -> dict[int, Path]:
    """Files of generated sentences, by their number; a smaller one is the beginning of a larger one."""
    paths = {size: folder / f"{size}.json" for size in SIZES}
    for size, path in paths.items():
        with path.open("w") as file:
            file.writelines(f"{line}\n" for line in sentences(size))
    return paths


def sentences(count: int) -> Iterator[str]:
    """JSON lines of random words: the rank of a word follows a power law, as in real text."""
    words = [word for word in tokenizer().get_vocab() if word.isalpha()]
    for start in range(0, count, CHUNK):
        generator = np.random.default_rng(start)
        lengths = np.clip(generator.gamma(3.5, 7.6, CHUNK).astype(int), 1, 200)[: count - start]
        ranks = generator.zipf(1.3, lengths.sum()) % 5_000_000
        text = [words[rank] if rank < len(words) else f"{words[rank % len(words)]}-{rank // len(words)}"
                for rank in ranks.tolist()]  # fmt: skip
        tags = generator.choice(len(LABELS), len(text), p=[0.9, *[0.01] * 10]).tolist()
        end = 0
        for length in lengths.tolist():
            begin, end = end, end + length
            yield json.dumps({"tokens": text[begin:end], "tags": tags[begin:end]})


@pytest.fixture(scope="module")
def runs(corpora, folder) -> dict[str, list[Figures]]:
    """Rounds of the middle size, the two sides in turn."""
    found: dict[str, list[Figures]] = defaultdict(list)
    for number in range(ROUNDS):
        for side in ("datasets", "ours"):
            found[side].append(measure(side, corpora[MIDDLE], folder / f"{side} {number}"))
    found["two processes"].append(measure("datasets", corpora[MIDDLE], folder / "two", processes=2))
    return found


def test_seconds(benchmark, runs, corpora, table, folder):
    assert len({run["result"] for of_side in runs.values() for run in of_side}) == 1  # the same ids and labels

    table.append(f"{f'{MIDDLE:,} sentences, seconds':<36}{'ours':>20}{'datasets':>20}{'ratio':>8}")
    rows = [("first time, load_dataset and map", "ours", "datasets", "seconds"),
            ("first time, map alone", "ours", "datasets", "map"),
            ("first time, map alone, num_proc=2", "ours", "two processes", "map"),
            ("second time", "ours", "datasets", "again")]  # fmt: skip
    for what, ours, theirs, name in rows:
        mine = [run["again" if name == "again" else "seconds"] for run in runs[ours]]
        yours = [run[name] for run in runs[theirs]]
        benchmark.extra_info[what] = ratio = min(yours) / min(mine)
        table.append(f"{what:<36}{spread(mine):>20}{spread(yours):>20}{ratio:>8.1f}")
    benchmark.pedantic(measure, ("ours", corpora[MIDDLE], folder / "timed"), rounds=1)


def test_peak_memory(benchmark, runs, corpora, table, folder):
    table.append(f"\n{'peak memory above imports, MB':<36}" + "".join(f"{size:>13,}" for size in SIZES) + "  sentences")
    for what, side, sizes in (("ours, first time", "ours", SIZES), ("ours, second time", "ours", SIZES),
                              ("datasets, first time", "datasets", SIZES[:1])):  # fmt: skip
        peaks = {size: measure(side, corpora[size], folder / f"{side} {size}")["peak"] for size in sizes}
        if side == "datasets":
            peaks[MIDDLE] = max(run["peak"] for run in runs[side])
        benchmark.extra_info[what] = peaks
        table.append(f"{what:<36}" + "".join(f"{peaks[size] / 1e6:>13.0f}" for size in SIZES if size in peaks))
    benchmark.pedantic(measure, ("ours", corpora[SIZES[0]], folder / f"ours {SIZES[0]}"), rounds=1)


def test_batches_from_disk_are_as_fast_as_from_memory(benchmark, corpora, table, folder, monkeypatch):
    monkeypatch.setenv("LORA_CACHE_DIR", str(folder / "ours 0"))
    mapped, held = (windows(corpora[MIDDLE], tokenizer(), cache) for cache in (True, False))
    batches = np.random.default_rng(0).permutation(len(mapped))[: len(mapped) // 16 * 16].reshape(-1, 16)

    def collate(data: Any) -> float:
        start = time.perf_counter()
        for batch in batches:
            data.collate(batch)
        return (time.perf_counter() - start) / len(batches)

    times = [(collate(mapped), collate(held)) for _ in range(ROUNDS)]
    disk, memory = (min(column) for column in zip(*times, strict=True))
    benchmark.extra_info["memory over disk"] = memory / disk
    table.append(f"\nmicroseconds for a batch of 16: {disk * 1e6:.0f} from disk, {memory * 1e6:.0f} from memory")
    benchmark.pedantic(collate, (mapped,), rounds=1)


def spread(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def measure(side: str, corpus: Path, folder: Path, processes: int = 1) -> Figures:
    """Pre-process in a process of its own, then again; a folder that was used before holds the result already."""
    environment = {**os.environ, "LORA_CACHE_DIR": str(folder), "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, side, str(corpus), str(folder), str(processes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def tokenizer() -> Any:
    from lora_core.models.pretrained.source import resolve
    from trainers.data.tokenizer import load_tokenizer

    return load_tokenizer(resolve("embedded"))


def windows(corpus: Path, fast: Any, cache: bool) -> Any:
    from trainers.data.tokens.encode import load_windows
    from trainers.data.tokens.head import TaggedFile
    from trainers.data.tokens.reader import TokenFile

    file = TokenFile((TaggedFile(corpus, "", "train", "json"),), LABELS, LABELS, "error")
    return load_windows(file, fast, MAX_LENGTH, 0, cache=cache)


def ours(corpus: Path, folder: Path, processes: int) -> Figures:
    fast = tokenizer()
    with timed() as figures:
        windows(corpus, fast, cache=True)
    with timed() as second:
        data = windows(corpus, fast, cache=True)
    return {**figures, "again": second["seconds"], "result": digest(data.input_ids, data.labels)}


def with_datasets(corpus: Path, folder: Path, processes: int) -> Figures:
    """As the token classification example of transformers does it."""
    import datasets
    import transformers

    from lora_core.models.pretrained.source import resolve

    datasets.disable_progress_bars()
    fast = transformers.AutoTokenizer.from_pretrained(resolve("embedded"))

    def align(rows: dict[str, list]) -> Any:
        encoded = fast(rows["tokens"], truncation=True, max_length=MAX_LENGTH, is_split_into_words=True)
        labels = []
        for index, tags in enumerate(rows["tags"]):
            previous, row = None, []
            for word in encoded.word_ids(index):
                row.append(-100 if word is None or word == previous else tags[word])
                previous = word
            labels.append(row)
        encoded["labels"] = labels
        return encoded

    def encode() -> tuple[Figures, Any]:
        with timed() as figures:
            data = datasets.load_dataset("json", data_files=str(corpus), split="train", cache_dir=str(folder))
            loaded = time.perf_counter()
            data = data.map(align, batched=True, num_proc=processes if processes > 1 else None,
                            remove_columns=data.column_names)  # fmt: skip
            figures["map"] = time.perf_counter() - loaded
        return figures, data.data

    figures, _ = encode()
    second, table = encode()
    result = digest(*(table[name].combine_chunks().flatten() for name in ("input_ids", "labels")))
    return {**figures, "again": second["seconds"], "result": result}


@contextmanager
def timed() -> Iterator[Figures]:
    """Fills a dict with seconds and peak memory."""
    import torch

    from trainers.training.memory import peak_memory_bytes, reset_peak_memory

    device = torch.device("cpu")
    figures: Figures = {}
    reset_peak_memory(device)
    before, start = peak_memory_bytes(device), time.perf_counter()
    yield figures
    figures |= {"seconds": time.perf_counter() - start, "peak": peak_memory_bytes(device) - before}


def digest(*columns: Any) -> str:
    """The same for the same numbers in a row, however they are typed."""
    found = hashlib.sha256()
    for column in columns:
        found.update(np.asarray(column).astype("<i4").tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    run = {"ours": ours, "datasets": with_datasets}[sys.argv[1]]
    print(json.dumps(run(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
