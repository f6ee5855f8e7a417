"""Financial entities (FiNER-139) from raw data to an int8 ONNX model on a CPU, with and without LoRA.

    torchrun examples/ner_finer.py                                                # the sample, no download
    torchrun examples/ner_finer.py --config examples/ner_finer_distilbert.toml    # FiNER-139 and DistilBERT
    torchrun --nproc-per-node 4 examples/ner_finer.py --config examples/ner_finer_distilbert.toml

The steps: statistics of the corpus; choose entity types, drop, split; train `full` (every parameter) and `lora`;
compare; confusion matrices; export the LoRA run to ONNX, fp32 and int8; measure that; read raw text. All tables and
pictures go to the output folder, the prepared data to its subfolder `data`. Run it again and it continues where it was.

Without flags it trains the embedded MiniLM-L6 on 536 sentences written for this project: about 5 minutes on 2 CPU
cores; expect a test F1 of about 0.8 to 0.88, in full and with LoRA. The test split has 54 sentences with 55 entities,
so one entity more or less moves the score by about two points, and it says little about real data.

Flags are those of `lora-core train --help` and apply to both runs, and those below.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from trainers.cli import exit_on_user_error, parse_run
from trainers.config import RunConfig
from trainers.corpus.prepare import Preparation, prepare
from trainers.data.reading import Reading
from trainers.experiment import run
from trainers.processes.distributed import distributed
from trainers.results.compare import compare_runs, comparison_table, write_comparison
from trainers.results.confusion import write_confusion
from trainers.run_folder import RunFolder
from trainers.serve import pipeline
from trainers.serve.bench import bench_run, bench_table, write_bench
from trainers.serve.export import POINTS_LOST, export_run, export_table

# The sample's validation split has 53 entities. int8 reads one or two sentences in a hundred otherwise than fp32; when
# three entities there are among them, that is 5 points. This limit catches a broken file, no more.
SAMPLE_POINTS_LOST = 10.0
SAMPLE = str(Path(__file__).resolve().parent / "data" / "financial" / "sentences.jsonl")
SENTENCES = [
    "In May 2021, Alder Point Holdings issued $400 million of 4.25% senior notes due 2029 at 99.1% of par.",
    "The revolver allows us to borrow up to $150.0 million at LIBOR plus 1.75%, and $22.4 million was outstanding.",
]


@dataclass(frozen=True)
class FinerConfig(RunConfig):
    """Prepare FiNER-139, train with and without LoRA, compare, export to ONNX and measure."""

    full_learning_rate: float = 2e-5
    """Peak learning rate of the run without LoRA."""
    types: tuple[str, ...] = ()
    """Entity types to keep; empty: those that `top` says."""
    top: int | None = 4
    """Keep so many of the most frequent entity types; None: all."""
    keep_empty: float = 0.0
    """Share of the sentences without entities of the kept types that stays."""
    label_file: str = ""
    """Names of the tag ids in order, where the data does not give them."""
    resplit: bool = False
    """Merge the corpus's own splits and draw new ones, 80/10/10. A corpus of one file is always split."""
    oversample: float = 0.0
    """Repeat training sentences, each up to ten times, until every type has this share of the most frequent type's
    entities."""
    points_lost: float | None = None
    """Most points of F1 that the int8 file may lose on validation data; None: 0.5, on the sample 10."""


SAMPLE_RECIPE = FinerConfig(data=SAMPLE, output_dir=Path("runs/ner_finer"), resume="auto", keep_empty=1.0, epochs=12,
                            batch_size=16, learning_rate=2e-3, full_learning_rate=2e-4, warmup=0.1,
                            target_modules=("all-linear",), bias="all")  # fmt: skip


def main() -> None:
    """Prepare, train twice, compare, export, measure, predict."""
    config = parse_run(sys.argv[1:], SAMPLE_RECIPE, prog="ner_finer.py")
    folder = config.output_dir
    preparation = Preparation(types=config.types, top=None if config.types else config.top,
                              keep_empty=config.keep_empty, resplit=config.resplit, oversample=config.oversample,
                              seed=config.seed)  # fmt: skip
    with distributed() as world:
        if world.is_main and config.data == SAMPLE:
            print("This is the sample: sentences written for this project, to see it work. The real experiment:\n"
                  "  torchrun examples/ner_finer.py --config examples/ner_finer_distilbert.toml\n")  # fmt: skip
        data = world.from_main(lambda: prepare(config.data, folder / "data", preparation, label_file=config.label_file,
                                               on_bad_row=config.on_bad_row, reading=Reading.of(config)))  # fmt: skip
        if world.is_main:
            print((data / "statistics.md").read_text(encoding="utf-8"))
        settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(RunConfig)}
        base = RunConfig(**{**settings, "data": str(data), "columns": "", "delimiter": "", "encoding": ""})
        runs = [run(dataclasses.replace(base, method=method, learning_rate=rate, output_dir=folder / method))
                for method, rate in (("full", config.full_learning_rate), ("lora", config.learning_rate))]  # fmt: skip
        main_process = world.is_main
    if not main_process:
        return
    comparison = compare_runs(runs)
    print(comparison_table(comparison))
    written = [*write_comparison(comparison, folder), *write_confusion(runs, folder)]
    points_lost = SAMPLE_POINTS_LOST if config.data == SAMPLE else POINTS_LOST
    if config.points_lost is not None:
        points_lost = config.points_lost
    print(export_table(export_run(folder / "lora", points_lost=points_lost)))
    measured = bench_run(folder / "lora")
    print(bench_table(measured))
    written += write_bench(measured, folder)
    ner = pipeline("ner", model=RunFolder(folder / "lora").int8_onnx)
    for sentence, entities in zip(SENTENCES, ner(SENTENCES), strict=True):
        print(sentence, *map(json.dumps, entities), sep="\n  ")
    print("\n".join(f"wrote {path}" for path in written))


if __name__ == "__main__":
    exit_on_user_error(main)
