"""Checkpoints on disk: written whole or not at all, checked before they are read.

A checkpoint is a folder `checkpoints/step-N` with tensors.safetensors (trained weights, optimiser moments, random
states), state.json (progress, schedule, scaler) and manifest.json (sha256 of both). It is written under a temporary
name, flushed to disk and renamed, so a folder of that name is complete; the manifest also finds later damage.

Damaged is what lacks a file or has another digest. An error of the disk is no damage: it stops the run, which can go
on when the disk answers again. Removed is only what this run wrote and no longer needs; what else stands in the way is
set aside.
"""

import json
import logging
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_core.files import discard, make_folder, read_json_object, replacing, sha256_of_file
from trainers.processes.distributed import World
from trainers.processes.fsdp import copy_tensors, whole
from trainers.run_folder import RunFolder, set_aside
from trainers.training.precision import dropout_drawn_by
from trainers.training.state import TrainState, random_state, trained_tensors

logger = logging.getLogger("trainers")

NO_ROOM = "Make room there and go on with --resume auto; --keep-checkpoints 1 takes the least."
TENSORS, PROGRESS, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
FILES = (TENSORS, PROGRESS)
"""What a manifest lists."""
LARGEST_MANIFEST = 1 << 16
"""Bytes; two digests take some 200."""
RUN = "run"
"""The entry of state.json that tells whose it is: RunFolder.run_id; older versions wrote none."""


DROPOUT = "dropout"
"""The entry that tells what drew the masks of dropout; older versions wrote none, for which torch did."""


class Damaged(ValueError):
    """A checkpoint is not as it was written; the message says in what, and does not name the checkpoint."""


def load_checkpoint(state: TrainState, checkpoint: Path, world: World) -> None:
    """Continue from a checkpoint. Its best weights are written again where they are damaged and it holds them itself.

    Raises:
        ValueError: it is damaged, or belongs to a run with other trained parameters.
        OSError: the disk does not give it.
    """
    check_checkpoint(checkpoint)
    progress = _read_progress(checkpoint)
    progress.pop(RUN, None)
    drawn_by = dropout_drawn_by(state.model)
    if progress.pop(DROPOUT, "torch") != drawn_by and world.is_main:
        logger.warning(
            "The run began with other masks of dropout than %s draws, with which it goes on: it will be as good, but "
            "not equal bit for bit (lora_core/README.md on the C++ kernels).",
            drawn_by,
        )
    try:
        state.restore(load_file(checkpoint / TENSORS), progress, world)
    except (LookupError, TypeError, AttributeError, RuntimeError, OverflowError, SafetensorError) as error:
        raise ValueError(
            f"{checkpoint} does not hold what a checkpoint of this version holds ({type(error).__name__}: {error}). "
            "Name another with --resume, or begin anew with --overwrite."
        ) from error
    except ValueError as error:
        raise ValueError(f"{checkpoint} {error}") from error
    if _holds_its_best(progress):  # the best weights are the model's own, just now
        best = checkpoint.parent / f"best-{state.best_epoch}"
        problem = world.from_main(lambda: damage(best))
        if problem:
            if world.is_main:
                logger.warning("%s is written again from %s: %s.", best, checkpoint.name, problem)
            save_best(state, checkpoint.parent.parent, world)
    world.barrier()


def save_checkpoint(state: TrainState, folder: Path, keep: int, world: World) -> None:
    """Write `checkpoints/step-N`, remove what is older than the newest ``keep`` and set aside what is later."""
    mine, mine_tensors = random_state(world)
    randoms, losses, random_tensors = [], [], {}
    for other, loss, tensors in world.gather((mine, state.read_loss(), mine_tensors)):
        randoms.append(other)
        losses.append(loss)
        random_tensors |= tensors
    tensors = state.tensors()
    if world.is_main:
        files = RunFolder(folder)
        progress = {
            **state.progress(),
            "random": randoms,
            "epoch_losses": losses,
            DROPOUT: dropout_drawn_by(state.model),
        }
        _write(files, f"step-{state.step}", tensors | random_tensors, progress)
        remove_older(files, state.step, keep)
    world.barrier()


def remove_older(files: RunFolder, step: int, keep: int) -> None:
    """Remove what is older than the newest ``keep`` checkpoints up to ``step``, and set aside what is later."""
    set_aside_later(files, step)
    try:
        _remove_unneeded(files, keep)
    except OSError as error:  # the newest is there; the next one, or the end of training, will see to the old
        logger.warning("Old checkpoints in %s are not removed for now: %s", files.checkpoints, error)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder that can be gone on from; None where there is none at all.

    Those that cannot are skipped with a warning.

    Raises:
        ValueError: there are some, and none can be used. To begin anew would delete them, so the user must say so.
        OSError: the disk does not give one.
    """
    skipped: list[str] = []
    for _, checkpoint in RunFolder(folder).saved("step"):
        problem = unusable(checkpoint)
        if problem is None:
            for message in skipped:
                logger.warning("%s.", message)
            return checkpoint
        skipped.append(f"{checkpoint} is skipped: {problem}")
    if skipped:
        raise ValueError(
            f"None of the checkpoints can be gone on from: {'; '.join(skipped)}. Restore one of them, or begin anew "
            "with --overwrite, which deletes them, or choose another --output-dir."
        )
    return None


def check_checkpoint(checkpoint: Path) -> None:
    """Check that a run can go on from the checkpoint that its user names.

    Raises:
        ValueError: it is damaged, or another run's.
        OSError: the disk does not give it.
    """
    problem = unusable(checkpoint)
    if problem:
        raise ValueError(
            f"{checkpoint} cannot be resumed from: {problem}. Name another checkpoint, or use --resume auto."
        )


def unusable(checkpoint: Path) -> str | None:
    """Why its run cannot go on from a checkpoint, down to the best weights that it refers to; None when it can.

    Raises:
        OSError: the disk does not give a file: neither damaged nor whole.
    """
    problem = damage(checkpoint)
    if problem:
        return problem
    try:
        progress = _read_progress(checkpoint)
    except Damaged as error:
        return str(error)
    if not _bears(progress, RunFolder(checkpoint.parent.parent).run_id()):
        return "another run wrote it, with other settings or inputs"
    epoch = progress.get("best_epoch")
    if not epoch or _holds_its_best(progress):
        return None
    problem = damage(checkpoint.with_name(f"best-{epoch}"))
    return f"best-{epoch}, which it refers to, is damaged: {problem}" if problem else None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None when they are as they were written.

    Raises:
        OSError: the disk does not give a file, which may well be whole.
    """
    try:
        for name, digest in _read_manifest(checkpoint).items():
            if sha256_of_file(_regular_file(checkpoint / name)) != digest:
                return f"{name} is not as it was written"
    except Damaged as error:
        return str(error)
    except OSError as error:
        raise OSError(
            f"{error.filename or checkpoint} cannot be read ({error.strerror or error}). That is no damage of the "
            "checkpoint: nothing was changed. Run the same again when the disk answers."
        ) from error
    return None


def set_aside_later(files: RunFolder, step: int) -> None:
    """Set this run's checkpoints after ``step`` aside, with copies of the best weights that they refer to.

    They were damaged, or the user went back behind them: they must not be taken for the newest, nor be lost.
    """
    for number, path in files.saved("step"):
        if number > step and _is_ours(path, files.run_id()):
            best = path.with_name(f"best-{_best_epoch(path)}")
            kept = set_aside(path)
            copy = kept.with_name(best.name)
            if best.is_dir() and not copy.exists():
                with replacing(copy) as folder:
                    shutil.copytree(best, folder)
            logger.warning("The run goes on from step %d: %s is kept as %s; delete it if you do not want it.",
                           step, path.name, kept.relative_to(files.path))  # fmt: skip


def save_best(state: TrainState, folder: Path, world: World) -> None:
    """Keep the trained weights of the best epoch so far, averaged ones where there are, in `checkpoints/best-EPOCH`."""
    with state.average.in_model():
        tensors = whole(trained_tensors(state.model))
        if world.is_main:
            _write(RunFolder(folder), f"best-{state.best_epoch}", tensors, {})
    world.barrier()


def restore_best(state: TrainState, folder: Path, world: World) -> None:
    """Put the best epoch's weights back into the model."""
    best = RunFolder(folder).checkpoints / f"best-{state.best_epoch}"
    problem = damage(best)
    if problem:
        raise ValueError(f"{best} cannot be read: {problem}. Resume from a checkpoint, or train again.")
    tensors, trained = load_file(best / TENSORS), trained_tensors(state.model)
    if {name: tensor.shape for name, tensor in tensors.items()} != {name: t.shape for name, t in trained.items()}:
        raise ValueError(f"{best} holds other trained parameters than this run. Resume with the settings of the first.")
    copy_tensors(tensors, trained)
    world.barrier()


def _write(files: RunFolder, name: str, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Write a checkpoint so that it is either complete or as it was."""
    target = make_folder(files.checkpoints) / name
    if os.path.lexists(target) and not _is_ours(target, files.run_id()):
        logger.warning("%s is not this run's: it is kept as %s.", target, set_aside(target))
    if files.run_id():
        progress = {**progress, RUN: files.run_id()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    # Ours may be there: the same step or epoch, repeated after an interruption.
    with replacing(target, size, NO_ROOM) as folder:
        folder.mkdir()
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / TENSORS)
        (folder / PROGRESS).write_text(json.dumps(progress, indent=1), encoding="utf-8")
        manifest = {name: sha256_of_file(folder / name) for name in FILES}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _remove_unneeded(files: RunFolder, keep: int) -> None:
    """Remove all of this run's checkpoints but the newest ``keep``, and the best weights that these do not refer to."""
    steps, bests = ([path for _, path in files.saved(kind) if _is_ours(path, files.run_id())]
                    for kind in ("step", "best"))  # fmt: skip
    needed = [*steps[:keep], *(path.with_name(f"best-{_best_epoch(path)}") for path in steps[:keep])]
    for path in (*steps, *bests):
        if path not in needed:
            discard(path)


def _is_ours(checkpoint: Path, run_id: str) -> bool:
    """Whether a folder is a checkpoint that this run, or an older version, wrote; whole or damaged."""
    if checkpoint.is_symlink():
        return False
    try:
        _read_manifest(checkpoint)
    except Damaged:
        return False
    try:
        return _bears(_read_progress(checkpoint), run_id)
    except Damaged:
        return True


def _bears(progress: dict[str, Any], run_id: str) -> bool:
    """Whether a checkpoint is that of the run, as far as the two say whose they are."""
    return not run_id or progress.get(RUN, run_id) == run_id


def _best_epoch(checkpoint: Path) -> int | None:
    try:
        return _read_progress(checkpoint).get("best_epoch")
    except Damaged:  # a damaged checkpoint needs nothing
        return None


def _holds_its_best(progress: dict[str, Any]) -> bool:
    """Whether a checkpoint's own weights are those of its best epoch, at the end of which it was written."""
    return bool(progress.get("best_epoch")) and (
        progress.get("batch") == 0 and progress.get("epoch") == progress["best_epoch"]
    )


def _read_manifest(checkpoint: Path) -> dict[str, str]:
    """The digests of the two files."""
    path = _regular_file(checkpoint / MANIFEST)
    if path.stat().st_size > LARGEST_MANIFEST:
        raise Damaged(f"{MANIFEST} is too large for one")
    manifest = _read_object(path)
    if manifest.keys() != set(FILES):
        raise Damaged(f"{MANIFEST} lists {sorted(manifest)[:5]}, expected {' and '.join(FILES)}")
    return manifest


def _read_progress(checkpoint: Path) -> dict[str, Any]:
    return _read_object(_regular_file(checkpoint / PROGRESS))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path, "")
    except ValueError as error:
        raise Damaged(f"{path.name} is damaged ({error.__cause__ or 'it holds no JSON object'})") from error


def _regular_file(path: Path) -> Path:
    """The path, of a file that can be read without waiting for a writer, as for a pipe."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"it is incomplete: {path.name} is missing") from error
    if not stat.S_ISREG(mode):
        raise Damaged(f"{path.name} is not a regular file")
    return path
