"""The READMEs' Python snippets run as they stand and print what they say; what they name is there."""

import io
import re
from functools import partial
from pathlib import Path

import pytest
import torch

import lora_core
from lora_core.adapters import hosts
from lora_core.models import load_pretrained

ROOT = Path(__file__).resolve().parent.parent
READMES = ["README.md", *(f"{folder}/README.md" for folder in ("lora_core", "trainers", "examples", "benchmarks"))]


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


SNIPPETS = [
    pytest.param(snippet, id=f"{name}-{number}")
    for name in READMES
    for number, snippet in enumerate(re.findall(r"```python\n(.*?)```", text_of(name), flags=re.DOTALL), start=1)
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs_and_prints_what_it_says(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    promised = re.findall(r"print\(.*\)\s+# (.+)", snippet)
    assert promised
    own = io.StringIO()  # training prints rows of its own
    exec(compile(snippet, "README.md", "exec"), {"print": partial(print, file=own)})
    printed = own.getvalue().splitlines()
    assert len(printed) == len(promised)
    for line, promise in zip(printed, promised, strict=True):
        assert line
        assert promise.startswith(line), (line, promise)


CALLS = [
    pytest.param(row, id=row.strip("| ").split(" |")[0])
    for row in text_of("lora_core/README.md")
    .split("| to do this | call |\n|---|---|\n")[1]
    .split("\n\n")[0]
    .splitlines()
]


def calls_of(row):
    """The code of a row. An argument alone stands for the call before it, with it in the place of the last."""
    call = ""
    for code in re.findall(r"`(.+?)`", row.split(" | ", 1)[1]):
        is_argument = "(" not in code.split("=")[0]
        call = f"{call[: call.index(', ')]}, {code})" if is_argument else code
        yield call


@pytest.mark.parametrize("row", CALLS)
def test_every_call_of_the_table_runs(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    input_ids = torch.tensor([[101, 4962, 102]] * 3)
    names = {name: getattr(lora_core, name) for name in lora_core.__all__}
    names |= {
        "lora_core": lora_core,
        "torch": torch,
        "input_ids": input_ids,
        "batches": [{"input_ids": input_ids}] * 20,
    }
    model = load_pretrained("embedded", "token-classification", labels=["O", "B-GENE", "I-GENE"])
    lora_core.inject_lora(model, r=8, adapter_name="a")
    lora_core.add_adapter(model, "b", r=4, target_modules="all-linear")
    for call in calls_of(row):
        if call.startswith("inject_lora("):
            model = load_pretrained("embedded", "token-classification", labels=["O", "B-GENE", "I-GENE"])
        exec(call, names | {"model": model})
    assert model(input_ids).shape == (3, 3, 3)
    assert bool(list(hosts(model))) == ("eject_lora" not in row)


def test_the_door_is_narrow_enough_to_read():
    assert len(text_of("README.md").splitlines()) <= 130


def test_install_commands_name_extras_that_exist():
    extras = {extra for name in READMES for extra in re.findall(r"-e '\.\[(\w+)\]'", text_of(name))}
    pyproject = text_of("pyproject.toml")
    assert extras >= {"demo", "test"}
    for extra in extras:
        assert re.search(rf"^{extra} = \[", pyproject, flags=re.MULTILINE)


@pytest.mark.parametrize("name", READMES)
def test_files_that_a_readme_names_exist(name):
    for link in re.findall(r"\]\(([\w/.-]+)\)", text_of(name)):
        assert (ROOT / name).parent.joinpath(link).exists(), link
    for path in re.findall(r"\b(examples/[\w/]+\.(?:py|toml|png))", text_of(name)):
        assert (ROOT / path).is_file(), path


OTHERS = {"standalone", "nnodes", "nproc-per-node", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "max-restarts",
          "nodes", "ntasks-per-node", "gpus-per-node", "time", "signal", "requeue", "open-mode", "kill-on-bad-exit",
          "kills", "only", "no-deps", "target", "dist"}  # fmt: skip
"""Flags of torchrun, of SLURM, of benchmarks, of pytest and of pip."""


def test_settings_that_a_readme_names_are_settings():
    """Every long flag in a README is one of a verb, or of an example."""
    folders = (ROOT / "trainers", ROOT / "trainers" / "commands", ROOT / "examples")
    sources = [path for folder in folders for path in folder.glob("*.py")]
    sources.append(ROOT / "trainers" / "service" / "settings.py")
    known = set(re.findall(r"\b\w+\b", " ".join(path.read_text(encoding="utf-8") for path in sources)))
    for name in READMES:
        for flag in re.findall(r"(?<![\w-])--([a-z][\w-]+)", text_of(name)):
            if flag not in OTHERS:
                assert flag.removeprefix("no-").replace("-", "_") in known, (name, flag)
