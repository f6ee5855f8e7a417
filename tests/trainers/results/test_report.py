import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from trainers.cli import main
from trainers.finished import FinishedRun
from trainers.results.report import find_mistakes, in_turns, parts, write_report
from trainers.run_folder import read_run


class Page(HTMLParser):
    """The text and the pictures of a page; fails on tags that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.words = [], [], []
        self.feed(text)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.sources.append(dict(attributes)["src"])
        elif tag not in ("meta", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page(folder, **options):
    return Page(write_report(folder, **options).read_text(encoding="utf-8"))


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_words_scores_pictures_and_settings(finished, tmp_path):
    folder = copied(finished["lora"], tmp_path)
    shown = page(folder)
    result = read_run(folder).result
    for name in ("f1", "strict_f1", "precision", "recall", "accuracy"):
        assert f"{100 * result['test'][name]:.2f}" in shown.text
    for kind, scores in result["test"]["types"].items():
        assert f"{kind} {100 * scores['precision']:.2f} {100 * scores['recall']:.2f}" in shown.text
    assert f"{result['trainable']:,} of {result['total']:,}" in shown.text
    assert len(shown.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in shown.sources)
    settings = shown.text.split("In bold what is not the default.")[1]
    assert re.findall(r"\bepochs (\d+)", settings) == [str(read_run(folder).config["epochs"])]


def test_sentences_with_the_most_wrong_words_come_first(finished, tmp_path):
    folder = copied(finished["head"], tmp_path)
    run = FinishedRun.open(folder)
    wrong = [int((guess != true).sum()) for guess, true in zip(*run.predictions("test"), strict=True)]
    assert max(wrong) > 0  # a head alone on random weights
    mistakes = find_mistakes(run, "test", limit=3)
    assert [wrong[mistake.number - 1] for mistake in mistakes] == sorted(wrong, reverse=True)[:3]
    shown = page(folder, errors=3)
    assert f"{sum(map(bool, wrong))} of the test split's examples have an error; 3 are shown" in shown.text
    first = run.examples("test").words[mistakes[0].number - 1]
    assert " ".join(text for text, _ in mistakes[0].true) == " ".join(first)


def test_texts_and_images(finished_text, finished_image, tmp_path):
    text = page(shutil.copytree(finished_text, tmp_path / "text"))
    run = FinishedRun.open(finished_text)
    wrong = np.flatnonzero(np.not_equal(*map(np.concatenate, run.predictions("test"))))
    assert f"{len(wrong)} of the test split's examples have an error; {len(wrong)} are shown" in text.text
    assert all(" ".join(run.examples("test").texts[index].split()) in text.text for index in wrong)
    assert len(text.sources) == 2
    image = page(shutil.copytree(finished_image, tmp_path / "image"))
    errors = int(np.not_equal(*map(np.concatenate, FinishedRun.open(finished_image).predictions("test"))).sum())
    assert len(image.sources) == 2 + errors


def test_every_confusion_has_its_turn():
    gold = np.array([0, 0, 0, 1, 2, 0, 1])
    predicted = np.array([1, 1, 1, 0, 2, 2, 0])
    assert in_turns(gold, predicted) == [0, 3, 5, 1, 6, 2]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O O", [("a b c", None)]),
        ("B-X I-X O", [("a b", "X"), ("c", None)]),
        ("O I-X B-X", [("a", None), ("b", "X"), ("c", "X")]),
        ("B-X I-Y O", [("a", "X"), ("b", "Y"), ("c", None)]),
    ],
)
def test_a_sentence_in_parts(tags, expected):
    assert parts(["a", "b", "c"], tags.split()) == expected


def test_markup_in_the_data_stays_text(finished_text, tmp_path):
    folder = shutil.copytree(finished_text, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    data = shutil.copytree(config["data"], tmp_path / "data", ignore=shutil.ignore_patterns("run"))
    path = data / "test.jsonl"
    path.write_text(path.read_text().replace('"text": "', '"text": "<script>alert(1)</script> & '))
    (folder / "config.json").write_text(json.dumps({**config, "data": str(data)}))
    text = write_report(folder).read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;" in text


def test_data_that_is_gone_or_changed_leaves_the_rest_of_the_page(finished_text, tmp_path):
    folder = shutil.copytree(finished_text, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "data": str(tmp_path / "gone")}))
    shown = page(folder)
    assert "The examples cannot be shown." in shown.text
    assert "gone" in shown.text
    assert len(shown.sources) == 2
    data = shutil.copytree(config["data"], tmp_path / "data", ignore=shutil.ignore_patterns("run"))
    lines = (data / "test.jsonl").read_text().splitlines(keepends=True)
    (data / "test.jsonl").write_text("".join(lines[1:]))
    (folder / "config.json").write_text(json.dumps({**config, "data": str(data)}))
    assert "does not hold the examples" in page(folder).text


def test_the_command(capsys, finished_text, tmp_path):
    folder = shutil.copytree(finished_text, tmp_path / "run")
    main(["report", str(folder)])
    assert capsys.readouterr().out.split()[-1] == str(folder / "report.html")
    with pytest.raises(SystemExit) as end:
        main(["report"])
    assert end.value.code == 2
    assert "report needs a run" in capsys.readouterr().err
