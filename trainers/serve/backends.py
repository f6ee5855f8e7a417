"""What computes a model that is served, and which is the fastest: the finding of `lora-core bench`, kept in the run's
folder, and what `--backend` makes of it.
"""

from __future__ import annotations

import logging
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, get_args

from lora_core.files import read_json_object, sha256_of_file, write_json
from trainers.run_folder import RunFolder

logger = logging.getLogger("trainers")

Backend = Literal["torch", "torch-bf16", "onnx", "openvino", "openvino-bf16"]
Chosen = Literal["auto", "torch", "torch-bf16", "onnx", "openvino", "openvino-bf16"]
TORCH = ("torch", "torch-bf16")
VERSIONS = ("torch", "onnxruntime", "openvino")
"""Packages whose other version may be faster or slower."""
ONNX_SUFFIX = ".onnx"


@dataclass(frozen=True)
class Way:
    """One way to serve a run, as it was measured."""

    backend: Backend
    file: str
    """In the run's folder; "" for the run itself, which torch computes."""
    device: str
    points_lost: float
    """Hundredths of the metric, against torch in fp32; negative: gained."""
    examples_per_second: float
    """In the pipeline's batches: sorted by length, under a token budget."""

    @property
    def name(self) -> str:
        """For the user."""
        return f"{self.backend} with {self.file}" if self.file else self.backend


@dataclass(frozen=True)
class Finding:
    """Ways to serve a run, measured side by side."""

    machine: dict[str, str]
    threads: int
    digests: dict[str, str]
    """Of the files that were measured, by name; "" is the run's own weights."""
    split: str
    metric: str
    points_allowed: float
    """Points of the metric that a way may lose and still count as of equal quality."""
    ways: tuple[Way, ...]

    def fastest(self, file: str | None = None, device: str | None = None) -> Way | None:
        """The fastest of equal quality; of one file or device, where they are given. None: there is none."""
        fitting = [
            way
            for way in self.ways
            if way.points_lost <= self.points_allowed and file in (None, way.file) and device in (None, way.device)
        ]
        return max(fitting, key=lambda way: way.examples_per_second, default=None)


def this_machine() -> dict[str, str]:
    """What the fastest way depends on: the processor, its cores, and the versions of what computes."""
    cpu_info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpu_info.read_text()) if cpu_info.exists() else []
    facts = {"cpu": names[0] if names else platform.processor() or platform.machine(), "cores": str(os.cpu_count())}
    return facts | {name: _version(name) for name in VERSIONS}


def digests_of(run: RunFolder) -> dict[str, str]:
    """The digests of what can be served of a run: of its weights, and of the ONNX files that were made from these.

    Raises:
        ValueError: an ONNX file is damaged.
    """
    from lora_core.export import read_metadata

    own = origin_of(run)
    found = {"": own["run_weights_sha256"]}
    for path in (run.onnx, run.int8_onnx):
        if path.is_file() and own.items() <= (facts := read_metadata(path)).items():
            found[path.name] = facts["graph_sha256"]
    return found


def origin_of(run: RunFolder) -> dict[str, str]:
    """What tells a run, trained as it is now, from any other; its ONNX files hold it."""
    (weights,) = run.weights(run.read_settings()["method"]).glob("*.safetensors")
    return {"run_config_sha256": sha256_of_file(run.settings), "run_weights_sha256": sha256_of_file(weights)}


def write_finding(finding: Finding, run: RunFolder) -> Path:
    """Keep it in the run's folder."""
    return write_json(run.backends, asdict(finding))


def read_finding(run: RunFolder) -> Finding:
    """What `write_finding` kept.

    Raises:
        ValueError: the file is damaged, or of another version.
    """
    remedy = f"Write it again: lora-core bench {run.path}"
    values = read_json_object(run.backends, remedy)
    try:
        ways = tuple(Way(**way) for way in values.pop("ways"))
        return Finding(**values, ways=ways)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run.backends} is of another version ({error}). {remedy}") from error


@dataclass(frozen=True)
class Source:
    """What is to be loaded, and by what it is computed."""

    path: Path
    backend: Backend
    device: str | None


def choose(path: Path, backend: Chosen | None, device: str | None, threads: int | None) -> Source:
    """What to load of a run's folder, a model's or an ONNX file, so that ``backend`` computes it.

    Args:
        backend: None: onnxruntime for an ONNX file, torch for all else; "auto": what `lora-core bench` found to be the
            fastest at equal quality, where that was for this machine, these files and so many threads; else as None,
            which is said.

    Raises:
        ValueError: the backend is unknown, or cannot compute what lies there.
    """
    usual: Backend = "onnx" if path.suffix == ONNX_SUFFIX else "torch"
    if backend is None:
        return Source(path, usual, device)
    if backend not in get_args(Chosen):
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(get_args(Chosen))}.")
    if backend == "auto":
        return _fastest(path, device, threads) or Source(path, usual, device)
    if backend in TORCH:
        if usual == "onnx":
            raise ValueError(
                f"{path} is an ONNX file, which torch does not run: use --backend onnx or openvino, or give the run."
            )
        return Source(path, backend, device)
    if backend != "onnx" and device not in (None, "cpu"):
        raise ValueError(f"--backend {backend} computes on the CPU: leave out --device {device}.")
    return Source(path if usual == "onnx" else _exported(path), backend, device)


def _run_of(path: Path) -> RunFolder | None:
    """The run that a folder is, or that its adapter/, best/ or ONNX file belongs to."""
    return next((run for run in (RunFolder(path), RunFolder(path.parent)) if run.metrics.is_file()), None)


def _exported(path: Path) -> Path:
    """The run's ONNX file, int8 before fp32.

    Raises:
        ValueError: there is no run, or no file of it as it is trained now.
    """
    run = _run_of(path)
    if run is None:
        raise ValueError(f"{path} is no finished run and no ONNX file; --backend torch computes it.")
    made = digests_of(run)
    for file in (run.int8_onnx, run.onnx):
        if file.name in made:
            return file
    raise ValueError(f"{run.path} has no ONNX file of the run as it is now. Write it: lora-core export {run.path}")


def _fastest(path: Path, device: str | None, threads: int | None) -> Source | None:
    """What bench found; None: nothing that holds here, which is said."""
    from lora_core.export.session import usual_threads

    usual = "onnx" if path.suffix == ONNX_SUFFIX else "torch"
    run = _run_of(path)
    if run is None:
        logger.warning("--backend auto: %s is no finished run or file of one, so nothing was measured: %s", path, usual)
        return None
    finding = read_finding(run) if run.backends.is_file() else None
    wanted = usual_threads() if threads is None else threads or os.cpu_count() or 1
    if finding is None:
        reason = "nothing was measured"
    elif changed := _changed(finding.machine, this_machine()):
        reason = f"what was measured is of another machine ({changed})"
    elif finding.threads != wanted:
        reason = f"what was measured is for --threads {finding.threads}, not {wanted}"
    else:
        file = path.name if usual == "onnx" else None
        way = finding.fastest(file, device)
        if way is None:
            reason = "nothing measured is of equal quality here"
        elif digests_of(run).get(way.file) != finding.digests.get(way.file):
            reason = f"{way.file or 'the run'} was changed after it was measured"
        else:
            logger.info("--backend auto: %s, %.0f examples a second", way.name, way.examples_per_second)
            return Source(run.path / way.file if way.file else path, way.backend, way.device)
    logger.warning(
        "--backend auto: %s, so %s computes. To measure: lora-core bench %s --threads %d",
        reason,
        usual,
        run.path,
        wanted,
    )
    return None


def best_line(finding: Finding) -> str:
    """Which is the fastest, for the terminal."""
    way = finding.fastest()
    within = f"within {finding.points_allowed:g} points of torch's {finding.metric} on {finding.split}"
    if way is None:
        return f"none is {within}"
    return (
        f"fastest {within}: {way.name} on {way.device}, {way.examples_per_second:.0f} examples a second, "
        f"{0.0 - way.points_lost:+.2f} points; --backend auto takes it"
    )


def _changed(before: dict[str, str], now: dict[str, str]) -> str:
    different: Sequence[str] = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)}, now {now.get(name)}" for name in different)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
