"""Whole runs on texts with several labels, and on numbers: tiny, on data whose words tell the answer."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers

import trainers
from lora_core.models import build_model, save_pretrained
from trainers.cli import main
from trainers.config import RunConfig
from trainers.data.labels import Decision
from trainers.data.texts.reader import TextDataset
from trainers.experiment import run
from trainers.finished import FinishedRun, evaluate_run
from trainers.report.evidence import Evidence, Options
from trainers.report.mistakes import worst
from trainers.report.page import write_report
from trainers.results.compare import compare_runs, write_comparison
from trainers.results.errors import analyse
from trainers.results.vote import vote
from trainers.series.ablation import Variant, ablation_row
from trainers.serve import pipeline
from trainers.serve.export import export_run
from trainers.tasks import check_settings, text
from trainers.tasks.classification import Classification, MultiLabelClassification, Regression
from trainers.training.losses import MultiLabelLoss, positive_weights

NAMES = ("DNA", "protein", "never")


def texts_of(tiny, count, seed):
    """Texts of words of several kinds; the labels are the kinds, the number counts them."""
    random = np.random.default_rng(seed)
    texts, labels, numbers = [], [], []
    for index in range(count):
        own = [("DNA",), ("protein",), ("DNA", "protein"), ()][index % 4]
        words = [random.choice(tiny.WORDS[name]) for name in (own or ("O",)) for _ in range(3)]
        random.shuffle(words)
        texts.append(" ".join(words))
        labels.append(list(own))
        numbers.append(2.0 * ("protein" in own) - 1.0 * ("DNA" in own))
    return texts, labels, numbers


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """A random encoder whose frozen weights are large enough to pass on what the words are."""
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("model"))
    model = build_model(tiny.build().config, "text-classification", ["none", "other"], seed=1)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "classifier" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    save_pretrained(model, folder)
    return folder


@pytest.fixture(scope="module")
def splits(tiny):
    """By problem type."""
    made = {split: texts_of(tiny, count, seed) for seed, (split, count) in enumerate(
        {"train": 64, "validation": 24, "test": 24}.items())}  # fmt: skip
    return {
        "multi_label_classification": {
            split: TextDataset.from_lists(texts, labels, names=NAMES) for split, (texts, labels, _) in made.items()
        },
        "regression": {
            split: TextDataset.from_lists(texts, numbers, problem_type="regression")
            for split, (texts, _, numbers) in made.items()
        },
    }


def settings(checkpoint, folder, **changes):
    return {"task": "text-classification", "model": str(checkpoint), "output_dir": str(folder), "epochs": 8,
            "batch_size": 8, "learning_rate": 0.01, "hidden_dropout": 0.0, "lora_dropout": 0.0, "fresh_head": True,
            "r": 4, "lora_alpha": 16.0,
            "target_modules": ["all-linear"], **changes}  # fmt: skip


@pytest.fixture(scope="module")
def runs(checkpoint, splits, tmp_path_factory):
    """A LoRA run of each problem type, whose data is in memory."""
    root = tmp_path_factory.mktemp("runs")
    return {
        name: trainers.train(data, **settings(checkpoint, root / name, head="textcnn")) for name, data in splits.items()
    }


def test_several_labels_learn_and_their_thresholds_are_kept(runs, splits, caplog):
    done = runs["multi_label_classification"]
    test = done.result["test"]
    assert test["f1"] > 0.9
    assert set(test) >= {"accuracy", "macro_f1", "samples_f1", "ranking_precision", "types", "loss"}
    assert "confusion" not in test
    assert done.result["problem_type"] == "multi_label_classification"
    thresholds = done.result["thresholds"]
    assert set(thresholds) == set(NAMES)
    assert thresholds["never"] == 0.5
    assert Decision.read(done.files.weights("lora")) == Decision("multi_label_classification", thresholds)
    assert json.loads((done.folder / "config.json").read_text())["problem_type"] == "auto"

    dataset = splits["multi_label_classification"]["test"]
    found = pipeline(None, done.folder)(dataset.texts)
    predicted, gold = FinishedRun.open(done.folder).predictions("test")
    assert np.array_equal(np.stack(gold), dataset.targets)
    for labels, row in zip(found, predicted, strict=True):
        assert {each["label"] for each in labels} == {NAMES[index] for index in np.flatnonzero(row)}
    (everything,) = pipeline(None, done.folder, top_k=None)([dataset.texts[0]])
    assert len(everything) == 3


def test_numbers_learn(runs, splits):
    done = runs["regression"]
    test = done.result["test"]
    assert test["pearson"] > 0.9
    assert set(test) == {"loss", "pearson", "spearman", "mse", "mae", "r2"}
    assert test["loss"] == pytest.approx(test["mse"], rel=1e-5)
    assert done.result["labels"] == ["score"]
    assert "thresholds" not in done.result
    assert max(event["validation"]["pearson"] for event in done.epochs) == done.result["validation"]["pearson"]
    dataset = splits["regression"]["test"]
    found = [each[0]["score"] for each in map(pipeline(None, done.folder), dataset.texts[:5])]
    assert found == pytest.approx(np.concatenate(FinishedRun.open(done.folder).predictions("test")[0])[:5], abs=1e-4)
    assert Decision.read(done.files.weights("lora")).problem_type == "regression"


def test_what_looks_at_finished_runs_knows_them_or_says_so(runs, splits, checkpoint, tmp_path):
    several, numbers = runs["multi_label_classification"], runs["regression"]
    other = trainers.train(splits["multi_label_classification"], **settings(checkpoint, tmp_path / "other", epochs=1))
    comparison = compare_runs([several, other])
    assert [row.f1 for row in comparison.rows] == [one.result["test"]["f1"] for one in (several, other)]
    difference = comparison.rows[1].difference
    assert difference.f1_low <= comparison.rows[1].f1_difference <= difference.f1_high < 0
    gold = splits["multi_label_classification"]["test"].targets
    predicted = [np.stack(FinishedRun.open(one.folder).predictions("test")[0]) for one in (several, other)]
    right = [(one == gold).all(1) for one in predicted]
    assert difference.only_baseline_right == (right[0] & ~right[1]).sum()
    write_comparison(comparison, tmp_path)

    for one, shown in ((several, "threshold"), (numbers, "Pearson correlation")):
        evidence = Evidence(_with_data(one, splits), Options(errors=3))
        mistakes = worst(evidence)
        assert len(mistakes) == 3 or one is several
        page = write_report(one.folder).read_text()
        assert shown in page
        assert "Confusion matrix" not in page
    off = [abs(float(guess[0] - true[0])) for guess, true in zip(*evidence.saved, strict=True)]
    assert [off[place] for place in mistakes] == sorted(off, reverse=True)[:3]
    evidence = Evidence(_with_data(other, splits), Options(errors=3))
    shown = [evidence.answer(evidence.saved[1][place]) for place in worst(evidence)]
    assert {name for names in shown for name in names.split(", ")} <= {*NAMES, "(no label)"}

    with pytest.raises(ValueError, match=r"regression did regression: it has no F1 to compare"):
        compare_runs([numbers, several])
    members = [FinishedRun.open(one.folder) for one in (several, other)]
    with pytest.raises(ValueError, match=r"did multi_label_classification: expected a run with one label for each"):
        vote(members)
    with pytest.raises(ValueError, match=r"did regression: expected a run with one label for each example"):
        analyse(FinishedRun.open(numbers.folder))
    with pytest.raises(ValueError, match=r"did regression: an ablation needs runs with one label"):
        ablation_row(Variant("tiny", [RunConfig()]), [numbers])


def _with_data(run, splits):
    finished = FinishedRun.open(run.folder)
    finished.__dict__["datasets"] = splits[run.result["problem_type"]]
    finished.config.__dict__["data"] = "in memory"
    return finished


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_transformers_reads_a_full_run_with_its_problem_type(checkpoint, splits, problem_type, tmp_path):
    data = splits[problem_type]
    trainers.train(data, **settings(checkpoint, tmp_path / "run", method="full", epochs=1, learning_rate=1e-3))
    best = tmp_path / "run" / "best"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(best)
    assert model.config.problem_type == problem_type
    ours = pipeline(None, best, top_k=None).served.model
    ids = torch.randint(5, 20, (3, 6))
    torch.testing.assert_close(ours(ids), model(ids).logits, rtol=1e-5, atol=1e-5)


def test_files_are_trained_evaluated_exported_and_measured(tiny, checkpoint, tmp_path, capsys):
    """The reader gives one label for each text; --problem-type reads it otherwise."""
    data = tmp_path / "data"
    data.mkdir()
    random = np.random.default_rng(0)
    for split, count in {"train": 40, "valid": 20, "test": 20}.items():
        rows = []
        for _ in range(count):
            stars = int(random.integers(1, 6))
            words = random.choice(tiny.WORDS["protein"], stars).tolist() + random.choice(tiny.WORDS["O"], 3).tolist()
            rows.append(json.dumps({"text": " ".join(words), "label": str(stars)}))
        (data / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    for problem_type in ("regression", "multi_label_classification"):
        folder = tmp_path / problem_type
        flags = ["train", "--task", "text-classification", "--model", str(checkpoint), "--data", str(data),
                 "--output-dir", str(folder), "--epochs", "6", "--batch-size", "8", "--learning-rate", "0.01",
                 "--fresh-head", "--target-modules", "qv", "--warmup", "0", "--problem-type", problem_type]  # fmt: skip
        capsys.readouterr()
        main(flags)
        printed = capsys.readouterr().out
        assert ("Pearson correlation" in printed) == (problem_type == "regression")
        assert ("F1 " in printed) == (problem_type != "regression")
        main([*flags, "--resume", "auto"])
        capsys.readouterr()
        finished = FinishedRun.open(folder)
        assert evaluate_run(folder) == finished.run.result["test"]
        files = export_run(folder, points_lost=5)
        assert [file.metric for file in files] == [finished.guarded_metric] * 2
        assert finished.guarded_metric == ("r2" if problem_type == "regression" else "f1")
        sentences = finished.examples("test").texts
        expected = pipeline(None, folder, top_k=None)(sentences)
        for file, within in zip(files, (1e-4, 0.3), strict=True):
            for ours, theirs in zip(pipeline(None, file.path, top_k=None)(sentences), expected, strict=True):
                assert {each["label"]: each["score"] for each in ours} == pytest.approx(
                    {each["label"]: each["score"] for each in theirs}, abs=within)  # fmt: skip
        if problem_type != "regression":
            assert pipeline(None, files[0].path)(sentences) != []
            assert dict(pipeline(None, files[0].path).served.thresholds) == finished.run.result["thresholds"]


def test_long_texts_in_windows(checkpoint, splits, tmp_path):
    for name, data in splits.items():
        long = {split: dataclasses.replace(one, texts=[f"{text} {text} {text}" for text in one.texts])
                for split, one in data.items()}  # fmt: skip
        changes = {"long_text": "windows", "max_length": 8, "micro_batch_size": 3, "epochs": 3, "head": "textcnn"}
        done = trainers.train(long, **settings(checkpoint, tmp_path / name, **changes))
        finished = FinishedRun.open(done.folder)
        score = "f1" if name == "multi_label_classification" else "pearson"
        assert done.result["test"][score] > 0.5
        found = pipeline(None, done.folder, top_k=None)(long["test"].texts[:4])
        again = finished.encode(long["test"])
        assert (np.diff(again.offsets) > 8).any()
        rows = again.cutter(again.input_ids[: again.offsets[1]])
        mean = torch.stack([finished.model(torch.from_numpy(row[None].astype(np.int64)))[0] for row in rows]).mean(0)
        expected = mean.sigmoid() if score == "f1" else mean
        scores = {each["label"]: each["score"] for each in found[0]}
        assert [scores[label] for label in done.result["labels"]] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_task_follows_the_settings_or_else_the_data(splits):
    config = RunConfig(task="text-classification", class_weights="balanced", focal_gamma=1.0, label_smoothing=0.1)
    several, numbers = (splits[name]["train"] for name in splits)
    loss = MultiLabelLoss(positive_weights(several.targets), 1.0, 0.1)
    assert text.task(NAMES, config, several) == MultiLabelClassification(NAMES, loss)
    assert text.task(("a",), RunConfig(problem_type="regression"), numbers) == Regression(("a",))
    assert type(text.task(NAMES, config)) is Classification
    with pytest.raises(ValueError, match=r"class_weights is balanced, but the run learns numbers \(regression\)"):
        text.task(("a",), config, numbers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "regression", "focal_gamma": 2.0}, r"focal_gamma is 2\.0, but the run learns numbers"),
        ({"problem_type": "regression", "metric": "accuracy"}, "metric is 'accuracy'; regression has pearson"),
        ({"problem_type": "single_label_classification", "metric": "r2"}, "metric is 'r2'; single_label_.* has f1"),
        ({"task": "image-classification", "model": "vit", "problem_type": "multi_label_classification"},
         "problem_type is multi_label_classification, but image-classification is trained for single_label"),
        ({"task": "token-classification", "problem_type": "regression"},
         "problem_type is regression with task token-classification: it is for"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_before_any_work(changes, message):
    with pytest.raises(ValueError, match=message):
        check_settings(RunConfig(**{"task": "text-classification", **changes}))


def test_data_that_does_not_fit_is_refused_before_a_folder_is_made(checkpoint, splits, tmp_path):
    config = RunConfig(**{**settings(checkpoint, tmp_path / "run"), "output_dir": tmp_path / "run",
                          "target_modules": ("qv",)})  # fmt: skip
    several, numbers = splits["multi_label_classification"], splits["regression"]
    one = {split: TextDataset.from_lists(["a", "b"], ["x", "x"]) for split in ("train", "validation")}
    two = {split: TextDataset.from_lists(["a", "b"], ["x", "y"]) for split in ("train", "validation")}
    for data, changes, message in (
        (several, {"problem_type": "single_label_classification"}, "is data for multi_label_classification, which"),
        (numbers, {"problem_type": "multi_label_classification"}, "is data for regression, which cannot be read as"),
        (numbers, {"metric": "macro_f1"}, "metric is 'macro_f1'; regression has pearson"),
        (two, {"problem_type": "regression"}, "labels that are no numbers, for a regression"),
        (one, {}, "has one label, 'x': there is nothing to tell apart"),
    ):
        with pytest.raises(ValueError, match=message):
            run(dataclasses.replace(config, **changes), data)
    assert not (tmp_path / "run").exists()
