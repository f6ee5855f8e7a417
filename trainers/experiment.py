"""A whole run: data, model, adapters, training, test scores, and the run folder."""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import lora_core
from lora_core.files import write_text
from lora_core.kernels.int8 import unsupported
from lora_core.models import save_pretrained
from lora_core.models.task_model import TaskModel
from trainers.config import RESUME_MAY_CHANGE, RunConfig
from trainers.data.labels import Decision
from trainers.inputs import check_processes, check_unchanged, inputs_of
from trainers.loop import fit, predict
from trainers.model import build, image_size, is_scratch, start_from_inputs, write_vocabulary
from trainers.monitor.monitor import Monitor
from trainers.monitor.plan import plan_of
from trainers.monitor.preview import preview
from trainers.monitor.screen import Lines
from trainers.monitor.tracking import Tracker, check_trackers, tracked
from trainers.processes import interrupt
from trainers.processes.distributed import World, distributed
from trainers.processes.fsdp import copy_tensors, is_sharded, whole
from trainers.processes.run_lock import locked
from trainers.recipes import EPOCHS, as_begun, with_recipe
from trainers.run_folder import MetricsLog, Run, RunFolder, read_run, save_predictions, set_aside
from trainers.sharing.alone import AdapterHead
from trainers.sharing.card import CARD, write_card
from trainers.show import hushed
from trainers.tasks import check_settings, kind_of, load, settle
from trainers.tasks.task import Task
from trainers.training.batch_plan import BatchPlan
from trainers.training.checkpoints import check_checkpoint, newest_checkpoint, set_aside_later
from trainers.training.memory import peak_memory, peak_memory_bytes, reset_peak_memory
from trainers.training.state import trained_tensors

logger = logging.getLogger("trainers")

RECIPE_HEAD = "# To train such a run again: lora-core train --config THIS_FILE --output-dir ANOTHER_FOLDER\n"
OF_TRAINING = ("peak_memory_bytes", "memory", "processes", "device", "torch")
"""Figures of a result that stay those of the process that trained, where a later one writes or scores again."""


def run(config: RunConfig, datasets: Mapping[str, Any] | None = None, trackers: Sequence[Tracker] = ()) -> Run:
    """Train and test a model as ``config`` says, and return what the run folder now holds.

    Under torchrun every process calls this. A finished run is not repeated: with resume="auto" it is read.

    Args:
        datasets: the splits "train", "validation" and perhaps "test" as data sets in memory of the run's task
            (TokenDataset, TextDataset, ImageDataset), with the same labels; None: what ``config.data`` names.
        trackers: tools that track the run, beside those that ``config.track`` names.

    Raises:
        ValueError: the folder holds another run, or a setting or the data is wrong (the message says which).
        Interrupted: a signal has ended training; a checkpoint is written. It is a KeyboardInterrupt.
    """
    if config.dry_run:
        raise ValueError("dry_run is set: trainers.experiment.dry_run shows the plan of a run, `run` trains.")
    with distributed(config.timeout) as world, hushed(config.quiet), _locked(config.output_dir, world):
        return _run(config, datasets, world, trackers)


def dry_run(config: RunConfig, datasets: Mapping[str, Any] | None = None) -> None:
    """Print what `run` would do, and a few examples as the model will see them. Nothing is written.

    Raises:
        ValueError: as `run`.
    """
    check_settings(config)
    check_trackers(config.track)
    with distributed(config.timeout) as world, TemporaryDirectory() as scratch:
        given = world.from_main(lambda: with_recipe(as_begun(config)))
        apart = dataclasses.replace(given, cache=False)
        if is_scratch(given):  # its vocabulary is made from the data, and has to lie somewhere
            apart = dataclasses.replace(apart, output_dir=Path(scratch))
        prepared = _prepared(apart, datasets, world, fresh=True)
        if world.is_main:
            settled = dataclasses.replace(prepared.config, output_dir=given.output_dir)
            plan = plan_of(settled, world, prepared.labels, prepared.model, prepared.data).text()
            examples = preview(prepared.config, prepared.labels, prepared.data["train"])
            end = f"This was a dry run: nothing is written. Without --dry-run it trains into {given.output_dir}."
            Lines().say("\n\n".join([plan, examples, end]))


def finish(folder: str | Path) -> Run:
    """End an interrupted run where it is: its best weights are saved and scored, as at the end of training.

    Under torchrun every process calls this.

    Raises:
        ValueError: there is no run, or none that has written a checkpoint; or as `run`.
    """
    files = RunFolder(Path(folder))
    if not files.is_run():
        raise ValueError(
            f"{folder} is not the folder of a run: it has no {files.settings.name} with {files.metrics.name}. Pass the "
            "folder that training wrote."
        )
    config = RunConfig.from_dict(files.read_settings(), str(files.settings))
    config = dataclasses.replace(config, output_dir=files.path, resume="auto", overwrite=False)
    if not files.is_finished() and not files.saved("step"):
        raise ValueError(
            f"The run in {folder} has written no checkpoint, so there is nothing to finish it with. Repeat its command "
            "with --resume auto."
        )
    if not config.data and not files.is_finished():
        raise ValueError(
            f"The data of {folder} was given in memory, so its run cannot be scored from here. Go on in Python, with "
            'resume="auto" (in Python: trainers.train).'
        )
    with distributed(config.timeout) as world, _locked(files.path, world):
        return _run(config, None, world, ends=True)


@contextmanager
def _locked(folder: Path, world: World) -> Iterator[None]:
    """Hold the run folder's lock, on the main process for all."""
    with ExitStack() as stack:
        world.from_main(lambda: stack.enter_context(locked(folder)))
        yield


@dataclass(frozen=True)
class Prepared:
    """What a run is made from, before anything is trained."""

    config: RunConfig
    """The settings, with what the data decides."""
    labels: tuple[str, ...]
    datasets: dict[str, Any]
    """The splits as they were read, with the ids of ``labels``."""
    model: TaskModel
    data: dict[str, Any]
    """The splits as the model takes them."""
    task: Task
    """The loss and the scores."""


def _prepared(config: RunConfig, datasets: Mapping[str, Any] | None, world: World, *, fresh: bool) -> Prepared:
    """The data, the labels and the model of a run; the vocabulary of one that begins untrained is written if fresh."""
    kind = kind_of(config.task)
    datasets = load(config) if datasets is None else datasets
    for split in ("train", "validation"):
        if split not in datasets:
            raise ValueError(f"{config.data or 'The data'} has no {split} split; it has {', '.join(datasets)}.")
    config, datasets = settle(config, datasets)
    if not config.score_test:
        datasets = {split: dataset for split, dataset in datasets.items() if split != "test"}
    labels = datasets["train"].labels
    datasets = {split: dataset.with_labels(labels) for split, dataset in datasets.items()}
    if is_scratch(config) and fresh:
        world.from_main(lambda: write_vocabulary(config, datasets["train"]))
    model = build(config, labels)
    data = {split: kind.encode(dataset, model, config) for split, dataset in datasets.items()}
    if config.epochs is None:
        config = dataclasses.replace(config, epochs=BatchPlan(data["train"], config, world, None).epochs)
        if world.is_main and config.epochs != EPOCHS:
            logger.info("few training examples, so %d epochs (--epochs N takes others)", config.epochs)
    start_from_inputs(model, data["train"], config, world.device)
    return Prepared(config, labels, datasets, model, data, kind.task(labels, config, data["train"]))


def _run(
    config: RunConfig,
    datasets: Mapping[str, Any] | None,
    world: World,
    trackers: Sequence[Tracker] = (),
    *,
    ends: bool = False,
) -> Run:
    check_settings(config)
    check_trackers(config.track)
    begun = f"run in {config.output_dir.absolute()}"
    if world.from_main(lambda: world.remembers(begun)):
        config = dataclasses.replace(config, resume="auto", overwrite=False)
        if world.is_main:
            logger.warning("torchrun has started the run again: it continues from its newest checkpoint.")
    config = world.from_main(lambda: _computable(as_begun(config), world.device))
    start = world.from_main(lambda: _where_to_begin(config))
    start = dataclasses.replace(start, ends=ends or start.ends)
    checkpoint = start.checkpoint
    if start.finished:
        logger.warning("The run in %s is finished; nothing is left to do.", config.output_dir)
        return read_run(config.output_dir)
    config = given = world.from_main(lambda: with_recipe(config))
    prepared = _prepared(config, datasets, world, fresh=checkpoint is None)
    config = given = dataclasses.replace(config, epochs=prepared.config.epochs)
    inputs = inputs_of(prepared.config, prepared.labels, prepared.data)
    check_processes(inputs, world)
    folder = RunFolder(config.output_dir)
    if checkpoint is not None:
        world.from_main(lambda: _go_on(folder, checkpoint, inputs))
    elif world.is_main:  # only now: a wrong path or name leaves no run folder behind
        if config.overwrite and folder.is_run():
            folder.remove()
        folder.write_inputs(inputs)
        folder.write_settings(given.to_dict())
        write_text(folder.recipe, RECIPE_HEAD + given.to_toml())
    if world.is_main:
        world.remember(begun)
    with tracked(given, trackers, world) as tracking:
        monitor = Monitor(config, world, quiet=config.quiet, tracking=tracking)
        monitor.plan(plan_of(prepared.config, world, prepared.labels, prepared.model, prepared.data))
        result = _trained(prepared, start, world, monitor, inputs.get("model", {}))
        if world.is_main:
            monitor.ending(result)
    return result


def _trained(prepared: Prepared, start: "Start", world: World, monitor: Monitor, base: Mapping[str, Any]) -> Run:
    """Train and test what is prepared, and write all that a finished run has.

    Args:
        base: size and digest of the base model's files.
    """
    config, labels, model = prepared.config, prepared.labels, prepared.model
    data, task = prepared.data, prepared.task
    folder, checkpoint = RunFolder(config.output_dir), start.checkpoint
    reset_peak_memory(world.device)
    with interrupt.deferred():
        splits = data["train"], data["validation"]
        state = fit(model, task, *splits, config, world, config.output_dir, checkpoint, monitor, ends=start.ends)
        if start.ends and world.is_main:
            which = f"epoch {state.best_epoch}" if state.best_epoch else f"step {state.step}, for no epoch was scored"
            logger.info("ended in epoch %d of %d, with the weights of %s", state.epoch + 1, config.epochs, which)
        peak = max(world.gather(peak_memory_bytes(world.device)))
        memory = peak_memory(world.device)
        found = {
            split: predict(model, task, data[split], config, world) for split in ("validation", "test") if split in data
        }
    task = task.decided(found["validation"][1], data["validation"])
    scores = {split: {"loss": loss, **task.metrics(made, data[split])} for split, (loss, made) in found.items()}
    trainable, total = lora_core.parameter_counts(model)
    if is_sharded(model):  # what is saved is an ordinary model
        trained, model = whole(trained_tensors(model)), build(config, labels)
        copy_tensors(trained, trained_tensors(model))
    result = {
        "labels": list(labels),
        **task.decision.to_dict(),
        **scores,
        **({} if config.score_test else {"score_test": False}),
        "trainable": trainable,
        "total": total,
        "best_epoch": state.best_epoch,
        **({"ended_early": True} if start.ends else {}),
        "epochs": state.epoch,
        "seconds": state.seconds,
        "tokens_per_second": state.tokens / state.seconds if state.epoch else 0.0,
        "peak_memory_bytes": peak,
        "memory": memory,
        "processes": world.size,
        "device": str(world.device.type),
        "torch": torch.__version__,
        "files": {},
    }
    result |= start.figures
    if world.is_main:
        for path in start.changed:
            logger.warning("%s was changed after the run: it is kept as %s.", path, set_aside(path))
        for split in found:
            save_predictions(config.output_dir, split, *task.examples(found[split][1], data[split]))
        pairs = getattr(prepared.datasets["train"], "pairs", None) is not None
        save_model(model, config, task.decision, pairs, base)
        if not (folder.weights(config.method) / CARD).exists():  # else it may be its user's
            write_card(config, result, prepared.datasets.get("test", prepared.datasets["validation"]))
        result["files"] = folder.written(config.method, found)
    MetricsLog(config.output_dir, resume_at=state.step, writes=world.is_main).write("result", step=state.step, **result)
    world.barrier()
    return read_run(config.output_dir)


def save_model(model: TaskModel, config: RunConfig, decision: Decision, pairs: bool, base: Mapping[str, Any]) -> Path:
    """Write what was trained where users load it from: adapter/ for LoRA, else the whole model as best/.

    Args:
        decision: what makes labels of the scores.
        pairs: whether it was trained on pairs of texts.
        base: size and digest of the base model's files.
    """
    folder = RunFolder(config.output_dir).weights(config.method)
    if config.method == "lora":
        lora_core.save_adapter(model, folder)
        AdapterHead.of(model, config, image_size(config), base).save(folder)
    else:
        save_pretrained(model, folder)
    kind_of(config.task).save_preprocessing(config, folder, pairs)
    if not decision.is_usual:
        decision.save(folder)
    return folder


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on."""

    checkpoint: Path | None = None
    """What it goes on from; None: from nothing."""
    finished: bool = False
    """Whether nothing is left to do."""
    ends: bool = False
    """Whether the run was ended before all its epochs, and learns nothing more."""
    changed: tuple[Path, ...] = ()
    """Folders of what a finished run wrote that hold something else now, which is not to be lost."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Of the result of a finished run: those that say how it was trained."""


def _computable(config: RunConfig, device: torch.device) -> RunConfig:
    """The settings without int8 where it is not computed in, so that no file of the run says that it was.

    A run that was begun in int8 elsewhere goes on with its settings; the layers say how they compute.
    """
    if config.frozen is None or (why := unsupported(device.type)) is None:
        return config
    folder = RunFolder(config.output_dir)
    goes_on = config.resume and not config.overwrite and folder.settings.is_file()
    if goes_on and folder.read_settings().get("frozen") is not None:
        return config
    logger.warning("--frozen %s is left out: %s.", config.frozen, why)
    return dataclasses.replace(config, frozen=None)


def _where_to_begin(config: RunConfig) -> Start:
    folder = RunFolder(config.output_dir)
    folder.check_writable()
    folder.remove_abandoned()
    if config.resume not in ("", "auto") and Path(config.resume).resolve().parent != folder.checkpoints.resolve():
        raise ValueError(
            f"--resume {config.resume} is not a checkpoint of {folder.path}: give {folder.checkpoints}/step-N, or "
            "auto. To continue another run, name its folder with --output-dir."
        )
    if folder.settings.is_file() and not (config.overwrite and folder.is_run()):
        if not config.resume:
            raise ValueError(
                f"{folder.path} holds a run already. Add --resume auto to continue it or --overwrite to begin anew, or "
                "choose another --output-dir."
            )
        _check_unchanged(folder.read_settings(), config)
        if folder.is_finished():
            return _after_the_end(folder, config)
        if config.resume == "auto":
            return Start(newest_checkpoint(folder.path))
        check_checkpoint(Path(config.resume))
        return Start(Path(config.resume))
    if config.resume not in ("", "auto"):
        raise ValueError(
            f"{folder.path} holds no run to resume: it has no {folder.settings.name}. Use --resume auto to begin one "
            "there."
        )
    folder.read_inputs()  # a file of this name that is none of ours is not written over
    if not folder.settings.is_file() and folder.saved("step"):
        raise ValueError(
            f"{folder.path} holds checkpoints, but no {folder.settings.name} that says of what run. Restore it, move "
            f"{folder.checkpoints} elsewhere, or choose another --output-dir."
        )
    return Start()


def _go_on(folder: RunFolder, checkpoint: Path, inputs: dict[str, Any]) -> None:
    """Make ready to go on from a checkpoint, when nothing else can refuse it."""
    check_unchanged(folder, inputs)
    set_aside_later(folder, int(checkpoint.name.removeprefix("step-")))


def _after_the_end(folder: RunFolder, config: RunConfig) -> Start:
    """Nothing to do where all that a finished run wrote is as it was, and its test split is scored if it should be;
    else its last checkpoint, to write or score it again."""
    lost, scored = folder.lost(config.method), folder.is_finished(config.score_test)
    if not lost and scored:
        return Start(finished=True)
    listed = ", ".join(f"{name} is {what}" for name, what in lost.items()) or "its test split is not scored"
    remedy = "copy it back" if lost else f"score it with lora-core evaluate {folder.path}"
    to_do, is_done = ("write it again", "it is written again") if lost else ("do that", "that is done")
    try:
        checkpoint = newest_checkpoint(folder.path)
    except ValueError as error:
        raise ValueError(f"The run in {folder.path} is finished, but {listed}: {remedy}. {error}") from error
    if checkpoint is None:
        raise ValueError(
            f"The run in {folder.path} is finished, but {listed}, and there is no checkpoint to {to_do} from. "
            f"{remedy[0].upper()}{remedy[1:]}, train again with --overwrite, or choose another --output-dir."
        )
    logger.warning("The run in %s is finished, but %s: %s from %s.", folder.path, listed, is_done, checkpoint)
    changed = {folder.path / name.split("/")[0] for name, what in lost.items() if what == "changed"}
    result = folder.result() or {}
    figures = {name: result[name] for name in OF_TRAINING if name in result}
    return Start(checkpoint, ends=bool(result.get("ended_early")), changed=tuple(sorted(changed)), figures=figures)


def _check_unchanged(old: dict[str, Any], config: RunConfig) -> None:
    new = json.loads(json.dumps(config.to_dict()))
    old = json.loads(json.dumps(RunConfig().to_dict())) | old  # a setting that is newer than the run had its default
    changed = [name for name in new if name not in RESUME_MAY_CHANGE and old[name] != new[name]]
    if changed:
        listed = "; ".join(f"{name} was {old[name]!r}, now {new[name]!r}" for name in changed)
        raise ValueError(
            f"{config.output_dir} was begun with other settings: {listed}. "
            "Resume with the same settings, begin anew with --overwrite, or choose another --output-dir."
        )
