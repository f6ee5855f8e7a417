"""What a checkpoint's problem_type makes of its logits; transformers' pipelines are the oracles."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from lora_core.export import OnnxModel, export_onnx, quantize_onnx
from lora_core.models import build_model, config_from_dict, load_pretrained, save_pretrained
from trainers.cli import main
from trainers.data.images.processing import ImageProcessing
from trainers.data.labels import DECISION_FILE, Decision
from trainers.serve import pipeline

TEXTS = ["il2 binds the gene", "junb", "promoter of a gene in cells . abcd"]
LABELS = ("toxic", "threat", "insult")
KINDS = {
    "multi": ("multi_label_classification", LABELS),
    "multi of one": ("multi_label_classification", ("toxic",)),
    "unnamed": (None, ("LABEL_0",)),
    "regression": ("regression", ("LABEL_0",)),
    "several values": ("regression", LABELS),
    "single": ("single_label_classification", LABELS),
    "plain": (None, LABELS),
}


def stirred(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    return model


def say(folder, problem_type):
    """Write a problem_type into config.json, as transformers does; None leaves it out."""
    values = json.loads((folder / "config.json").read_text())
    values.pop("problem_type", None)
    if problem_type is not None:
        values["problem_type"] = problem_type
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def text_model(checkpoint, folder, kind):
    problem_type, labels = KINDS[kind]
    save_pretrained(stirred(load_pretrained(checkpoint, "text-classification", labels)), folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoint / "tokenizer.json"), pad_token="[PAD]", model_max_length=24
    ).save_pretrained(folder)
    return say(folder, problem_type)


def by_name(found):
    """The score of each label, rounded: batches of other sizes differ in the last bits."""
    return [{each["label"]: round(each["score"], 5) for each in one} for one in found]


def assert_same(found, expected, **tolerance):
    for ours, theirs in zip(by_name(found), by_name(expected), strict=True):
        assert ours == pytest.approx(theirs, **tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_have_the_scores_of_transformers_in_every_form(checkpoint, tmp_path, kind, capsys):
    folder = text_model(checkpoint, tmp_path / "model", kind)
    expected = transformers.pipeline("text-classification", model=str(folder), device="cpu", top_k=None)(TEXTS)
    ours = pipeline(None, folder, top_k=None)
    assert_same(ours(TEXTS), expected, abs=1e-4)
    assert [each["label"] for each in ours(TEXTS)[0]] == [each["label"] for each in expected[0]]

    save_pretrained(ours.served.model, tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text()).get("problem_type") == KINDS[kind][0]

    metadata = {"tokenizer.json": (folder / "tokenizer.json").read_text()}
    fp32 = export_onnx(ours.served.model, tmp_path / "model.onnx", metadata=metadata)
    assert_same(pipeline(None, fp32, top_k=None)(TEXTS), expected, abs=1e-4)
    int8 = quantize_onnx(fp32, tmp_path / "model.int8.onnx")
    assert OnnxModel(int8).problem_type == KINDS[kind][0]
    assert_same(pipeline(None, int8, top_k=None)(TEXTS), expected, abs=0.6)  # a regression's values are up to 10

    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    main(["predict", str(folder), str(tmp_path / "in.txt"), "--top-k", "3"])
    lines = [json.loads(line)["labels"] for line in capsys.readouterr().out.splitlines()]
    assert_same(lines, expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["multi", "regression", "unnamed"])
def test_images_too(tmp_path, kind):
    problem_type, labels = KINDS[kind]
    config = config_from_dict({"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                               "intermediate_size": 32, "image_size": 16, "patch_size": 8})  # fmt: skip
    save_pretrained(stirred(build_model(config, "image-classification", labels)), tmp_path)
    ImageProcessing(size=(16, 16), resize_to=(16, 16)).save(tmp_path)
    say(tmp_path, problem_type)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path)
    oracle = transformers.pipeline("image-classification", model=str(tmp_path), image_processor=processor, device="cpu")
    bare = {"function_to_apply": "none"} if kind == "regression" else {}  # which transformers 5.16 does not find out
    assert_same([pipeline(None, tmp_path, top_k=None)(picture)], [oracle(picture, **bare)], abs=1e-4)


def test_a_multi_label_model_gives_every_label_above_its_threshold(checkpoint, tmp_path, capsys):
    folder = text_model(checkpoint, tmp_path, "multi")
    scores = by_name(pipeline(None, folder, top_k=None)(TEXTS))

    def above(thresholds):
        return [{name: score for name, score in one.items() if score > thresholds[name]} for one in scores]

    half = dict.fromkeys(LABELS, 0.5)
    found = pipeline(None, folder)(TEXTS)
    assert by_name(found) == above(half)
    assert [each["score"] for each in found[0]] == sorted((each["score"] for each in found[0]), reverse=True)
    assert 0 < sum(map(len, found)) < len(LABELS) * len(TEXTS)
    assert by_name([pipeline(None, folder)(TEXTS[0])]) == above(half)[:1]
    assert by_name(pipeline(None, folder, threshold=0.9)(TEXTS)) == above(dict.fromkeys(LABELS, 0.9))
    assert [len(one) for one in pipeline(None, folder, threshold=0.0, top_k=2)(TEXTS)] == [2, 2, 2]
    assert pipeline(None, folder, threshold=1.0)(TEXTS) == [[], [], []]

    own = {"toxic": 0.1, "threat": 0.999}
    Decision(thresholds=own).save(folder)
    assert by_name(pipeline(None, folder)(TEXTS)) == above({**half, **own})
    metadata = {name: (folder / name).read_text() for name in ("tokenizer.json", DECISION_FILE)}
    path = export_onnx(load_pretrained(folder, "text-classification"), tmp_path / "model.onnx", metadata=metadata)
    assert_same(pipeline(None, path)(TEXTS), pipeline(None, folder)(TEXTS), abs=1e-5)

    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    main(["predict", str(folder), str(tmp_path / "in.txt"), "--threshold", "0.9"])
    lines = [json.loads(line)["labels"] for line in capsys.readouterr().out.splitlines()]
    assert by_name(lines) == above(dict.fromkeys(LABELS, 0.9))


def test_what_is_refused(checkpoint, tmp_path):
    folder = text_model(checkpoint, tmp_path, "plain")
    with pytest.raises(ValueError, match=r"threshold=0.5: it is for models with problem_type multi_label_class"):
        pipeline(None, folder, threshold=0.5)
    say(folder, "multi_label_classification")
    with pytest.raises(ValueError, match=r"threshold=2: expected a probability, 0 to 1"):
        pipeline(None, folder, threshold=2)
    (folder / DECISION_FILE).write_text('{"thresholds": {"toxic": 2}}')
    with pytest.raises(ValueError, match=r"decision\.json: thresholds is .*, expected a number from 0 to 1 for each"):
        pipeline(None, folder)
    say(folder, "multilabel")
    with pytest.raises(ValueError, match=r"config\.json: problem_type is 'multilabel'; expected one of single_label"):
        load_pretrained(folder, "text-classification")
