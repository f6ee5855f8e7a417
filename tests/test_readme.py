"""The README's Python snippets run as they stand, and say what they print."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_snippets_run_and_print_what_they_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert snippets
    for snippet in snippets:
        promised = re.findall(r"print\(.*\)\s+# (\([\d, ]+\))", snippet)
        exec(compile(snippet, "README.md", "exec"), {})
        assert promised
        assert capsys.readouterr().out.split("\n")[: len(promised)] == promised


def test_install_commands_name_extras_that_exist():
    extras = set(re.findall(r"-e '\.\[(\w+)\]'", TEXT))
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert extras == {"demo", "test"}
    for extra in extras:
        assert re.search(rf"^{extra} = \[", pyproject, flags=re.MULTILINE)


def test_files_that_the_readme_names_exist():
    for path in re.findall(r"\]\(([\w/.]+)\)|\b(examples/[\w/]+\.(?:py|toml|png))", TEXT):
        assert (ROOT / "".join(path)).is_file(), path
