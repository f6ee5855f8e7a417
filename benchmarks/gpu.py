"""Runs the parts of gpu_parts.py one after another, in order of worth, and keeps what each has found: see gpu.sh.

A part is a process of its own with a limit of its own: one that fails, hangs or takes the GPU down costs its own row
and no more. After every part gpu.json and gpu.txt are written anew, so that a machine that goes away leaves what it has
done. This file needs nothing but Python.
"""

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
LEAST_SECONDS = 8
"""A part is not begun with less than this left: starting Python and torch takes as much."""


class Part(NamedTuple):
    """Something to find out."""

    name: str
    measure: str
    """A function of gpu_parts.py."""
    settings: dict[str, Any]
    """Its keyword arguments."""
    seconds: int
    """After which it is ended."""


def training(size: str, who: str, precision: str, *, seconds: int = 45, **changes: bool) -> Part:
    """A model that ``who``, "ours" or "peers", trains; ``changes`` as `gpu_parts.training` takes them."""
    what = [name.replace("_", " ") for name, wanted in changes.items() if wanted and name != "full"]
    name = ", ".join([size, "full" if changes.get("full") else "LoRA", precision, who, *what])
    return Part(name, "training", {"size": size, "ours": who == "ours", "precision": precision, **changes}, seconds)


PARTS = (
    Part("machine", "machine", {}, 40),
    Part("CUDA tests", "tests", {}, 120),
    training("BERT-base", "ours", "bf16"),
    training("BERT-base", "peers", "bf16"),
    training("BERT-base", "ours", "bf16", full=True),
    training("BERT-base", "ours", "fp16"),
    training("BERT-base", "peers", "fp16"),
    training("MiniLM-L6", "ours", "bf16"),
    training("MiniLM-L6", "peers", "bf16"),
    training("ViT-base", "ours", "bf16"),
    training("ViT-base", "peers", "bf16"),
    training("BERT-base", "peers", "bf16", compile=True, seconds=80),
    training("BERT-base", "ours", "bf16", compile=True, seconds=80),
    training("BERT-base", "ours", "bf16", plain=True),
    training("BERT-base", "peers", "bf16", unpadded=True),
    training("BERT-base", "peers", "bf16", full=True),
    Part("MiniLM-L6, ONNX on CUDA", "onnx", {"size": "MiniLM-L6"}, 40),
    training("BERT-base", "ours", "bf16", gradient_checkpointing=True),
    training("ViT-base", "ours", "bf16", full=True),
    training("ViT-base", "ours", "fp16"),
    training("ViT-base", "peers", "fp16"),
    training("MiniLM-L6", "ours", "fp16"),
    training("MiniLM-L6", "peers", "fp16"),
    training("MiniLM-L6", "ours", "bf16", full=True),
    training("MiniLM-L6", "peers", "bf16", full=True),
    training("MiniLM-L6", "ours", "bf16", compile=True, seconds=60),
    training("ViT-base", "peers", "bf16", full=True),
    training("ViT-base", "ours", "bf16", compile=True, seconds=60),
    training("ViT-base", "peers", "bf16", compile=True, seconds=60),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What this library does on a GPU; see benchmarks/README.md.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu tries all with tiny models")
    parser.add_argument("--out", type=Path, default=HERE / "tables", help="folder of gpu.json and gpu.txt")
    parser.add_argument("--seconds", type=float, default=530, help="for all parts together")
    parser.add_argument("--only", nargs="+", default=[], help="only the parts of which one of these is in the name")
    options = parser.parse_args(arguments)
    chosen = [part for part in PARTS if not options.only or any(words in part.name for words in options.only)]
    if not chosen:
        parser.error(f"--only {' '.join(options.only)} leaves nothing. The parts: {'; '.join(p.name for p in PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "commit": git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain") else ""),
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "device": options.device,
        "parts": [],
    }
    end = time.monotonic() + options.seconds
    for part in chosen:
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            row: dict[str, Any] = {"status": "no time was left"}
        else:
            command = [sys.executable, str(HERE / "gpu_parts.py"), part.measure, options.device]
            row = run([*command, json.dumps(part.settings)], min(left, part.seconds))
        report["parts"].append({"name": part.name, "measure": part.measure, **part.settings, **row})
        keep(report, options.out)
        print(f"{part.name}: {row['status']} {row.get('seconds', '')}", flush=True)
    print(f"\n{(options.out / 'gpu.txt').read_text()}\nin {options.out}")
    return 0 if any(row["status"] == "ok" for row in report["parts"]) else 1


def run(command: Sequence[str], limit: float) -> dict[str, Any]:
    """What a command has found: the JSON object of its last line, and how it ended within ``limit`` seconds.

    Nothing that it has started outlives it.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                               start_new_session=True)  # fmt: skip
    try:
        out, errors = process.communicate(timeout=limit)
        status = "ok" if process.returncode == 0 else f"failed with status {process.returncode}"
    except subprocess.TimeoutExpired:
        status = f"took more than {limit:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        out, errors = process.communicate()
    row: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - started, 1)}
    try:
        found = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        found = None
    if isinstance(found, dict):
        row |= found
    elif status == "ok":
        row["status"] = "failed: it printed no result"
    if row["status"] != "ok":
        row["errors"] = errors.strip()[-3000:]
    return row


def keep(report: dict[str, Any], folder: Path) -> None:
    """Write what is known by now, each file in one step."""
    for name, text in (("gpu.json", json.dumps(report, indent=1)), ("gpu.txt", table(report))):
        beside = folder / f"{name}.new"
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(folder / name)


def table(report: dict[str, Any]) -> str:
    """The report for people: a line for each part."""
    machine = next((row for row in report["parts"] if row["measure"] == "machine"), {})
    rates = machine.get("product_rates", {})
    lines = [f"commit {report['commit']}, {report['date']}, {machine.get('machine', 'unknown machine')}"]
    lines += [f"matrix product in {name}: {rate / 1e12:,.1f} TFLOP/s" for name, rate in rates.items()]
    head = f"{'rate':>11}{'of peers':>10}{'of product':>12}{'peak MB':>9}{'padding':>9}"
    lines += ["", f"{'tokens or images a second':<54}{head}"]
    for row in report["parts"]:
        if row["measure"] != "training":
            continue
        if "rate" not in row:
            lines.append(f"{row['name']:<54}{row.get('skipped') or row['status']}")
            continue
        peers = peer_rate(report, row)
        best = rates.get(row["precision"])
        share = f"{row['operations'] / best:.0%}" if best else ""
        ratio = f"{row['rate'] / peers:.2f}" if peers else ""
        lines.append(
            f"{row['name']:<54}{row['rate']:>11,.0f}{ratio:>10}{share:>12}{row['peak_bytes'] / 1e6:>9,.0f}"
            f"{row['padding']:>9.0%}"
        )
    lines.append("")
    for row in report["parts"]:
        if row["measure"] in ("tests", "onnx"):
            figures = {key: row[key] for key in ("passed", "failed", "skipped", "error", "rate", "torch_rate")
                       if key in row}  # fmt: skip
            lines.append(f"{row['name']}: {row['status']}, {figures}")
    return "\n".join(lines)


def peer_rate(report: dict[str, Any], ours: dict[str, Any]) -> float | None:
    """The rate of the peer's part with the same model, method and precision, compiled if ours is."""
    if not ours["ours"]:
        return None
    same = ("size", "precision", "full", "compile")
    for row in report["parts"]:
        is_peer = row["measure"] == "training" and not row["ours"] and not row.get("unpadded")
        if is_peer and all(row.get(name) == ours.get(name) for name in same):
            return row.get("rate")
    return None


def git(*arguments: str) -> str:
    """What a git command prints; nothing outside a checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
