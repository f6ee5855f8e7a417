"""Random kills and signals, for as long as one likes: `python benchmarks/soak.py --kills 200`.

Tiny models train in one process, and in two or three over gloo, with dropout, and checkpoints after every few steps. At
a random moment, in preparation or after a random step, one process or all get SIGKILL, or SIGTERM; what survives is
waited for, and the run resumed, until it comes to its end. Then everything that it wrote, times left out, must be what
the uninterrupted run wrote, bit for bit. Whenever a run ends, what it had computed since its newest checkpoint may be
no more than so many steps; after SIGTERM, nothing.

The processes are forked from this one, which has imported all that they need, and log into the folder. The exit
status is 1 if a promise was broken; the runs of which one was stay in the folder that --folder names. The table of 200
kills or more is kept in tables/soak.txt.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import TABLES, provenance
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tqdm import tqdm

from lora_core.models import build_model, config_from_dict, save_pretrained
from trainers.cli import exit_on_user_error
from trainers.config import RunConfig
from trainers.data.tokens.reader import TokenDataset
from trainers.experiment import run
from trainers.training.checkpoints import newest_checkpoint
from trainers.training.state import TrainState

WORDS = ("the", "gene", "binds", "il2", "of", "nfkb", "cells", "induces")
TAGS = ("O", "B-DNA", "O", "B-protein", "O", "B-protein", "O", "O")
TIMES = {"seconds", "epoch_seconds", "tokens_per_second", "peak_memory_bytes", "memory"}
STEPS, EPOCHS, BATCH = 18, 3, 8
WHOLE = 200
"""Kills of which the table is kept."""
PATIENCE, GRACE = 120.0, 30.0
"""Seconds after which processes are stuck; and, of which one has ended, are killed."""

KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "LoRA": (1, {}),
    "LoRA, fp16, awp, parts": (1, {"precision": "fp16", "adversarial": "awp", "micro_batch_size": 3}),
    "LoRA, two processes": (2, {"micro_batch_size": 1}),
    "full, bf16, two processes": (2, {"method": "full", "precision": "bf16"}),
    "LoRA, three processes": (3, {}),
}
"""Number of processes and settings."""


@dataclass
class Tally:
    """What happened to the runs of a kind."""

    runs: int = 0
    equal: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    """Signals by name."""
    statuses: Counter[int] = field(default_factory=Counter)
    """How processes ended that were not to end."""
    lost: list[int] = field(default_factory=list)
    """Steps computed in vain, each time that a run ended."""
    broken: list[str] = field(default_factory=list)
    """Promises that were not kept."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="signals over all kinds of runs (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps between checkpoints (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the runs go (default: a temporary folder)")
    options = parser.parse_args()
    tqdm.monitor_interval = 0  # no thread of tqdm's in a process that forks
    where = provenance()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["LORA_CACHE_DIR"] = str(folder / "cache")
        soak = Soak(folder, options.kills // len(KINDS), options.steps, random.Random(options.seed))
        tallies = {kind: soak.tally(kind) for kind in KINDS}
    lines = table(tallies, options.steps)
    print("\n" + "\n".join(lines))
    if options.kills >= WHOLE:
        TABLES.mkdir(exist_ok=True)
        (TABLES / "soak.txt").write_text("\n".join([where, "", *lines, ""]), encoding="utf-8")
    sys.exit(any(tally.broken for tally in tallies.values()))


class Soak:
    """Runs that are killed, in a folder."""

    def __init__(self, folder: Path, kills: int, every: int, chance: random.Random) -> None:
        """
        Args:
            kills: signals for each kind.
            every: steps between checkpoints.
        """
        self.folder, self.kills, self.every, self.chance = folder, kills, every, chance
        folder.mkdir(parents=True, exist_ok=True)
        self.model = write_model(folder / "model")
        self.data = {"train": sentences(BATCH * STEPS // EPOCHS - 2, seed=0), "validation": sentences(12, seed=1)}

    def tally(self, kind: str) -> Tally:
        """Kill runs of a kind until enough signals were sent."""
        tally = Tally()
        straight = self.folder / f"{kind}, straight"
        started = time.monotonic()
        assert self._wait(self._start(kind, straight)) == [0] * KINDS[kind][0], straight
        duration = time.monotonic() - started
        while tally.sent.total() < self.kills:
            tally.runs += 1
            folder = self.folder / f"{kind}, {tally.runs}"
            broken = len(tally.broken)
            while not self._once(kind, folder, duration, tally):
                pass
            if different := differences(folder, straight):
                tally.broken.append(f"{folder.name}: not as uninterrupted: {', '.join(different)}")
            else:
                tally.equal += 1
            if len(tally.broken) == broken:
                shutil.rmtree(folder)
                for log in self.folder.glob(f"{folder.name}.*"):
                    log.unlink()
        return tally

    def _once(self, kind: str, folder: Path, duration: float, tally: Tally) -> bool:
        """Begin or resume a run and signal it; whether it came to its end."""
        before = step_of(newest_checkpoint(folder))
        processes = self._start(kind, folder)
        whom = self.chance.choice([processes, processes[:1], processes[-1:]])
        signum = self.chance.choice([signal.SIGKILL, signal.SIGTERM])
        steps = self.chance.randint(0, STEPS)
        if tally.sent.total() < self.kills and steps <= STEPS - before:  # else it comes to its end
            self._wait_for_a_moment(folder, processes, steps, duration)
            for process in whom:
                with contextlib.suppress(ProcessLookupError):  # it has ended already, but for being waited for
                    os.kill(process, signum)
            tally.sent[signum.name] += 1
        statuses = self._wait(processes)
        if statuses == [0] * len(statuses):
            return True
        tally.statuses.update(status for status in statuses if status)
        reached = self._reached(folder, before)
        lost = reached - step_of(newest_checkpoint(folder))
        tally.lost.append(lost)
        if lost > (0 if set(statuses) == {128 + signal.SIGTERM} else self.every):
            tally.broken.append(f"{folder.name}: {lost} steps lost after {signum.name}, statuses {statuses}")
        if signum == signal.SIGTERM and before < reached < STEPS and set(statuses) != {128 + signum}:
            tally.broken.append(f"{folder.name}: {signum.name} to {len(whom)} in training ended with {statuses}")
        if -1 in statuses:
            tally.broken.append(f"{folder.name}: stuck after {signum.name} to {len(whom)}")
        return False

    def _wait_for_a_moment(self, folder: Path, processes: list[int], steps: int, duration: float) -> None:
        """Until so many steps are done, and a little longer; or, if 0, for some time in which data is prepared."""
        notes = Path(f"{folder}.0.steps")
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while steps and not (notes.is_file() and len(notes.read_text().split()) >= steps):
            if any(os.waitid(os.P_PID, process, ended) for process in processes):
                return
            time.sleep(0.002)
        time.sleep(self.chance.uniform(0, 0.1 if steps else duration / 2))

    def _start(self, kind: str, folder: Path) -> list[int]:
        """Begin the processes of a run, or go on with it; their numbers."""
        processes, settings = KINDS[kind]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        config = RunConfig(
            model=str(self.model), output_dir=folder, resume="auto", fresh_head=True, epochs=EPOCHS, batch_size=BATCH,
            hidden_dropout=0.1, learning_rate=0.01, metric="loss", checkpoint_steps=self.every, **settings,
        )  # fmt: skip
        return [self._fork(config, world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(processes)]

    def _fork(self, config: RunConfig, environment: dict[str, str]) -> int:
        process = os.fork()
        if process:
            return process
        status = 1
        try:
            os.environ |= environment
            rank = environment["RANK"]
            log = os.open(f"{config.output_dir}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            note_steps(Path(f"{config.output_dir}.{rank}.steps"))
            exit_on_user_error(lambda: run(config, self.data) and None)
            status = 0
        except SystemExit as exit_:
            status = int(str(exit_.code))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _wait(self, processes: list[int]) -> list[int]:
        """How each process ended. As torchrun does, the others of one that ended badly are asked to stop, and killed
        when they have not in 30 seconds. -1: none has ended for long, and this one was killed."""
        statuses: dict[int, int] = {}
        begun, asked = time.monotonic(), 0.0
        while running := [process for process in processes if process not in statuses]:
            for process in running:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    statuses[process] = os.waitstatus_to_exitcode(status)
            now = time.monotonic()
            left = [process for process in running if process not in statuses]
            if any(statuses.values()) and not asked:
                asked = now
                for process in left:
                    os.kill(process, signal.SIGTERM)
            elif now - (asked + GRACE if asked else begun + PATIENCE) > 0:
                for process in left:
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                    statuses[process] = -signal.SIGKILL if asked else -1
            time.sleep(0.005)
        return [statuses[process] for process in processes]

    def _reached(self, folder: Path, before: int) -> int:
        """The last step that any process has computed since it was begun from the step ``before``; the notes go."""
        reached = before
        for notes in self.folder.glob(f"{folder.name}.*.steps"):
            steps = [int(line) for line in notes.read_text().split()]
            if steps and steps[0] != before + 1:
                raise AssertionError(f"{folder.name} resumed at step {steps[0]}, its checkpoint was {before}")
            reached = max([reached, *steps])
            notes.unlink()
        return reached


def note_steps(path: Path) -> None:
    """From now on every step's number is appended to the file when it is computed."""
    notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    end_step = TrainState.end_step

    def noted(self: TrainState, labels: int, tokens: int) -> None:
        end_step(self, labels, tokens)
        os.write(notes, f"{self.step}\n".encode())

    TrainState.end_step = noted


def step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.removeprefix("step-")) if checkpoint else 0


def differences(folder: Path, straight: Path) -> list[str]:
    """What of the files in two run folders is not the same, but for times and where they are."""
    ours, theirs = contents(folder), contents(straight)
    missing = [f"{name} is missing" for name in theirs.keys() - ours.keys()]
    left = [f"{name} is left over" for name in ours.keys() - theirs.keys()]
    changed = [f"{name} differs" for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
    return sorted(missing + left + changed)


def contents(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.suffix in (".json", ".jsonl") and path.name != "manifest.json":  # its digests follow the times
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            without = TIMES | {"output_dir"}
            found[name] = [{k: v for k, v in json.loads(line).items() if k not in without} for line in lines]
        elif path.suffix == ".md":  # a card bears the run's name and time
            found[name] = [
                line
                for line in path.read_text().splitlines()
                if not line.endswith(f" {folder.name}") and "It took" not in line
            ]
        elif path.is_file() and path.name != "manifest.json":
            found[name] = path.read_bytes()
    return found


def sentences(count: int, seed: int) -> TokenDataset:
    chance = random.Random(seed)
    chosen = [chance.choices(range(len(WORDS)), k=chance.randint(3, 9)) for _ in range(count)]
    return TokenDataset.from_lists(
        [[WORDS[number] for number in row] for row in chosen], [[TAGS[number] for number in row] for row in chosen]
    )


def write_model(folder: Path) -> Path:
    """A random BERT of two layers, with a tokenizer of whole words."""
    vocabulary = {piece: number for number, piece in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
    config = config_from_dict(
        {"model_type": "bert", "vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 24, "type_vocab_size": 1}
    )  # fmt: skip
    save_pretrained(build_model(config, "token-classification", ["O"], seed=0), folder)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def table(tallies: dict[str, Tally], every: int) -> list[str]:
    """The lines of a table: signals sent, runs, and steps lost each time that a run ended."""
    lines = [f"{'':<28}{'SIGKILL':>9}{'SIGTERM':>9}{'runs':>6}{'bit-equal':>11}{'most lost':>11}{'mean lost':>11}"]
    for kind, tally in tallies.items():
        mean = sum(tally.lost) / max(1, len(tally.lost))
        lines.append(f"{kind:<28}{tally.sent['SIGKILL']:>9}{tally.sent['SIGTERM']:>9}{tally.runs:>6}{tally.equal:>11}"
                     f"{max(tally.lost, default=0):>11}{mean:>11.1f}")  # fmt: skip
    lines.append(f"A checkpoint every {every} steps; lost are steps, each time that a run ended.")
    for kind, tally in tallies.items():
        lines.append(f"{kind}: processes ended with {dict(tally.statuses)}")
        lines += [f"BROKEN {broken}" for broken in tally.broken]
    return lines


if __name__ == "__main__":
    main()
