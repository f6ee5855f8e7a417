"""The models of a service, each with its queue, and on ONNX bases their adapters, which come and go while it serves."""

import dataclasses
import fcntl
import json
import logging
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lora_core.export.session import OnnxSession
from lora_core.files import write_json
from trainers.data.labels import DECISION_FILE, Decision
from trainers.serve import pipeline_for
from trainers.serve.pipeline import PIXELS_PER_TOKEN, Pipeline
from trainers.serve.served import ONNX_SUFFIX, load_served
from trainers.serve.served_model import Served
from trainers.service.batches import BatchQueue, Job
from trainers.service.inputs import WORDS, PredictRequest, RequestReader, short
from trainers.service.settings import Refusal, ServiceSettings
from trainers.service.words import with_words

logger = logging.getLogger(__name__)

KEPT_PIPELINES = 32
"""Pipelines that a model keeps, one for each adapter and set of options."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names of models and adapters: they stand in addresses."""


class _Served(Served):
    """A served model whose pipelines share one tokenizer."""

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return super().tokenizer()

    def tokenizer(self) -> Tokenizer:
        return self._tokenizer


@dataclass(frozen=True)
class Adapter:
    """An adapter that is loaded on a base."""

    served: Served
    path: Path
    size: int
    """Bytes of its file, about those that it holds in memory."""
    changed: int
    """When its file was written, in nanoseconds."""

    @property
    def entry(self) -> list[Any]:
        """What the register says of it."""
        return [str(self.path), self.changed]


class ServedModel:
    """A model under a name: its queue, its pipelines by adapter and options, and its adapters."""

    def __init__(self, name: str, source: str, settings: ServiceSettings, folder: Path) -> None:
        self.name = name
        self.source = source
        shared = folder / "weights" if settings.workers > 1 else None
        served = load_served(
            source,
            device=settings.device,
            spinning=False,
            threads=settings.threads_of_each,
            shared=shared,
            backend=settings.backend,
        )
        self.served = _Served(**{each.name: getattr(served, each.name) for each in dataclasses.fields(served)})
        self.adapters: dict[str, Adapter] = {}
        self.max_tokens = settings.max_tokens
        self._pipelines: dict[tuple[str | None, str], Pipeline] = {}
        self._lock = threading.Lock()  # of adapters and pipelines
        first = self._pipeline(None, {})  # a model that cannot predict is refused before the service starts
        cut = self.served.task == "text-classification" and self.served.long_text != "windows"
        longest = self.served.max_length if cut else 0
        if self.served.task == "image-classification":
            height, width = first.processing.size  # pyright: ignore[reportAttributeAccessIssue]
            longest = height * width // PIXELS_PER_TOKEN
        self.options = (*first.options, WORDS) if self.served.task == "text-classification" else first.options
        self.reader = RequestReader(self.served.task, settings, self.options, longest)
        self.queue = BatchQueue(settings.batch_tokens, settings.batch_wait_ms / 1000, settings.max_queue)

    def close(self) -> None:
        """Finish what is asked of it, and take its weights out of the folder that the processes share."""
        self.queue.close()
        if isinstance(self.served.model, OnnxSession):
            self.served.model.forget_shared()

    @property
    def onnx_file(self) -> Path | None:
        """Where it was loaded from; None: it is a run or a checkpoint."""
        return self.served.model.path if isinstance(self.served.model, OnnxSession) else None

    @property
    def takes_adapters(self) -> bool:
        """Whether it is an ONNX base."""
        return isinstance(self.served.model, OnnxSession) and "base_sha256" in self.served.metadata

    def job(self, request: PredictRequest, adapter: str | None) -> Job | None:
        """A request as work for the queue; None: its pipeline is to be made first (`prepare`), which takes a while."""
        pipeline = self._pipelines.get(_key(adapter, request.options))
        if pipeline is None or request.words:
            return None
        return Job((id(pipeline), request.kind), pipeline.predict, request.inputs, request.costs)

    def prepare(self, request: PredictRequest, adapter: str | None) -> Job:
        """The same, whatever has to be made for it.

        Raises:
            Refusal: there is no such adapter, or an option's value is wrong.
        """
        pipeline = self._pipeline(adapter, request.options)
        if request.words:
            predict = partial(with_words, pipeline, self._pipeline(adapter, {"top_k": None}))
            return Job((id(pipeline), WORDS), predict, request.inputs, request.costs)
        return Job((id(pipeline), request.kind), pipeline.predict, request.inputs, request.costs)

    def load_adapter(self, name: str, path: Path) -> Adapter:
        """Load an adapter, replacing one of its name.

        Raises:
            ValueError, OSError: the file is missing, damaged or for another base, or this model takes none.
        """
        if not self.takes_adapters or not isinstance(self.served.model, OnnxSession):
            raise ValueError(f"the model {self.name} takes no adapters; export a base with export_onnx_base")
        with self._lock:
            view = self.served.model.load_adapter(path, name)
            decision = Decision.from_json(view.metadata.get(DECISION_FILE, "{}"), f"{path}: {DECISION_FILE}")
            served = dataclasses.replace(
                self.served,
                source=str(path),
                model=view,
                logits=view.run,
                labels=view.labels,
                metadata=view.metadata,
                problem_type=view.problem_type,
                thresholds=decision.thresholds,
            )
            status = path.stat()
            adapter = self.adapters[name] = Adapter(served, path, status.st_size, status.st_mtime_ns)
            self._forget(name)
        return adapter

    def remove_adapter(self, name: str) -> None:
        """Take an adapter away; requests that chose it before are still answered."""
        with self._lock:
            del self.adapters[name]
            assert isinstance(self.served.model, OnnxSession)
            del self.served.model.adapters[name]
            self._forget(name)

    def describe(self) -> dict[str, Any]:
        """What `GET /v1/models` says of it."""
        with self._lock:
            adapters = [
                {"name": name, "labels": list(adapter.served.labels), "bytes": adapter.size}
                for name, adapter in sorted(self.adapters.items())
            ]
        return {
            "name": self.name,
            "task": self.served.task,
            "labels": list(self.served.labels),
            "problem_type": self.served.problem_type,
            "pairs": self.served.pairs,
            "max_length": self.served.max_length,
            "precision": self.served.metadata.get("precision", "fp32"),
            "activations": getattr(self.served.model, "activations", ""),
            "options": list(self.options),
            "takes_adapters": self.takes_adapters,
            "adapters": adapters,
        }

    def _forget(self, adapter: str) -> None:
        for key in [key for key in self._pipelines if key[0] == adapter]:
            del self._pipelines[key]

    def _pipeline(self, adapter: str | None, options: Mapping[str, Any]) -> Pipeline:
        key = _key(adapter, options)
        with self._lock:
            if key not in self._pipelines:
                if adapter is not None and adapter not in self.adapters:
                    known = ", ".join(sorted(self.adapters)) or "none"
                    raise Refusal(404, f"the model {self.name} has no adapter {short(adapter)}; loaded: {known}")
                served = self.served if adapter is None else self.adapters[adapter].served
                try:
                    self._pipelines[key] = pipeline_for(served, max_tokens=self.max_tokens, **options)
                except ValueError as error:
                    raise Refusal(422, str(error)) from error
                if len(self._pipelines) > KEPT_PIPELINES:
                    self._pipelines.pop(next(each for each in self._pipelines if each != _PLAIN))
            return self._pipelines[key]


def _key(adapter: str | None, options: Mapping[str, Any]) -> tuple[str | None, str]:
    """What a model keeps a pipeline under."""
    return adapter, json.dumps(options, sort_keys=True)


_PLAIN = _key(None, {})
"""The pipeline without adapter and options, which is always kept."""


class Models:
    """All models of a process, and the register of adapters that the processes of a service share.

    The register is a file: a process that loads or removes an adapter writes it, and every process does what it says
    before it looks an adapter up.
    """

    def __init__(self, settings: ServiceSettings, folder: Path) -> None:
        """
        Args:
            folder: of the service while it runs, for the register.

        Raises:
            ValueError, OSError: a model or adapter is missing, damaged or named like another.
        """
        self.settings = settings
        self.folder = folder
        self.by_name: dict[str, ServedModel] = {}
        self.register = folder / "adapters.json"
        self._seen: tuple[int, int] | None = None
        self._syncing = threading.Lock()
        for name, source in named_models(settings.models).items():
            self.by_name[name] = ServedModel(name, source, settings, folder)
        first: dict[str, dict[str, list[Any]]] = {}
        for given in settings.adapters:
            place, _, path = given.partition("=")
            model, _, name = place.rpartition("+")
            if not path or model not in self.by_name or not NAME.fullmatch(name):
                raise ValueError(
                    f"--adapters {given}: expected MODEL+NAME=FILE, where MODEL is one of {', '.join(self.by_name)} "
                    "and NAME of letters, digits and ._-"
                )
            # An error ends the start.
            first.setdefault(model, {})[name] = self.by_name[model].load_adapter(name, Path(path).resolve()).entry
        with self._locked():
            if not self.register.is_file():
                write_json(self.register, first)
        self.sync()

    def find(self, name: str) -> tuple[ServedModel, str | None]:
        """The model and the adapter that "model" or "model+adapter" names.

        Raises:
            Refusal: there is no such model.
        """
        model, _, adapter = name.partition("+")
        if model not in self.by_name:
            raise Refusal(404, f"no model {short(model)}; there are {', '.join(self.by_name)}")
        return self.by_name[model], adapter or None

    def stamps(self) -> dict[str, tuple]:
        """What tells the files that were loaded from others under their names."""
        return {name: model.served.model.stamp for name, model in self.by_name.items()
                if isinstance(model.served.model, OnnxSession)}  # fmt: skip

    def exchange(self, new: ServedModel) -> None:
        """Let a new model take the place of the one of its name. Adapters that came or went while it was loaded, come
        and go with the next request."""
        with self._syncing:
            self.by_name[new.name] = new
            self._seen = None

    def load_anew(self, old: ServedModel) -> ServedModel:
        """The model from the same place, with the adapters that are loaded; it takes no requests yet.

        Raises:
            ValueError, OSError, Refusal: it is missing or damaged, or an adapter does not fit it.
        """
        new = ServedModel(old.name, old.source, self.settings, self.folder)
        for name, adapter in list(old.adapters.items()):
            new.load_adapter(name, adapter.path)
        return new

    @property
    def synced(self) -> bool:
        """Whether the adapters are those of the register."""
        return self._stamp() == self._seen

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self.register.stat()
        except FileNotFoundError:  # swept out of the temporary folder: what is loaded stays
            return self._seen
        return status.st_mtime_ns, status.st_ino

    def _registered(self) -> dict[str, dict[str, list[Any]]]:
        """The adapters that every process is to have, by model and name."""
        if self.register.is_file():
            return json.loads(self.register.read_text(encoding="utf-8"))
        return {name: {adapter: each.entry for adapter, each in list(model.adapters.items())}
                for name, model in self.by_name.items()}  # fmt: skip

    def sync(self) -> None:
        """Load and remove adapters until they are those of the register."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        with self._syncing:
            wanted = self._registered()
            for name, model in self.by_name.items():
                entries = wanted.get(name, {})
                for adapter in set(model.adapters) - set(entries):
                    model.remove_adapter(adapter)
                for adapter, entry in entries.items():
                    if adapter not in model.adapters or model.adapters[adapter].entry != entry:
                        try:
                            model.load_adapter(adapter, Path(entry[0]))
                        except (ValueError, OSError) as error:  # loaded by another process, and gone since
                            logger.error("the adapter %s of %s is not here: %s", adapter, name, error)
            self._seen = stamp

    def load_adapter(self, model: ServedModel, name: str, path: Path) -> Adapter:
        """Load an adapter in this process, and have the others load it.

        Raises:
            ValueError, OSError: as `ServedModel.load_adapter`.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"the name {short(name)}: expected letters, digits and ._-, 100 at most")
        adapter = model.load_adapter(name, path.resolve())
        self._write(model, {name: adapter.entry})
        return adapter

    def remove_adapter(self, model: ServedModel, name: str) -> None:
        """Remove an adapter from every process.

        Raises:
            KeyError: there is none of this name.
        """
        model.remove_adapter(name)
        self._write(model, {name: None})

    def _write(self, model: ServedModel, changes: Mapping[str, list[Any] | None]) -> None:
        with self._locked():
            wanted = self._registered()
            adapters = {**wanted.get(model.name, {}), **changes}
            wanted[model.name] = {name: entry for name, entry in adapters.items() if entry is not None}
            write_json(self.register, wanted)

    def _locked(self) -> "_FileLock":
        return _FileLock(self.register.with_suffix(".lock"))


class _FileLock:
    """One process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self._file = self.path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *error: object) -> None:
        self._file.close()


def named_models(given: tuple[str, ...]) -> dict[str, str]:
    """Sources by name: NAME=PATH, or the name of a run's folder or of an ONNX file.

    Raises:
        ValueError: two have one name, or a name cannot stand in an address.
    """
    found: dict[str, str] = {}
    for each in given:
        name, sign, source = each.partition("=")
        if not sign:
            name, source = _own_name(Path(each)), each
        if not NAME.fullmatch(name):
            raise ValueError(f"{short(name)} cannot name a model; write NAME={source}, NAME of letters, digits and ._-")
        if name in found:
            raise ValueError(f"{each} and {found[name]} are both called {name}; write NAME={source} for one of them.")
        found[name] = source
    return found


def _own_name(path: Path) -> str:
    """The name of a folder or of an ONNX file; of a run's model.onnx or model.int8.onnx that of the run."""
    if path.suffix != ONNX_SUFFIX:
        return path.name
    return path.resolve().parent.name if path.name.startswith("model.") else path.name.removesuffix(ONNX_SUFFIX)
