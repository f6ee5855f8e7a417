import csv
import io
import json
import re
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.cli import main
from trainers.config import RunConfig
from trainers.finished import FinishedRun
from trainers.report.evidence import Evidence, Options
from trainers.report.mistakes import errors_jsonl
from trainers.report.page import SECTIONS, write_report
from trainers.run_folder import read_predictions, read_run, save_predictions

VOID = ("meta", "!doctype", "link", "img", "source")


class Page(HTMLParser):
    """The text, the pictures and the sections of a page; fails on tags that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.alts, self.words, self.sections = [], [], [], [], []
        self.feed(text)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            assert attributes["alt"]
            self.alts.append(attributes["alt"])
            self.pictures.append(attributes["src"])
        if tag == "section":
            self.sections.append(attributes["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def page(folder, **options):
    return Page(write_report(folder, Options(**{"maps": False, **options})).read_text(encoding="utf-8"))


@pytest.fixture
def copied(tmp_path):
    """Copies the folder of a run to where it may be written to."""
    return lambda folder: shutil.copytree(folder, Path(tempfile.mkdtemp(dir=tmp_path)) / folder.name)


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_words_scores_pictures_and_settings(finished, copied):
    folder = copied(finished["lora"])
    shown = page(folder)
    result = read_run(folder).result
    for name in ("f1", "strict_f1", "precision", "recall", "accuracy"):
        assert f"{100 * result['test'][name]:.2f}" in shown.text
    for kind, scores in result["test"]["types"].items():
        assert f"{kind} {100 * scores['precision']:.2f} {100 * scores['recall']:.2f}" in shown.text
    assert f"{result['trainable']:,} of {result['total']:,}" in shown.text
    assert shown.sections == list(SECTIONS)
    assert all(source.startswith("data:image/png;base64,") for source in shown.pictures)
    config = read_run(folder).config
    assert f"learning_rate {config['learning_rate']} chosen" in shown.text
    settings = {row["setting"]: row["value"] for row in rows_of(folder / "report" / "settings.csv")}
    assert settings["epochs"] == str(config["epochs"])
    assert settings.keys() == RunConfig().to_dict().keys()


@pytest.mark.parametrize("kind", ["lora", "text", "image"])
def test_every_section_has_a_title_its_numbers_and_its_pictures(kind, finished, finished_text, finished_image, copied):
    """One test over them all: what the page shows is in the files beside it, and each file is what it says."""
    folder = copied({"lora": finished["lora"], "text": finished_text, "image": finished_image}[kind])
    evidence = Evidence(FinishedRun.open_fast(folder), Options())
    sections = [make(evidence) for _, make in SECTIONS.values()]
    assert [section.key for section in sections] == list(SECTIONS)
    missing = {section.key for section in sections if section.missing}
    expected = {"serving"} if kind == "text" else {"words", "serving"}
    if not len(evidence.wrong):
        expected |= {"errors", "words"}
    assert missing <= expected | {"label-errors"}  # a tiny model may contradict no label
    text = write_report(folder).read_text(encoding="utf-8")
    shown, files = Page(text), folder / "report"
    names = [table.name for section in sections for table in section.tables]
    assert len(set(names)) == len(names)
    for section in sections:
        assert section.title in shown.text
        for table in section.tables:
            header, *rows = csv.reader(io.StringIO((files / f"{table.name}.csv").read_text(encoding="utf-8")))
            assert header == list(table.header)
            assert len(rows) == len(table.rows) > 0, table.name
            assert {len(row) for row in rows} == {len(header)}
        for picture in section.pictures:
            image = Image.open(files / f"{picture.name}.png")
            assert image.format == "PNG"
            assert min(image.size) > 100
            assert len(image.convert("RGB").getcolors(1 << 24)) > 2, picture.name  # not blank
            assert picture.alt.replace("'", "&#39;").replace("<", "&lt;") in text
    assert len(shown.pictures) >= sum(len(section.pictures) for section in sections)
    assert text.count("prefers-color-scheme: dark") == 1 + sum(len(section.pictures) for section in sections)


def test_sentences_with_the_most_wrong_words_come_first(finished, copied):
    folder = copied(finished["head"])
    run = FinishedRun.open(folder)
    wrong = [int((guess != true).sum()) for guess, true in zip(*run.predictions("test"), strict=True)]
    assert max(wrong) > 0  # a head alone on random weights
    shown = page(folder, errors=3)
    examples = len(wrong)
    assert f"{sum(map(bool, wrong))} of the test split's {examples} sentences have an error; 3 are shown" in shown.text
    worst = int(np.argmax(wrong))
    assert f"{worst + 1}, true" in shown.text
    lines = [json.loads(line) for line in (folder / "report" / "errors.jsonl").read_text().splitlines()]
    assert [line["id"] - 1 for line in lines] == np.flatnonzero(wrong).tolist()
    for line in lines:
        assert line["tokens"] == run.examples("test").words[line["id"] - 1]
        assert len(line["tokens"]) == len(line["ner_tags"]) == len(line["predicted"])


def wrong_images(folder):
    """The run as if it had taken the first two bright images for dark ones."""
    run = read_run(folder)
    predicted, gold = read_predictions(folder)
    dark, bright = (run.result["labels"].index(name) for name in ("dark", "bright"))
    changed = [place for place, ids in enumerate(gold) if ids[0] == bright][:2]
    predicted = [np.array([dark]) if place in changed else ids for place, ids in enumerate(gold)]
    save_predictions(folder, "test", predicted, gold)
    return folder


def test_texts_and_images(finished_text, finished_image, copied):
    text = page(copied(finished_text))
    run = FinishedRun.open(finished_text)
    wrong = np.flatnonzero(np.not_equal(*map(np.concatenate, run.predictions("test"))))
    assert f"{len(wrong)} of the test split's 12 texts have an error; {len(wrong)} are shown" in text.text
    image = page(wrong_images(copied(finished_image)))
    assert "images a second" in image.text
    assert "tokens a second" not in image.text
    assert image.text.count("predicted dark") == 2
    assert sum(alt.startswith("Example ") for alt in image.alts) == 2


def test_errors_are_written_in_a_form_that_training_reads(finished, finished_text, tmp_path, capsys):
    for name, folder, task in (("words", finished["head"], []), ("texts", finished_text, ["text-classification"])):
        data = tmp_path / name
        data.mkdir()
        lines = errors_jsonl(Evidence(FinishedRun.open(folder), Options()))
        for split in ("train", "valid", "test"):
            (data / f"{split}.jsonl").write_text(lines)
        main(["check-data", str(data), "--output-dir", str(tmp_path / "out"), *(["--task", *task] if task else [])])
        count = len(lines.splitlines())
        assert re.search(rf"(sentences|texts) +\| +{count} ", capsys.readouterr().out)


def test_markup_in_the_data_stays_text(finished_text, copied, tmp_path):
    folder = copied(finished_text)
    config = json.loads((folder / "config.json").read_text())
    data = shutil.copytree(config["data"], tmp_path / "data", ignore=shutil.ignore_patterns("run"))
    path = data / "test.jsonl"
    path.write_text(path.read_text().replace('"text": "', '"text": "<script>alert(1)</script> & '))
    (folder / "config.json").write_text(json.dumps({**config, "data": str(data)}))
    text = write_report(folder, Options(maps=False)).read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/" in re.sub(r'<u class="speaks">|</u>|\n', "", text)


def test_data_that_is_gone_or_changed_leaves_the_rest_of_the_page(finished_text, copied, tmp_path):
    folder = copied(finished_text)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone")}))
    shown = page(folder)
    assert "The examples cannot be shown." in shown.text
    assert "gone" in shown.text
    assert shown.sections == list(SECTIONS)
    assert len(shown.pictures) == 6  # intervals, curves, labels, confusions
    assert not (folder / "report" / "errors.csv").exists()
    data = shutil.copytree(config["data"], tmp_path / "data", ignore=shutil.ignore_patterns("run"))
    lines = (data / "test.jsonl").read_text().splitlines(keepends=True)
    (data / "test.jsonl").write_text("".join(lines[1:]))
    (folder / "config.json").write_text(json.dumps({**config, "data": str(data)}))
    assert "does not hold the examples" in page(folder).text


def test_runs_are_compared(finished, copied, tmp_path):
    folders = [copied(finished[name]) for name in ("lora", "full", "head")]
    path = write_report(folders, Options(maps=False), tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    rows = rows_of(tmp_path / "out" / "report" / "scores.csv")
    assert [row["run"] for row in rows] == ["lora", "full", "head"]
    for row, folder in zip(rows, folders, strict=True):
        f1 = 100 * read_run(folder).result["test"]["f1"]
        assert float(row["F1, %"]) == pytest.approx(f1)
        assert float(row["from"]) <= f1 <= float(row["to"])
    differences = rows_of(tmp_path / "out" / "report" / "differences.csv")
    assert [row["differs in"] for row in differences] == ["the first run", "method full", "method head"]
    assert not (folders[0] / "report.html").exists()
    curves = rows_of(tmp_path / "out" / "report" / "curves-loss.csv")
    assert {row["run"] for row in curves} == {"lora", "full", "head"}


def test_a_new_run_in_the_folder_removes_the_report(finished_text, copied):
    folder = copied(finished_text)
    files = read_run(folder).files
    files.report_files.mkdir()
    for path in (files.report, files.report_files / "scores.csv", folder / "notes.txt"):
        path.write_text("as it was")
    files.remove()
    assert not (folder / "report").exists()
    assert not (folder / "report.html").exists()
    assert (folder / "notes.txt").exists()


def test_the_command(capsys, finished_text, copied):
    folder = copied(finished_text)
    main(["report", str(folder), "--no-maps", "--errors", "2"])
    assert capsys.readouterr().out.split()[-1] == str(folder / "report.html")
    assert "Left out by --no-maps." in (folder / "report.html").read_text()
    with pytest.raises(SystemExit) as end:
        main(["report"])
    assert end.value.code == 2
    assert "report needs a run" in capsys.readouterr().err
