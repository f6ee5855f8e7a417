"""Predict past one machine: a trained model as a stage of Ray Data, with a copy of it in every worker.

    pip install 'lora-core[ray]'
    python examples/predict_ray.py runs/ner abstracts.jsonl --output found.jsonl --workers 4
    python examples/predict_ray.py runs/ner/model.int8.onnx 'shards/*.parquet' --output found.jsonl --address auto

Input is JSON lines, parquet or CSV with a column of texts; every row gives one line of output, in order, with its other
columns and what the model's pipeline finds under "predicted". A worker that dies is started again and
its batch repeated. Without --address the workers are processes of this machine.
"""

import argparse
import glob
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import ray
from tqdm import tqdm

import trainers
from lora_core.files import replacing
from trainers.cli import exit_on_user_error

READERS = {".jsonl": "read_json", ".json": "read_json", ".parquet": "read_parquet", ".csv": "read_csv"}
FOUND = "found"
"""The column between Predictor and the file: JSON, for Ray's columns are of one type each."""


class Predictor:
    """The model in a worker; Ray calls it with batches of rows, as arrays by column."""

    def __init__(self, model: str, column: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.column = column
        self.pipeline = trainers.pipeline(model=model)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.column not in batch:
            raise ValueError(f"there is no column {self.column!r}, but {', '.join(batch)}: name it with --text-column.")
        found = self.pipeline([str(text) for text in batch[self.column]])
        return {**batch, FOUND: np.array([json.dumps(one, default=float) for one in found], dtype=object)}


def main() -> None:
    """Read, predict, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, model folder, hub id or ONNX file")
    parser.add_argument("files", nargs="+", help="JSON lines, parquet or CSV; patterns in quotes")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines to write")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--batch-size", type=int, default=256, help="rows that a worker takes at a time")
    parser.add_argument("--address", help="of a Ray cluster; by default one on this machine is started")
    options = parser.parse_args()

    paths = [path for pattern in options.files for path in sorted(glob.glob(pattern)) or [pattern]]
    suffixes = {Path(path).suffix for path in paths}
    if len(suffixes) != 1 or not suffixes <= READERS.keys():
        raise ValueError(f"the files end in {', '.join(sorted(suffixes))}: expected one of {', '.join(READERS)} alone.")
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} does not exist.")

    model = str(Path(options.model).resolve()) if Path(options.model).exists() else options.model
    cores = options.workers * options.threads + 1  # one reads: without it the workers would wait for ever
    local = {} if options.address else {"num_cpus": cores, "include_dashboard": False}
    ray.init(address=options.address, log_to_driver=False, logging_level=logging.WARNING, **local)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False  # ours counts rows
    rows = getattr(ray.data, READERS[suffixes.pop()])([str(Path(path).resolve()) for path in paths])
    total = rows.count()
    predicted = rows.map_batches(
        Predictor,
        fn_constructor_args=(model, options.text_column, options.threads),
        batch_size=options.batch_size,
        num_cpus=options.threads,
        compute=ray.data.ActorPoolStrategy(size=options.workers),
    )
    with replacing(options.output) as path, path.open("w", encoding="utf-8") as output:
        for row in tqdm(predicted.iter_rows(), total=total, unit="row"):
            found = json.loads(row.pop(FOUND))
            output.write(json.dumps({**row, "predicted": found}, ensure_ascii=False, default=_plain) + "\n")
    print(f"{total} rows in {options.output}")


def _plain(value: Any) -> Any:
    """Arrays and numbers of numpy, as JSON knows them."""
    return value.tolist()


if __name__ == "__main__":
    exit_on_user_error(main)
