"""How the run is served, in PyTorch and as ONNX; where it was trained and with what; and all its settings."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import IO, Any

from lora_core.export import read_metadata
from trainers.config import RunConfig
from trainers.report.evidence import Evidence
from trainers.report.section import Picture, Section, Table
from trainers.serve.bench import Comparison, plot_bench, read_bench
from trainers.serve.export import file_size
from trainers.show import duration

SERVING = "PyTorch and ONNX"
ENVIRONMENT = "Environment"
SETTINGS = "Settings"
PACKAGES = ("lora-core", "torch", "numpy", "tokenizers", "scikit-learn", "onnxruntime", "matplotlib")


def serving_section(evidence: Evidence) -> Section:
    """What `lora-core export` and `lora-core bench` have left in the run's folder."""
    folder = evidence.run.run.folder
    rows = _exported(evidence)
    blocks: list[Table | Picture] = []
    if rows:
        blocks.append(Table("serving-files", ("file", "MB", "compared with the run's model"), rows, ("", ",.1f")))
    path = folder / "bench.json"
    if path.is_file():
        comparison = read_bench(path)
        blocks += _measured(comparison, evidence.noun)
    if not blocks:
        return Section(
            "serving",
            SERVING,
            missing="Nothing is exported yet: lora-core export RUN writes ONNX files that "
            "are checked against the run, lora-core bench RUN also measures them.",
        )
    note = "" if path.is_file() else "lora-core bench RUN measures latency, throughput and memory of these files."
    return Section("serving", SERVING, note, blocks)


def environment_section(evidence: Evidence) -> Section:
    """The machine and the libraries of the run, and those of this page."""
    result = evidence.run.run.result
    rate = "images a second" if evidence.is_images else "tokens a second"
    trained = [
        ("processes and device", f"{result['processes']} × {result['device']}"),
        ("torch", result["torch"]),
        ("epochs, of which the best", f"{result['epochs']}, {result['best_epoch']}"),
        ("steps", f"{result['step']:,}"),
        ("training", duration(result["seconds"])),
        (rate, f"{result['tokens_per_second']:,.0f}"),
        ("peak memory", f"{result['peak_memory_bytes'] / 1e9:.2f} GB"),
        (
            "trained parameters",
            f"{result['trainable']:,} of {result['total']:,} ({result['trainable'] / result['total']:.2%})",
        ),
    ]
    here = [("Python", platform.python_version()), ("system", platform.platform()), *_versions()]
    return Section(
        "environment",
        ENVIRONMENT,
        blocks=(
            Table("environment-run", ("of the run", ""), trained),
            Table("environment-report", ("of this page", ""), here),
        ),
    )


def settings_section(evidence: Evidence) -> Section:
    """Every setting; the page shows those that are not the default."""
    default = RunConfig().to_dict()
    values = evidence.run.config.to_dict()
    rows = [(name, str(value), "" if value == default[name] else "chosen") for name, value in values.items()]
    chosen = sum(bool(row[2]) for row in rows)
    table = Table("settings", ("setting", "value", ""), sorted(rows, key=_chosen_first), most=max(1, chosen))
    return Section("settings", SETTINGS, "Those that are not the default; the file has all.", (table,))


def _chosen_first(row: tuple[str, str, str]) -> bool:
    return not row[2]


def _exported(evidence: Evidence) -> list[tuple[Any, ...]]:
    rows = []
    for path in (evidence.run.files.onnx, evidence.run.files.int8_onnx):
        if not path.is_file():
            continue
        try:
            parity = json.loads(read_metadata(path).get("parity", "{}"))
        except ValueError as error:
            rows.append((path.name, file_size(path) / 1e6, f"damaged: {error}"))
            continue
        if "logits_within" in parity:
            said = f"logits within {parity['logits_within']:.1e}"
        elif "points_lost" in parity:
            said = f"{parity['metric']} {-parity['points_lost']:+.2f} points on {parity['examples']:,} examples"
        else:
            said = "not checked"
        rows.append((path.name, file_size(path) / 1e6, said))
    return rows


def _measured(comparison: Comparison, noun: str) -> list[Table | Picture]:
    metric = comparison.metric
    first = comparison.variants[0].examples_per_second_unsorted
    rows = [
        (
            f"{one.name}, {one.device}",
            one.size_bytes / 1e6,
            one.memory_bytes / 1e6,
            one.latency_p50_ms,
            one.latency_p95_ms,
            one.examples_per_second_sorted,
            one.examples_per_second_sorted / first,
            one.scores[metric],
            one.identical,
        )
        for one in comparison.variants
    ]
    header = (
        "",
        "MB",
        "memory, MB",
        "p50, ms",
        "p95, ms",
        f"{noun}/s",
        "factor",
        metric,
        f"same of {comparison.compared:,}",
    )
    table = Table(
        "serving-bench",
        header,
        rows,
        ("", ",.1f", ",.0f", ".2f", ".2f", ",.1f", ".2f", ".4f", ",d"),
        caption=f"On the {comparison.split} split, threads: {comparison.threads}; the factor is against the "
        "first row in batches as the data comes.",
    )

    def draw(file: IO[bytes]) -> None:
        plot_bench(comparison, file, noun)

    fastest = max(rows, key=_speed)
    return [
        table,
        Picture(
            Table("serving-picture", header, rows),
            f"Size, memory, latency, throughput and score of each way to serve; the fastest is {fastest[0]}.",
            draw,
            wide=True,
        ),
    ]


def _speed(row: tuple[Any, ...]) -> float:
    return row[5]


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # a source tree that is not installed
            continue
    return found
