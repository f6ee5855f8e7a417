"""The rows of the table of forms in trainers/README.md are read."""

import json
import re
from pathlib import Path

import pytest

from trainers.data.tokens.reader import load_token_datasets

README = Path(__file__).parents[4] / "trainers" / "README.md"


def rows_of_the_table():
    """The name, the first file and the pieces of code in the example of each form."""
    text = README.read_text(encoding="utf-8").split("**Words with labels**")[1].split("**Texts with lab")[0]
    for form, files, example in re.findall(r"^\| (.+?) \| (.+?) \| (.+) \|$", text, re.MULTILINE)[1:]:
        yield form, re.split(r"[, ]", files)[0], re.findall(r"`([^`]+)`", example)


ROWS = list(rows_of_the_table())


def test_the_table_is_there():
    assert len(ROWS) >= 9


@pytest.mark.parametrize(("form", "name", "code"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row_of_the_table_is_read(tmp_path, form, name, code):
    first = code[0]
    if form == "parquet" or form.startswith("Arrow"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table

        table = pyarrow.table({code[0]: [["IL-2", "binds"]], code[1]: [["B-protein", "O"]]})
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if form == "parquet":
            write_table(table, tmp_path / name)
        else:
            with pyarrow.OSFile(str(tmp_path / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
                out.write_table(table)
    else:
        if form == "tner":
            (tmp_path / "label.json").write_text(code[1])
            assert json.loads(first)
        if form == "a file of tags":
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).with_name("seq.out").write_text(f"{code[1]}\n")
        text = "\n".join(code[:2]) if form == "a table of words" else first
        (tmp_path / name).write_text(text.replace("<TAB>", "\t") + "\n")
    dataset = load_token_datasets(tmp_path)["train"]
    assert dataset.words[0][0] in ("IL-2", "EU", "Anna")
    assert dataset.labels[dataset.tags[0][0]] in ("B-protein", "B-ORG", "B-PER")
