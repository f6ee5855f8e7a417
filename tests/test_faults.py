"""The table of faults in trainers/README.md is what the tests inject: `python tests/test_faults.py` writes it anew."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "trainers/README.md"
HEADER = "| injected | how it ends | work lost | test |\n|---|---|---|---|\n"


def faults(path):
    """(injected, how it ends, work lost, name of the test) of each test in a file that is marked with a fault."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for mark in getattr(node, "decorator_list", []):
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                injected, outcome, lost = (ast.literal_eval(argument) for argument in mark.args)
                yield injected, outcome, lost, node.name


def table():
    """The rows, in the order of the files' names."""
    rows = [
        f"| {injected} | {outcome} | {lost} | [{path.stem.removeprefix('test_')}](../{path.relative_to(ROOT)}) |\n"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for injected, outcome, lost, _ in faults(path)
    ]
    return HEADER + "".join(dict.fromkeys(rows))


def written():
    """The table that stands in the README."""
    found = re.search(re.escape(HEADER) + r"(\|.*\n)*", README.read_text(encoding="utf-8"))
    assert found, f"{README} has no table of faults"
    return found[0]


def test_the_readme_shows_the_faults_that_are_injected():
    assert written() == table(), "run: python tests/test_faults.py"


def test_no_fault_stands_there_twice():
    injected = [row.split(" | ")[0] for row in table().splitlines()]
    assert len(injected) == len(set(injected))


if __name__ == "__main__":
    README.write_text(README.read_text(encoding="utf-8").replace(written(), table()), encoding="utf-8")
