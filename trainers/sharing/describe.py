"""What a folder or a file is: `describe` finds out from its small files and the headers of the large ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lora_core.config import CONFIG_FILE as ADAPTER_CONFIG
from lora_core.config import LoRAConfig
from lora_core.export.onnx_file import MODEL_METADATA, entry, fields
from lora_core.files import read_json_object, regular_file
from lora_core.models.encoders.build import task_of_architectures
from lora_core.models.pretrained.source import CONFIG_FILE
from trainers.run_folder import RunFolder, read_run
from trainers.sharing.alone import HEAD_FILE, AdapterHead

MOST_LISTED = 30
"""Labels that are shown as text."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
KEPT_METADATA = ("task", "model_type", "precision", "activations", "head", "problem_type", "max_tokens", "parity")
"""Facts of an ONNX file that are shown; the others are what inference reads."""


def describe(path: Path) -> dict[str, Any]:
    """What a folder or file is, its kind first, as JSON has it.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is nothing that is known here, or damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.is_file():
        reader = {".onnx": _onnx, ".safetensors": _weights}.get(path.suffix)
        if reader is None:
            raise ValueError(f"{path} is neither an ONNX file nor safetensors. Name one, or the folder of a model.")
        return reader(path)
    kinds: tuple[tuple[Callable[[Path], bool], Callable[[Path], dict[str, Any]]], ...] = (
        (lambda folder: RunFolder(folder).is_run(), _run),
        (lambda folder: (folder / ADAPTER_CONFIG).is_file(), _adapter),
        (lambda folder: (folder / "manifest.json").is_file() and (folder / "state.json").is_file(), _checkpoint),
        (lambda folder: (folder / CONFIG_FILE).is_file(), _model),
    )
    for is_kind, read in kinds:
        if is_kind(path):
            return read(path)
    raise ValueError(
        f"{path} is none of what is known here: it has neither {CONFIG_FILE} nor {ADAPTER_CONFIG}. Name a run, an "
        "adapter, a model, or a file of one."
    )


def shown(found: dict[str, Any]) -> str:
    """The same for people: a fact a line, those of a part indented."""
    longest = max(len(name) for name in found)
    lines = []
    for name, value in found.items():
        text = _text(value).replace("\n", f"\n{'':{longest + 2}}")
        lines.append(f"{name.replace('_', ' '):{longest}}  {text}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        width = max(map(len, map(str, value)), default=0)
        return "\n".join(f"{name!s:{width}}  {_text(one)}" for name, one in value.items())
    if isinstance(value, list):
        more = f" and {len(value) - MOST_LISTED} more" if len(value) > MOST_LISTED else ""
        return ", ".join(map(str, value[:MOST_LISTED])) + more
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _run(folder: Path) -> dict[str, Any]:
    files = RunFolder(folder)
    settings, result = files.read_settings(), files.result()
    method = settings.get("method", "lora")
    chosen = ("task", "model", "data", "method", "r", "target_modules", "learning_rate", "batch_size", "epochs", "seed")
    found: dict[str, Any] = {"kind": "run", "path": str(folder)}
    found["state"] = "finished" if result else "not finished: --resume auto goes on, `lora-core finish` ends it"
    found |= {name: settings[name] for name in chosen if settings.get(name) not in (None, "")}
    if result:
        run = read_run(folder)
        found["state"] += ", ended early" if result.get("ended_early") else ""
        found |= {"labels": result["labels"], "scores": run.summary.split("; ")[0]}
        found |= {name: result[name] for name in ("best_epoch", "trainable", "total", "device", "torch", "processes")
                  if name in result}  # fmt: skip
        gone = [name for name in result.get("files", {}) if not (folder / name).is_file()]
        found |= {"gone": gone} if gone else {}
    else:
        found["checkpoints"] = [path.name for _, path in files.saved("step")] or "none"
    parts = (files.weights(method), files.onnx, files.int8_onnx)
    found["holds"] = [f"{path.name} ({_size(path):,} bytes)" for path in parts if path.exists()] or "nothing yet"
    inputs = files.read_inputs()
    if inputs:
        found["inputs"] = _digests(inputs)
    return found


def _digests(inputs: dict[str, Any]) -> dict[str, str]:
    """Counts and the beginnings of digests of what a run was made from."""
    found = {
        f"data, {name}": f"{split['examples']:,} examples, sha256 {split['sha256'][:12]}"
        for name, split in inputs["data"].items()
    }
    return found | {
        f"base, {name}": f"sha256 {file['sha256'][:12]}" for name, file in (inputs.get("model") or {}).items()
    }


def _adapter(folder: Path) -> dict[str, Any]:
    config = LoRAConfig.load(folder)
    found: dict[str, Any] = {"kind": "adapter", "path": str(folder), "base_model": config.base_model_name_or_path}
    if (folder / HEAD_FILE).is_file():
        head = AdapterHead.read(folder)
        found |= {"task": head.task, "labels": list(head.labels)}
        found["moves_alone"] = "yes"
    else:
        found["task"] = config.task_type
        found["moves_alone"] = f"no: it has no {HEAD_FILE}, so its labels are known to its run alone"
    targets = config.target_modules
    found |= {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": list(targets) if isinstance(targets, tuple) else targets,
        "trained_in_full": list(config.modules_to_save or ()),
    }
    return found | _tensors(folder)


def _model(folder: Path) -> dict[str, Any]:
    values = read_json_object(folder / CONFIG_FILE, "Copy the model again.")
    names = values.get("id2label")
    labels = list(names.values()) if isinstance(names, dict) else []
    architectures = values.get("architectures") or []
    facts = {
        "kind": "model",
        "path": str(folder),
        "model_type": values.get("model_type"),
        "task": task_of_architectures(architectures) or "none: an encoder, or a head that is not known here",
        "architectures": architectures,
        "labels": labels,
        "problem_type": values.get("problem_type"),
    }
    return {name: value for name, value in facts.items() if value not in (None, [])} | _tensors(folder)


def _checkpoint(folder: Path) -> dict[str, Any]:
    state = read_json_object(folder / "state.json", "Take another checkpoint.")
    kept = {name: state[name] for name in ("step", "epoch", "best_epoch", "best_score", "run") if name in state}
    return {"kind": "checkpoint of a run", "path": str(folder), **kept, **_tensors(folder)}


def _weights(path: Path) -> dict[str, Any]:
    return {"kind": "safetensors", "path": str(path), **_headers([path])}


def _onnx(path: Path) -> dict[str, Any]:
    with regular_file(path).open("rb") as file:
        try:
            parts = list(fields(file, 0, path.stat().st_size))
            metadata = dict(entry(file, part) for part in parts if part.number == MODEL_METADATA)
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is not a whole ONNX file ({error}). Copy it again, or export it again."
            ) from error
    found: dict[str, Any] = {"kind": "ONNX file", "path": str(path), "bytes": path.stat().st_size}
    if "lora_core_format" not in metadata:
        return {**found, "origin": "not written by lora-core", "metadata": sorted(metadata) or "none"}
    found |= {name: metadata[name] for name in KEPT_METADATA if name in metadata}
    found["labels"] = json.loads(metadata.get("labels", "[]"))
    found["holds"] = sorted(name for name in metadata if name.endswith(".json"))
    found["graph_sha256"] = metadata.get("graph_sha256", "")
    return found


def _tensors(folder: Path) -> dict[str, Any]:
    """Number, types and sizes of the tensors of a folder, as their headers say."""
    files = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
    headers = _headers([path for path in files if path.suffix == ".safetensors"])
    pickled = [path.name for path in files if path.suffix == ".bin"]
    return {**headers, **({"pickled": pickled} if pickled else {}), "bytes": sum(path.stat().st_size for path in files)}


def _headers(paths: list[Path]) -> dict[str, Any]:
    numbers, tensors, types = 0, 0, set()
    for path in paths:
        try:
            with safe_open(regular_file(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (it is no dict)
                    part = file.get_slice(name)
                    size = 1
                    for length in part.get_shape():
                        size *= length
                    numbers, tensors = numbers + size, tensors + 1
                    types.add(part.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}). Copy or save it again.") from error
    return {"numbers": numbers, "tensors": tensors, "types": sorted(types)}


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
