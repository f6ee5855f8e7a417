"""Imports point one way, examples and benchmarks -> trainers -> lora_core, and importing lora_core is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"PIL", "onnxruntime", "sklearn", "seqeval", "tokenizers", "transformers", "peft", "matplotlib",
         "huggingface_hub", "tqdm", "tyro", "scipy", "pandas", "onnx"}  # fmt: skip
OPPONENTS = {"transformers", "peft", "optimum", "accelerate", "datasets"}


def imported(path):
    """Top-level packages that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; name the package"
            assert node.module
            yield node.module.split(".")[0]


def sources(folder):
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("lora_core", {"trainers", "examples", "benchmarks", "tests"} | OPPONENTS),
        ("trainers", {"examples", "benchmarks", "tests"} | OPPONENTS),
        ("examples", {"benchmarks", "tests"} | OPPONENTS),
    ],
)
def test_imports_point_one_way(folder, forbidden):
    wrong = {
        str(path.relative_to(ROOT)): names for path in sources(folder) if (names := forbidden & set(imported(path)))
    }
    assert not wrong


def test_lora_files_need_torch_and_safetensors_only():
    allowed = {"torch", "safetensors", "lora_core", *sys.stdlib_module_names}
    for path in sources("lora_core"):
        if path.relative_to(ROOT).parts[1] not in ("models", "export"):
            assert set(imported(path)) <= allowed, path


@pytest.mark.parametrize("module", ["lora_core", "lora_core.models", "trainers.cli"])
def test_what_an_import_brings_along(module):
    # torch itself imports what it finds (tqdm, for one), so only what comes on top of it counts.
    first = "torch" if module.startswith("lora_core") else "tyro, tomli"
    code = f"import sys, {first}; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    brought = {name.split(".")[0] for name in done.stdout.split()}
    assert module.split(".")[0] in brought
    assert not brought & HEAVY
    if module == "lora_core":
        assert brought - sys.stdlib_module_names <= {"lora_core", "safetensors", "torch", "packaging"}
    if module == "trainers.cli":
        assert "torch" not in brought  # so that --help and a mistyped flag answer at once
