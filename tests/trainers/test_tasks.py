"""The registry of tasks, and what it refuses before any work is done."""

import dataclasses

import pytest

from trainers.config import RunConfig
from trainers.tasks import KINDS, check_settings, kind_of, load


@pytest.mark.parametrize(
    ("settings", "users"),
    [
        ({"text_augment": "eda"}, "text-classification"),
        ({"augment": "flip", "task": "text-classification"}, "image-classification"),
        ({"long_text": "windows"}, "text-classification"),
        ({"max_length": 9, "task": "image-classification"}, "token-classification and text-classification"),
        ({"image_size": 32}, "image-classification"),
        ({"crf_constraints": True, "task": "text-classification"}, "token-classification"),
    ],
)
def test_settings_of_another_task(settings, users):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=rf"^{name} is .* with task .*: it is for {users}\. Leave it out"):
        check_settings(RunConfig(**settings))


@pytest.mark.parametrize(
    ("detail", "value", "other", "on"),
    [
        ("adversarial_epsilon", 0.5, "adversarial", "fgm"),
        ("augment_share", 0.2, "text_augment", "eda"),
        ("confusing_penalty", 2.0, "confusing_words", "words.txt"),
    ],
)
def test_a_setting_of_which_nothing_comes(detail, value, other, on):
    config = RunConfig(task="text-classification", head="attention", **{detail: value})
    with pytest.raises(ValueError, match=rf"^{detail} is {value}, but {other} is not set, .* or leave {detail} out"):
        check_settings(config)
    check_settings(dataclasses.replace(config, **{other: on}))


def test_images_are_not_for_the_model_that_is_the_default():
    with pytest.raises(ValueError, match=r"model is 'embedded', which reads texts\. Name a model of images"):
        check_settings(RunConfig(task="image-classification"))


def test_every_setting_that_a_task_names_is_one():
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    for kind in KINDS.values():
        assert fields >= kind.SETTINGS


@pytest.mark.parametrize("task", KINDS)
def test_an_unknown_metric_names_those_that_there_are(task):
    for metric in (*kind_of(task).METRICS, "loss"):
        check_settings(RunConfig(task=task, metric=metric, model="a-folder"))
    with pytest.raises(ValueError, match=rf"metric is 'f2'; {task} has f1, .*, loss\."):
        check_settings(RunConfig(task=task, metric="f2", model="a-folder"))


def test_an_unknown_task():
    with pytest.raises(ValueError, match="task 'question' cannot be trained; there are token-class"):
        kind_of("question")


@pytest.mark.parametrize(
    ("task", "file", "content"),
    [
        (
            "text-classification",
            "train.jsonl",
            '{"text": "good @", "label": "pos"}\n{"text": "bad @", "label": "neg"}\n',
        ),
        ("token-classification", "train.conll", "il2@ B-protein\nbinds O\n\n"),
    ],
)
def test_data_of_another_task_says_so(tmp_path, caplog, task, file, content):
    (tmp_path / file).write_text("".join(content.replace("@", str(number)) for number in range(20)))
    assert "train" in load(RunConfig(task=task, data=str(tmp_path)))
    caplog.clear()
    other = next(name for name in KINDS if name != task)
    with pytest.raises(ValueError, match=rf"did you forget --task {task}\?"):
        load(RunConfig(task=other, data=str(tmp_path)))
    assert not caplog.messages
    (tmp_path / file).write_text("?")
    with pytest.raises(ValueError, match=r".+") as error:
        load(RunConfig(task=other, data=str(tmp_path)))
    assert "--task" not in str(error.value)
