"""transformers' pipelines as the oracles, on tiny models whose weights are large enough to tell inputs apart."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from lora_core.export import export_onnx
from lora_core.models import build_model, config_from_dict, load_pretrained, save_pretrained
from trainers.cli import main
from trainers.data.images.processing import ImageProcessing
from trainers.serve import pipeline

LABELS = ["negative", "neutral", "positive"]
TEXTS = ["il2 binds the gene", "junb", "", "promoter of a gene in cells . abcd", "the the the il2 " * 30]


def stirred(model):
    """The model with weights that are not near zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    return model


@pytest.fixture(scope="module")
def text_model(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    save_pretrained(stirred(load_pretrained(checkpoint, "text-classification", LABELS)), folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoint / "tokenizer.json"), pad_token="[PAD]", model_max_length=24
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    config = config_from_dict({"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                               "intermediate_size": 32, "image_size": 32, "patch_size": 8})  # fmt: skip
    save_pretrained(stirred(build_model(config, "image-classification", LABELS)), folder)
    ImageProcessing(size=(32, 32), resize_to=(32, 32)).save(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Paths of pictures in several sizes and modes."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    paths = []
    for number, (size, mode) in enumerate([((40, 50), "RGB"), ((32, 32), "L"), ((20, 64), "RGB"), ((33, 31), "RGB")]):
        pixels = random.integers(0, 256, (*size, 3) if mode == "RGB" else size).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        paths.append(str(folder / f"{number}.png"))
    return paths


def assert_same(found, expected):
    assert [each["label"] for each in found] == [each["label"] for each in expected]
    assert [each["score"] for each in found] == pytest.approx([each["score"] for each in expected], abs=1e-5)


def test_labels_of_texts_are_those_of_transformers(text_model):
    oracle = transformers.pipeline("text-classification", model=str(text_model), device="cpu")
    ours = pipeline("text-classification", text_model, max_tokens=30)
    found = ours(TEXTS)
    assert len({round(each["score"], 3) for each in found}) > 2
    assert_same(found, oracle(TEXTS, truncation=True))
    assert_same(ours(TEXTS[0]), oracle(TEXTS[0]))
    for top_k in (2, None):
        several = pipeline(None, text_model, top_k=top_k)
        for ours_, theirs in zip(several(TEXTS), oracle(TEXTS, truncation=True, top_k=top_k), strict=True):
            assert_same(ours_, theirs)
        assert_same(several(TEXTS[1]), oracle(TEXTS[1], top_k=top_k))
    assert list(ours(iter(TEXTS))) == found
    assert ours([]) == []
    with pytest.raises(ValueError, match="text 1 is int"):
        ours(["a", 3])
    with pytest.raises(ValueError, match="top_k=0"):
        pipeline(None, text_model, top_k=0)


def test_a_text_that_is_shortened_is_said_once(text_model, caplog):
    classify = pipeline(model=text_model)
    classify(["gene", "gene " * 600])
    classify("gene " * 600)
    (said,) = [record.message for record in caplog.records if "is kept" in record.message]
    assert (
        f"{text_model} reads at most {classify.served.max_length} tokens: of longer input, as here, the beginning is"
        in said
    )


def test_options_of_a_call_are_for_it_alone(text_model, image_model, pictures):
    oracle = transformers.pipeline("text-classification", model=str(text_model), device="cpu")
    classify = pipeline(model=text_model)
    before = classify(TEXTS)
    assert_same(classify(TEXTS[0], top_k=None), oracle(TEXTS[0], top_k=None))
    streamed = list(classify(iter(TEXTS), top_k=2))
    assert [len(labels) for labels in streamed] == [2] * len(TEXTS)
    assert_same(streamed[1], oracle(TEXTS[1], top_k=2))
    assert classify(TEXTS) == before
    with pytest.raises(ValueError, match="no option 'topk'; it has top_k, threshold"):
        classify(TEXTS[0], topk=2)
    assert [len(labels) for labels in pipeline(model=image_model)(pictures, top_k=2)] == [2] * len(pictures)


def test_labels_of_images_are_those_of_transformers(image_model, pictures):
    processor = transformers.ViTImageProcessor.from_pretrained(image_model)
    oracle = transformers.pipeline("image-classification", model=str(image_model), image_processor=processor,
                                   device="cpu")  # fmt: skip
    ours = pipeline("image-classification", image_model, top_k=None, max_tokens=8)
    expected = oracle(pictures, top_k=3)
    opened = [Image.open(path) for path in pictures]
    for inputs in (pictures, opened, [np.asarray(picture) for picture in opened]):
        for found, theirs in zip(ours(inputs), expected, strict=True):
            assert [each["label"] for each in found] == [each["label"] for each in theirs]
            assert [each["score"] for each in found] == pytest.approx([each["score"] for each in theirs], abs=0.01)
    assert len({round(found[0]["score"], 3) for found in ours(pictures)}) > 1
    assert ours(opened[0].convert("RGBA")) == ours(pictures[0])
    alone, among = ours(pictures[1]), ours(pictures)[1]
    assert [each["label"] for each in alone] == [each["label"] for each in among]
    assert [each["score"] for each in alone] == pytest.approx([each["score"] for each in among], abs=1e-6)
    (best,) = pipeline(None, image_model)(pictures[0])
    assert best == ours(pictures[0])[0]


def test_onnx_files_give_the_same(text_model, image_model, pictures, tmp_path):
    for folder, inputs, name in (
        (text_model, TEXTS, "tokenizer.json"),
        (image_model, pictures, "preprocessor_config.json"),
    ):
        torch_pipeline = pipeline(None, folder)
        path = export_onnx(torch_pipeline.served.model, tmp_path / "model.onnx",
                           metadata={name: (folder / name).read_text(), "max_length": "24"})  # fmt: skip
        assert_same(pipeline(None, path)(inputs), torch_pipeline(inputs))


def test_words_are_no_input_for_texts(text_model, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "a", "tokens": ["a"]}\n{"tokens": ["a"]}\n')
    with pytest.raises(SystemExit):
        main(["predict", str(text_model), str(tmp_path / "in.jsonl"), "--on-bad-row", "error"])
    assert "in.jsonl:2: expected a JSON object with 'text', got" in capsys.readouterr().err


def test_the_verb(text_model, image_model, pictures, tmp_path, capsys):
    ours = pipeline(None, text_model)(TEXTS[:2])
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:2]))
    main(["predict", str(text_model), str(tmp_path / "texts.txt")])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"text": text, "labels": [label]} for text, label in zip(TEXTS, ours, strict=False)]
    main(["predict", str(text_model), str(tmp_path / "texts.txt"), "--format", "text", "--top-k", "2"])
    first = capsys.readouterr().out.splitlines()[0].split("\t")
    assert first[0] == f"{ours[0]['label']} {ours[0]['score']:.4f}"
    assert first[2] == TEXTS[0]
    main(["predict", str(image_model), *pictures[:2]])
    direct = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in direct] == pictures[:2]
    (tmp_path / "pictures.txt").write_text("\n".join(pictures[:2]))
    (tmp_path / "pictures.jsonl").write_text("\n".join(json.dumps({"image": path}) for path in pictures[:2]))
    for name in ("pictures.txt", "pictures.jsonl"):
        main(["predict", str(image_model), str(tmp_path / name)])
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == direct
