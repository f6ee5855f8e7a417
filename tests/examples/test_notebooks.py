"""The notebooks run from the first cell to the last, in the folder that they name, and are kept without outputs.

Their cells are executed one after another in one namespace, in a process of its own, as a kernel would execute them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
RUN = """
import ast, json, sys

names = {}
for cell in json.loads(sys.stdin.read()):
    body = ast.parse(cell).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
    if last is not None:  # what a notebook shows
        shown = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
        if shown is not None:
            print("shown:", type(shown).__name__, repr(shown)[:2000])
"""
EXPECTED = {
    "ner.ipynb": ["test: F1 ", "entity_group", "model.safetensors"],
    "texts.ipynb": ["test: F1 ", "positive", "negative"],
    "images.ipynb": ["test: F1 ", "Figure"],
}
"""What is to be shown of each."""


def cells(path, kind):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_there_is_one_for_each_task():
    assert [path.name for path in NOTEBOOKS] == sorted(EXPECTED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_valid_and_has_no_outputs(path):
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)
    assert notebook["cells"][0]["cell_type"] == "markdown"
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
        assert cell["metadata"] == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path, tmp_path):
    (tmp_path / "data").symlink_to(ROOT / "examples" / "data")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", RUN],
        input=json.dumps(cells(path, "code")),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(text in done.stdout for text in EXPECTED[path.name]), done.stdout
