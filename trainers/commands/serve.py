"""Verbs that put a model to work: predict, export, bench, serve."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from trainers.service.settings import Chosen, ServiceSettings


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
    backend: Chosen | None = None,
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
        backend: what computes. Of a run, onnx and openvino take its ONNX file, int8 before fp32 (lora-core export);
            openvino needs the extra of that name. auto: what lora-core bench found to be the fastest on this machine.
            By default ONNX Runtime for an ONNX file, torch for all else.
    """
    from trainers.data.reading import Reading
    from trainers.predict.files import predict_files

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
        backend=backend,
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
    points_lost: float = 0.5,
    output_dir: Path | None = None,
) -> None:
    """Compare a finished run in PyTorch and as ONNX: size, load time, memory, latency, throughput, score.

    What is installed is tried: PyTorch in fp32 and bf16, ONNX Runtime and OpenVINO in fp32 and int8. The fastest at
    equal quality is named, and kept in the run's folder (backends.json) for --backend auto of predict and serve.

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
        points_lost: most points of the metric, against PyTorch's, with which a variant is of equal quality.
        output_dir: where bench.json and bench.png go; by default the run's folder.
    """
    from trainers.serve.bench import bench_run, bench_table, write_bench

    comparison = bench_run(
        run, split=split, limit=limit, timed=timed, rounds=rounds, threads=threads, points_lost=points_lost
    )
    print(bench_table(comparison))
    for path in write_bench(comparison, output_dir or run):
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
