"""Run ONNX files of this library with onnxruntime alone, on arrays: serving needs no torch.

Shapes: B texts or images, T tokens (padded), C channels, L labels.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
import onnxruntime
from onnxruntime import AdapterFormat

from lora_core.export.onnx_file import AGAIN, read_file, sha256_of
from lora_core.files import json_object, regular_file
from lora_core.kernels.cores import usable_cores
from lora_core.models.checks import check_images, check_input
from lora_core.models.labels import ProblemType, check_labels, problem_type_of_config

if TYPE_CHECKING:
    from lora_core.export.openvino_engine import OpenVino

logger = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
NUMPY_TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
ADAPTER_FACTS = "adapter_metadata"
"""Input of a base, and tensor of an adapter, that holds what the adapter says of itself, as JSON in bytes."""
Backend = Literal["onnx", "openvino", "openvino-bf16"]
"""What computes: onnxruntime, or OpenVINO in the file's own precision or with bfloat16 where that is not int8."""
Own = TypeVar("Own", bound="OnnxSession")


class OnnxSession:
    """An ONNX file, loaded: `session.run(input_ids=..., attention_mask=...)` or `session.run(pixel_values=...)` gives
    the logits.

    The file is checked before it is loaded (`read_metadata`). One object serves several threads; in a process that was
    forked later it serves only if it has one thread itself, for others are not there.

    Args:
        path: a file of `export_onnx`, `quantize_onnx` or `export_onnx_base`.
        threads: of one operator; 0: one for each core; None: `usual_threads()`.
        spinning: whether threads without work wait for it at full load. False for servers that share their cores:
            with both cores of a machine busy it halved the time of a batch.
        providers: onnxruntime's execution providers in order of preference; None: CUDA for fp32 where there is one,
            then the CPU. `model.providers` tells which are used.
        shared: a folder where processes that load the same file keep its weights, which the system then holds once
            for all of them; None: each has its own. OpenVINO does not share.
        backend: what computes. OpenVINO's results are compared with onnxruntime's here, before any is served.

    Attributes:
        labels: names in the order of the logits.
        task, problem_type, model_type: the exported model's.
        max_tokens, vocab_size: limits of input_ids, 0 for images.
        image_shape: (C, height, width), () for text.
        activations: how int8 scales them: "static", or "dynamic", where a text's logits depend a little on its batch;
            "" in fp32.
        metadata: all that the file holds, text by name.

    Raises:
        FileNotFoundError: as `read_metadata`.
        ValueError: as `read_metadata`; a provider or the backend is not installed; it cannot run the file; or OpenVINO
            gives other results.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        spinning: bool = True,
        providers: Sequence[str] | None = None,
        shared: Path | None = None,
        backend: Backend = "onnx",
    ) -> None:
        if backend not in get_args(Backend):
            raise ValueError(f"backend is {backend!r}; an ONNX file runs on one of {', '.join(get_args(Backend))}")
        self.path = Path(path)
        self.stamp = file_stamp(self.path)
        """Of the file that was loaded: the one that is there now has another if it was replaced since."""
        self.metadata = read_file(self.path).metadata
        self.activations = activations_of(self.metadata)
        self.task = self.metadata["task"]
        self.problem_type: ProblemType | None = problem_type_of_config(self.metadata)
        self.model_type = self.metadata["model_type"]
        self.head_kind = self.metadata.get("head", "default")
        self.labels: tuple[str, ...] = tuple(json.loads(self.metadata["labels"]))
        self.max_tokens = int(self.metadata.get("max_tokens", 0))
        self.vocab_size = int(self.metadata.get("vocab_size", 0))
        self.image_shape: tuple[int, ...] = tuple(json.loads(self.metadata.get("image_shape", "[]")))
        self.adapters: dict[str, tuple[onnxruntime.LoraAdapter, dict[str, Any]]] = {}
        """Loaded adapters and what they say of themselves, by name."""
        self.acting: onnxruntime.LoraAdapter | None = None
        self.threads = usual_threads() if threads is None else threads
        self._shared: Path | None = None
        self.engine: OpenVino | None = None
        """What computes in the place of onnxruntime."""
        if backend == "onnx":
            place = self.path if shared is None else shared_file(self.path, shared)
            self.session = _session(place, self.threads, spinning, providers or self._providers())
            self._shared = None if place == self.path else place.parent
            self._process = os.getpid()
            self.providers = list(self.session.get_providers())
            self.inputs = {node.name: NUMPY_TYPES.get(node.type) for node in self.session.get_inputs()}
            outputs = [node.name for node in self.session.get_outputs()]
        else:
            from lora_core.export import openvino_engine

            self.engine = openvino_engine.OpenVino(self.path, self.metadata, self.threads, backend == "openvino-bf16")
            self.providers = ["OpenVINO"]
            self.inputs = dict(self.engine.inputs)
            outputs = self.engine.outputs
        wanted = ("pixel_values",) if self.image_shape else ("input_ids", "attention_mask")
        known = {*wanted, *(() if self.image_shape else ("token_type_ids",))}
        if not set(wanted) <= set(self.inputs) <= known or None in self.inputs.values() or "logits" not in outputs:
            raise ValueError(
                f"{self.path} takes {', '.join(self.inputs)} and gives {', '.join(outputs)}; expected "
                f"{', '.join(wanted)} and logits; {AGAIN}"
            )
        if self.engine is not None:
            self._check_against_onnxruntime(exact=backend == "openvino" and self.metadata["precision"] == "fp32")

    def run(self, **given: np.ndarray) -> np.ndarray:
        """Return the logits in float32: (B, T, L) for tokens, (B, L) for texts and images.

        `input_ids` and `attention_mask` are (B, T), the mask nonzero at real tokens (left out: all are real);
        `token_type_ids` (B, T), of models of pairs of texts, say which text a token is of (left out: all of the first);
        `pixel_values` is (B, C, height, width).

        Raises:
            ValueError: the inputs are not this model's.
        """
        if not set(given) <= set(self.inputs) or next(iter(self.inputs)) not in given:
            raise ValueError(f"{self.path} takes {', '.join(self.inputs)}; given were {', '.join(given) or 'none'}")
        if "input_ids" in given:
            ids, mask = given["input_ids"], given.get("attention_mask")
            self._check_ids(ids, mask)
            if "token_type_ids" in self.inputs:
                given["token_type_ids"] = self._types(ids, given.get("token_type_ids"))
            given["attention_mask"] = np.ones_like(ids) if mask is None else mask != 0
        else:
            channels, *size = self.image_shape
            check_images(given["pixel_values"], channels, (size[0], size[1]))
        arrays = {name: np.ascontiguousarray(array, dtype=self.inputs[name]) for name, array in given.items()}
        return self._logits(arrays)

    def forget_shared(self) -> None:
        """Remove the file from which the processes map its weights, which they keep; for when none will load it."""
        if self._shared is not None:
            shutil.rmtree(self._shared, ignore_errors=True)

    def load_adapter(self: Own, path: str | Path, adapter_name: str) -> Own:
        """Load a file of `save_onnx_adapter`, replacing one of the same name, and return `self.adapter(adapter_name)`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, belongs to another base, or changes layers that the base does not let adapters
                change.
        """
        settable = {node.name: tuple(node.shape) for node in self.session.get_overridable_initializers()}
        facts, _ = read_adapter(Path(path), self.metadata, settable)
        adapter = onnxruntime.LoraAdapter()
        adapter.Load(str(path))
        self.adapters[adapter_name] = (adapter, facts)
        return self.adapter(adapter_name)

    def adapter(self: Own, adapter_name: str) -> Own:
        """This model with a loaded adapter acting, and with the adapter's labels.

        It shares the session, so making one costs microseconds: use one for each request.

        Raises:
            ValueError: no adapter of this name is loaded.
        """
        if adapter_name not in self.adapters:
            raise ValueError(f"no adapter {adapter_name!r} is loaded; there are {sorted(self.adapters)}")
        view = copy(self)
        adapter, facts = self.adapters[adapter_name]
        view.acting, view.labels = adapter, tuple(facts["labels"])
        view.problem_type = problem_type_of_config(facts)
        view.metadata = self.metadata | facts["metadata"]
        return view

    def _check_against_onnxruntime(self, exact: bool) -> None:
        from lora_core.export.openvino_engine import check_agreement, image_probes, text_probes

        probes = image_probes(self.image_shape) if self.image_shape else text_probes(self.max_tokens, self.vocab_size)
        reference = OnnxSession(self.path, threads=self.threads, providers=[CPU])
        check_agreement(self.path, self.run, reference.run, probes, exact)

    def _logits(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        logits = self._of_onnxruntime(arrays) if self.engine is None else self.engine.logits(arrays)
        expected = self._expected_shape(next(iter(arrays.values())))
        shape = logits.shape if isinstance(logits, np.ndarray) else None
        if shape != expected:
            raise ValueError(f"{self.path} gives logits of the shape {shape} where {expected} are expected; {AGAIN}")
        return logits

    def _of_onnxruntime(self, arrays: Mapping[str, np.ndarray]) -> Any:
        if os.getpid() != self._process and self.threads != 1:
            raise ValueError(
                f"{self.path} was loaded with {self.threads} threads before this process was forked, and they are not "
                "here: load it in each process, start them with the method spawn, or load it with threads=1 (in a "
                "pipeline: after torch.set_num_threads(1))"
            )
        options = None
        if self.acting is not None:
            options = onnxruntime.RunOptions()
            options.add_active_adapter(self.acting)
        try:
            return self.session.run(["logits"], dict(arrays), options)[0]
        except Exception as error:  # onnxruntime's errors have no common class but this
            raise ValueError(f"{self.path} cannot be run ({_first_line(error)}); {AGAIN}") from error

    def _expected_shape(self, inputs: np.ndarray) -> tuple[int, ...]:
        """Of the logits for inputs (B, T), or images (B, ...). A CRF's transitions come in rows behind the tokens'."""
        labels = len(self.labels)
        if self.task != "token-classification":
            return len(inputs), labels
        texts, tokens = inputs.shape
        return texts, tokens + (1 + labels if self.head_kind == "crf" else 0), labels

    def _check_ids(self, input_ids: np.ndarray, attention_mask: np.ndarray | None) -> None:
        check_input(input_ids, attention_mask, self.max_tokens)
        if input_ids.size and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < self.vocab_size:
            raise ValueError(
                f"input_ids holds {int(input_ids.min())} to {int(input_ids.max())}, the model has embeddings for "
                f"0 to {self.vocab_size - 1}; use the model's own tokenizer"
            )

    def _types(self, input_ids: np.ndarray, token_type_ids: np.ndarray | None) -> np.ndarray:
        types = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        segments = int(self.metadata["segments"])
        if types.shape != input_ids.shape or (types.size and not 0 <= types.min() <= types.max() < segments):
            raise ValueError(
                f"token_type_ids has the shape {tuple(types.shape)} and values up to {int(types.max())}; expected that "
                f"of input_ids, {tuple(input_ids.shape)}, and values below {segments}"
            )
        return types

    def _providers(self) -> list[str]:
        return [CUDA, CPU] if self.metadata["precision"] == "fp32" and CUDA in _available() else [CPU]


def file_stamp(path: Path) -> tuple[tuple[int, int, int], ...]:
    """What changes with a file, and with the weights beside it where it has them there; empty: it is not there, or
    cannot be looked at now."""
    found = []
    for each in (path, path.with_name(f"{path.name}.data")):
        try:
            status = each.stat()
            found.append((status.st_mtime_ns, status.st_ino, status.st_size))
        except FileNotFoundError:
            if each == path:
                return ()
        except OSError:
            return ()
    return tuple(found)


def activations_of(metadata: Mapping[str, str]) -> str:
    """How a file with this metadata scales activations, as `OnnxModel.activations`."""
    return metadata.get("activations", "dynamic") if metadata["precision"] == "int8" else ""


def usual_threads() -> int:
    """Threads of an operator that nobody set: as many as torch uses where it is there, else OMP_NUM_THREADS; not more
    than `usable_cores()`, unless that variable says so."""
    torch = sys.modules.get("torch")
    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdigit() and int(stated):
        return torch.get_num_threads() if torch is not None else int(stated)
    return min(usable_cores(), torch.get_num_threads()) if torch is not None else usable_cores()


def _available() -> list[str]:
    return list(onnxruntime.get_available_providers())


def _session(path: Path, threads: int, spinning: bool, providers: Sequence[str]) -> onnxruntime.InferenceSession:
    missing = [name for name in providers if name not in _available()]
    if missing:
        raise ValueError(f"onnxruntime has no {', '.join(missing)} here; it has {', '.join(_available())}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    # The graph is fused as it stands. Further fusions would only undo choices that were measured (quantize.py).
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    # fp32 means fp32: on newer GPUs onnxruntime would otherwise round matrix products to TF32.
    exact = [(name, {"use_tf32": "0"}) if name == CUDA else name for name in providers]
    try:
        # Falling back to the CPU from the CPU would print, and load the same file once more.
        fallback = int(CUDA in providers)
        return onnxruntime.InferenceSession(str(path), options, providers=exact, enable_fallback=fallback)
    except Exception as error:  # onnxruntime's errors have no common class but this
        raise ValueError(
            f"onnxruntime {onnxruntime.__version__} cannot run {path} ({_first_line(error)}); install a newer one, or "
            f"{AGAIN}"
        ) from error


def shared_file(path: Path, folder: Path) -> Path:
    """A copy of the file below ``folder`` whose weights stand in a file beside it: onnxruntime maps those into memory,
    and what processes map is there once. The first process that asks makes it. Of a file that has its weights beside
    it, the file itself.
    """
    status = path.stat()
    name = f"{path} {status.st_mtime_ns} {status.st_ino} {status.st_size}"
    place = folder / hashlib.sha256(name.encode()).hexdigest()[:16]
    if path.with_name(f"{path.name}.data").exists():
        return path
    if not place.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.optimized_model_filepath = str(made / "model.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        try:
            onnxruntime.InferenceSession(str(path), options, providers=[CPU])
            made.rename(place)
        except Exception as error:  # onnxruntime's errors have no common class but this
            shutil.rmtree(made, ignore_errors=True)
            if not place.is_dir():  # else another process was first
                logger.warning("the processes do not share the weights of %s: %s", path, _first_line(error))
                return path
    return place / "model.onnx"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def read_adapter(
    path: Path, base: Mapping[str, str], settable: Mapping[str, Sequence[int | str]]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What an adapter's file says of itself, and its values, checked against a base.

    Args:
        base: the base's metadata.
        settable: the shapes of its settable inputs, where a name fits any size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, belongs to another base, or sets what the base keeps fixed.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; save it with save_onnx_adapter, or correct the path")
    try:
        file = AdapterFormat.read_adapter(str(regular_file(path)))  # pyright: ignore[reportArgumentType]
        values = {name: value.numpy().copy() for name, value in file.get_parameters().items()}  # views of file's memory
        facts = json_object(values.pop(ADAPTER_FACTS).tobytes())
        whole = sha256_of(values) == facts["sha256"]
        check_labels(facts["labels"])
        problem_type_of_config(facts)
        if not isinstance(facts["metadata"], dict):
            raise ValueError("its metadata is malformed")
        described = facts["base_sha256"], facts["task"]
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not an adapter of save_onnx_adapter, or damaged ({error}); save it again"
        ) from error
    if not whole:
        raise ValueError(f"{path} was changed after it was written; copy it again, or save it again")
    if "base_sha256" not in base:
        raise ValueError(f"the model that {path} is to act on takes no adapters; export it with export_onnx_base")
    if described != (base["base_sha256"], base["task"]):
        raise ValueError(
            f"{path} is for {facts['task']} on a base with sha256 {facts['base_sha256']}, this one does {base['task']} "
            f"and has {base['base_sha256']}; load it on the base that it was trained on"
        )
    unknown = sorted(name for name, value in values.items() if not _fits(value.shape, settable.get(name)))
    if unknown:
        raise ValueError(
            f"{path} sets {len(unknown)} weights that the base keeps fixed, first {unknown[0]}; export the base again "
            "from a model that has all its adapters"
        )
    return facts, values


def _fits(shape: Sequence[int], dims: Sequence[int | str] | None) -> bool:
    return (
        dims is not None
        and len(shape) == len(dims)
        and all(isinstance(dim, str) or dim == size for size, dim in zip(shape, dims, strict=True))
    )
