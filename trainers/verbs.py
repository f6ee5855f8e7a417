"""What each verb of the command line does: its arguments, their help, and the call.

Imports stand inside the verbs, so that --help and a mistyped flag answer at once.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trainers.config import RunConfig
from trainers.processes.failure import is_main
from trainers.service.settings import ServiceSettings


def train(config: RunConfig) -> None:
    """Train and test a model."""
    from trainers.experiment import dry_run, run

    if not config.data:
        raise ValueError("--data is missing: a folder, a name in $LORA_DATA_DIR, or a hub id such as tner/bionlp2004.")
    if config.dry_run:
        dry_run(config)
        return
    finished = run(config)
    if is_main():
        print(finished.summary)


def compare(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional], output_dir: Path = Path("runs/comparison")
) -> None:
    """Compare finished runs: a table here, and comparison.md, .json and .png in a folder.

    The settings in which the runs differ are named, and runs that were scored on other data are refused. Runs that
    differ in nothing but their seed are also taken together.

        lora-core compare runs/full runs/lora --output-dir runs/comparison

    Args:
        runs: run folders; differences are taken to the first.
        output_dir: where the files go.
    """
    from trainers.results.compare import compare_runs, comparison_text, write_comparison
    from trainers.run_folder import read_run

    comparison = compare_runs([read_run(folder) for folder in runs])
    print(f"{comparison_text(comparison)}\n")
    for path in write_comparison(comparison, output_dir):
        print(path)


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    output_dir: Path | None = None,
    errors: int = 20,
    examples: int = 2000,
    maps: bool = True,
) -> None:
    """Write one page about a finished run, and beside it every picture as PNG and every table as CSV.

    Curves, scores with intervals, confusions, calibration, the worst errors and what led astray, suspected label
    errors, the data, ONNX against PyTorch, the environment. Further runs are compared with the first. All errors are
    written too, as CSV and as JSON lines that training reads.

        lora-core report runs/lora
        lora-core report runs/lora runs/full --output-dir runs/report

    Args:
        runs: run folders; the page is about the first.
        output_dir: where report.html and report/ go; by default the first run's folder.
        errors: most examples to show that the model got wrong.
        examples: most examples to run through the model, for how sure it is and for its vectors.
        maps: draw the vectors by PCA and t-SNE.
    """
    from trainers.report.evidence import Options
    from trainers.report.page import write_report

    if not runs:
        raise ValueError("report needs a run: name the folder that training wrote.")
    print(write_report(runs, Options(errors, examples, maps), output_dir))


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    data: str = "",
    split: str = "test",
    format: Literal["auto", "table", "json"] = "auto",
) -> None:
    """Score a finished run's model.

        lora-core evaluate runs/lora --split validation

    Args:
        run: its folder.
        data: other data with the same label names; by default the run's own.
        split: train, validation or test.
        format: table: scores in percent by entity type or label; json: all of them with all digits, from 0 to 1; auto:
            a table on a terminal, and JSON for files and programs.
    """
    from trainers.finished import evaluate_run
    from trainers.monitor.rows import scores_table

    scores = evaluate_run(run, data, split)
    if not is_main():
        return
    if format == "json" or (format == "auto" and not sys.stdout.isatty()):
        print(json.dumps(scores, indent=2))
    else:
        print(f"Scores of {run} on the {split} split{f' of {data}' if data else ''}\n{scores_table(scores)}")


def check_data(
    data: Annotated[str, tyro.conf.Positional],
    output_dir: Path = Path("runs/check-data"),
    task: Literal["token-classification", "text-classification", "image-classification"] = "token-classification",
    label_file: str = "",
    on_bad_row: Literal["error", "skip"] = "error",
    columns: str = "",
    text_column: str = "",
    pair_column: str = "",
    label_column: str = "",
    delimiter: str = "",
    encoding: str = "",
    problem_type: str = "auto",
    model: str = "",
) -> None:
    """Count what tagged sentences, labelled texts or pictures hold, and warn of what may spoil an experiment.

    A table here, and statistics.md, .json and .png in a folder.

        lora-core check-data data/finer-139 --on-bad-row skip
        lora-core check-data data/reviews.csv --task text-classification --model roberta-base
        lora-core check-data data/xrays --task image-classification --on-bad-row skip

    Args:
        data: a file or folder of JSON lines, parquet, CoNLL or texts with spans; for images .npz, folders of pictures
            or tables of them; a name in $LORA_DATA_DIR; or a hub id.
        output_dir: where the files go.
        task: what the data is for.
        label_file: words: names of the tag ids, where the data does not give them.
        on_bad_row: stop at a damaged row or picture and name it, or count and report it.
        columns: words: the columns of the word and of the tag, as "2,4" (from 1) or by name; by default what the
            content says.
        text_column: texts: the column of the text, or of its parts ("title,body"), or a number from 1 as for columns;
            by default names that are usual.
        pair_column: texts: the column of the second text of a pair; by default names that are usual.
        label_column: texts, images: the column of the label, or its number from 1; by default names that are usual.
        delimiter: what stands between columns, such as "," or "tab"; by default what the content says.
        encoding: of text files; by default what the content says.
        problem_type: texts: what the labels are, as for train.
        model: texts: the model whose limit the lengths are compared with; by default none.
    """
    from trainers.data.reading import Reading
    from trainers.data.rows import BadRows

    bad_rows = BadRows(on_bad_row)
    reading = Reading(columns, text_column, pair_column, label_column, delimiter, encoding, on_bad_row)
    if task == "text-classification":
        from trainers.corpus.texts import count_texts, texts_table, write_texts
        from trainers.data.texts.reader import load_text_datasets

        datasets = load_text_datasets(data, on_bad_row=on_bad_row, reading=reading, problem_type=problem_type)
        texts = count_texts(datasets, model)
        table, write = texts_table(texts), partial(write_texts, texts)
    elif task == "image-classification":
        from trainers.corpus.pictures import count_pictures, pictures_table, write_pictures
        from trainers.data.images.reader import read_image_splits

        pictures = count_pictures(read_image_splits(data, bad_rows, reading), bad_rows)
        table, write = pictures_table(pictures), partial(write_pictures, pictures)
    else:
        from trainers.corpus.statistics import statistics, statistics_table, write_statistics
        from trainers.data.images.files import refuse_pictures
        from trainers.data.tokens.files import find_tagged_source
        from trainers.data.tokens.scan import scan

        refuse_pictures(data)
        counted = statistics(scan(find_tagged_source(data, label_file, reading), bad_rows))
        table, write = statistics_table(counted), partial(write_statistics, counted)
    bad_rows.report()
    print(table)
    for path in write(output_dir):
        print(path)


def predict(
    model: Annotated[str, tyro.conf.Positional],
    files: Annotated[tuple[str, ...], tyro.conf.Positional] = ("-",),
    output: Path | None = None,
    format: Literal["jsonl", "text"] = "jsonl",
    input_format: Literal["auto", "jsonl", "text", "table", "conll"] = "auto",
    columns: str = "",
    text_column: str = "",
    pair_column: str = "",
    delimiter: str = "",
    encoding: str = "",
    on_bad_row: Literal["mark", "error", "skip"] = "mark",
    task: Literal["token-classification", "text-classification", "image-classification"] | None = None,
    aggregation_strategy: Literal["first", "average", "max"] | None = None,
    strict: bool = False,
    top_k: int | None = None,
    threshold: float | None = None,
    max_tokens: int | None = None,
    device: str | None = None,
) -> None:
    """Predict from files: entities of texts, labels of texts, or labels of images.

    Every input gives one output line, in order. Input is JSON lines {"text": "..."} or {"tokens": [...]}, whose other
    fields are kept; plain text, a text a line; tables (CSV, TSV, parquet, Excel) with a column of texts; exports of
    annotation tools; for entities also sentences with a word a line (CoNLL). For images it is {"image": "PATH"}, a path
    a line, the images themselves, a folder or a table of them. A pattern in quotes ("scans/*.png") names what fits it.
    Columns, delimiter and encoding that training was told, or found, are known: files of that form need no flags.

        lora-core predict runs/ner abstracts.jsonl --output found.jsonl
        echo "IL-2 gene expression requires NF-kappa B." | lora-core predict runs/ner/model.int8.onnx --format text
        lora-core predict runs/cells scans --top-k 3

    Args:
        model: run folder, or its adapter/ or best/; model folder in transformers' layout; hub id; ONNX file, or a
            folder of exported files (int8 comes first).
        files: input files, patterns, and folders of images; - is standard input.
        output: file to write, gzipped if its name ends in .gz; by default standard output.
        format: jsonl adds "entities" or "labels" to the input's fields, in place of one of that name; text is for
            reading.
        input_format: auto goes by the file's name, then by its content; standard input goes by its first line.
        columns: words: the column of the word, as "2" (from 1) or by name; by default as in training, or what the
            content says.
        text_column: the column or key of the text, or of its parts ("title,body"); by default that of training, or
            names that are usual.
        pair_column: the column or key of the second text of a pair; by default as for text_column.
        delimiter: tables: what stands between columns, such as "," or "tab"; by default as in training, or what the
            content says.
        encoding: of the input, such as utf-8 or cp1252; by default what the content says, or as in training.
        on_bad_row: what to do with an input that cannot be used: mark puts {"error": ...} in its place, skip leaves it
            out (both count them at the end), error stops there.
        task: what the model does, where its folder does not tell.
        aggregation_strategy: entities: which pieces of a word decide its label (first).
        strict: entities: only B- opens an entity, as IOB2 has it.
        top_k: classification: labels to give for each input (1; of a multi-label model those above their thresholds).
        threshold: multi-label models: give the labels with a score above it (what training chose for each, or 0.5).
        max_tokens: most positions of a batch, padding included; 1 runs each input alone, so that with an int8 file of
            dynamic scales, too, its result does not depend on its neighbours.
        device: such as cpu or cuda.
    """
    from trainers.data.reading import Reading
    from trainers.serve.predict_files import predict_files

    options = {
        "aggregation_strategy": aggregation_strategy,
        "strict": strict or None,
        "top_k": top_k,
        "threshold": threshold,
    }
    given = {name: value for name, value in options.items() if value is not None}
    predict_files(
        model,
        files,
        output,
        format=format,
        input_format=input_format,
        reading=Reading(columns, text_column, pair_column, delimiter=delimiter, encoding=encoding),
        on_bad_row=on_bad_row,
        task=task,
        max_tokens=max_tokens,
        device=device,
        **given,
    )


def export(
    run: Annotated[Path, tyro.conf.Positional],
    quantize: bool = True,
    examples: int = 2000,
    points_lost: float = 0.5,
    activations: Literal["auto", "static", "dynamic"] = "auto",
) -> None:
    """Write a finished run as model.onnx and model.int8.onnx, which serve by themselves.

    Each file is checked against the run's model, and deleted if it does not give its results: logits within 1e-4
    for fp32, the metric on validation data within half a point (0.005) for int8. Then the exit status is 2.

        lora-core export runs/ner
        lora-core predict runs/ner/model.int8.onnx abstracts.txt

    Args:
        run: its folder, where the files go.
        quantize: write the int8 file too.
        examples: most validation examples to check int8 on.
        points_lost: most points that int8 may lose there; of few examples a single one is worth more than the default.
        activations: how int8 scales them. static: by 300 training inputs, so that no result depends on its batch;
            dynamic: as they come; auto: static, or dynamic where only that keeps the metric.
    """
    from trainers.serve.export import export_run, export_table

    files = export_run(run, quantize=quantize, examples=examples, points_lost=points_lost, activations=activations)
    print(export_table(files))


def bench(
    run: Annotated[Path, tyro.conf.Positional],
    split: str = "test",
    limit: int | None = None,
    timed: int = 500,
    rounds: int = 3,
    threads: int | None = None,
    output_dir: Path | None = None,
) -> None:
    """Compare a finished run in PyTorch and as ONNX: size, load time, memory, latency, throughput, score.

    Files that are missing are exported first. Each model is measured in a process of its own. Of the first 500
    examples it is counted how many have the predictions of PyTorch.

        lora-core bench runs/ner --limit 1000 --threads 4

    Args:
        run: its folder.
        split: the data to score and to time on.
        limit: score on the first so many examples; by default on all.
        timed: time the first so many examples.
        rounds: passes over them, of which the fastest counts.
        threads: of each process.
        output_dir: where bench.json and bench.png go; by default the run's folder.
    """
    from trainers.serve.bench import bench_run, bench_table, write_bench

    comparison = bench_run(run, split=split, limit=limit, timed=timed, rounds=rounds, threads=threads)
    print(bench_table(comparison))
    for path in write_bench(comparison, output_dir or run):
        print(path)


def convert(source: Annotated[str, tyro.conf.Positional], output_dir: Path) -> None:
    """Write a published checkpoint as model.safetensors and tokenizer.json.

    Training reads the older forms too (pytorch_model.bin, spm.model); other tools may not.

        lora-core convert microsoft/deberta-v3-base --output-dir models/deberta-v3-base

    Args:
        source: a model's folder, or a hub id.
        output_dir: a new folder.
    """
    from trainers.convert import convert as write

    for path in write(source, output_dir):
        print(path)


def serve(settings: tyro.conf.OmitArgPrefixes[ServiceSettings]) -> None:
    """Serve runs and exported models over HTTP, with a page to try them; needs the extra serve.

        lora-core serve runs/ner/model.int8.onnx
        lora-core serve ner=runs/ner cells=runs/cells --port 8080 --workers 4

    Args:
        settings: what is served, where, and within which limits.
    """
    from trainers.service.server import serve as run_service

    run_service(settings)


VERBS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "report": report,
    "check-data": check_data,
    "predict": predict,
    "export": export,
    "bench": bench,
    "convert": convert,
    "serve": serve,
}
