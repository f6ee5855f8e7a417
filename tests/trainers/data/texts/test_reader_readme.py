"""Each row of the table of forms in trainers/README.md, read."""

import json
import re
from pathlib import Path

import pytest

from trainers.data.reading import Reading
from trainers.data.texts.reader import load_text_datasets

README = Path(__file__).parents[4] / "trainers" / "README.md"
COUNT = 20
NUMBERED = {
    "columns without a header line": "main-captions\tMSRvid\t2012test\t00{0}\t{0}.25\ttext {0}\tanother {0}\n",
    "two columns without a header line": "{1}\ttext {0}\n",
    "a label before the text": "DESC:{1} text {0}\n",
    "trees": "({2} (2 text) (4 (3 a{0}) (2 film)))\n",
    "a file for each class": "text {0}\n",
}
"""Rows of forms without a header."""


def table():
    """(Form, names of files, cells of the row) of every line of the table."""
    part = README.read_text(encoding="utf-8").split("**Texts**")[1].split("**Images**")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in re.split(r"(?<!`)\|(?!`)", line.strip("|"))] for line in lines]


def write(path, label, form):
    """A file of this form with COUNT texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": f"text, {number}", "label": f"{label}{number % 2}"} for number in range(COUNT)]
    name = path.name
    if name.endswith(".arrow"):
        pyarrow = pytest.importorskip("pyarrow")
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    elif name.endswith(".xlsx"):
        openpyxl = pytest.importorskip("openpyxl")
        book = openpyxl.Workbook()
        for row in [("text", "label"), *((row["text"], row["label"]) for row in rows)]:
            book.active.append(row)
        book.save(path)
    elif name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), path)
    elif name.endswith(".gz"):
        import gzip

        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif name.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, rows)))
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name == "classes.txt":
        path.write_text("World\nSports\n")
    elif form.startswith("columns as AG"):
        path.write_text("".join(f'"{number % 2 + 1}","title","text, {number}"\n' for number in range(COUNT)))
    elif form.startswith("fastText"):
        path.write_text("".join(f"__label__{row['label']} {row['text']}\n" for row in rows))
    elif form.split(" (")[0] in NUMBERED:
        lines = [NUMBERED[form.split(" (")[0]].format(n, ["ham", "spam"][n % 2], n % 2) for n in range(COUNT)]
        path.write_text("".join(lines))
    elif form.startswith("pairs"):
        path.write_text("premise,hypothesis,label\n" + "".join(f"p {n},h,{n % 2}\n" for n in range(COUNT)))
    else:
        between = "\t" if name.endswith(".tsv") else ","
        path.write_text(f"label{between}text\n" + "".join(f'a{n % 2}{between}"text, {n}"\n' for n in range(COUNT)))


@pytest.mark.parametrize(("form", "files", "row"), table(), ids=[form for form, _, _ in table()])
def test_every_row_of_the_table_is_read(tmp_path, form, files, row):
    assert row
    if form.startswith("a folder"):
        for number in range(COUNT):
            path = tmp_path / "train" / ("pos" if number % 2 else "neg") / f"{number}_9.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"text {number}")
    elif form == "a file of labels":
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "seq.in").write_text("".join(f"text {number}\n" for number in range(COUNT)))
        (tmp_path / "train" / "label").write_text("a\nb\n" * (COUNT // 2))
    else:
        for name in files.split(", "):
            write(tmp_path / name, "a", form)
    said = {name.replace("-", "_"): value for name, value in re.findall(r"--(\w+-column) (-?\d+)", row)}
    datasets = load_text_datasets(tmp_path, reading=Reading(**said))
    assert "train" in datasets
    assert len(datasets["train"].labels) == (1 if "label_column" in said else 2)  # of STS-B a number
    assert (datasets["train"].pairs is not None) == (form.startswith("pairs") or "pair_column" in said)
    assert len(datasets["train"]) + len(datasets["validation"]) >= COUNT - 2
