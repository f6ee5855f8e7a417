"""Image classification through the whole machinery: data, training, saved run, scores again."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_core.models import build_model, config_from_dict, load_pretrained, save_pretrained
from trainers.config import RunConfig
from trainers.data.images.batches import ImageDataset
from trainers.data.images.npz import write_npz
from trainers.data.images.processing import ImageProcessing
from trainers.experiment import run
from trainers.finished import evaluate_run
from trainers.run_folder import read_predictions
from trainers.serve import pipeline
from trainers.serve.export import export_run
from trainers.tasks import image, kind_of

SIZES = {"model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip
PROCESSING = ImageProcessing(size=(8, 8), resize_to=(8, 8), mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    save_pretrained(build_model(config_from_dict(SIZES), "image-classification", ["none"]), folder)
    PROCESSING.save(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures of noise, dark ones and bright ones."""
    random = np.random.default_rng(0)
    splits = {}
    for split, count in {"train": 24, "validation": 8, "test": 8}.items():
        images, targets = random.integers(0, 100, (count, 8, 8), dtype=np.uint8), np.arange(count) % 2
        images[targets == 1] += 150
        splits[split] = ImageDataset(images, targets, ("dark", "bright"), "")
    path = tmp_path_factory.mktemp("data") / "shades.npz"
    write_npz(path, splits)
    return path


def settings(model, data, folder, **changes):
    config = RunConfig(task="image-classification", model=str(model), data=str(data), output_dir=folder, epochs=15,
                       batch_size=8, learning_rate=0.01, fresh_head=True, target_modules=("query", "key", "value"),
                       r=4)  # fmt: skip
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_a_run_learns_and_its_model_scores_the_same_again(model, data, tmp_path, method):
    config = settings(model, data, tmp_path / "run", method=method, augment="flip")
    result = run(config).result
    assert result["labels"] == ["dark", "bright"]
    assert result["test"]["accuracy"] == 1 or method == "head"
    assert np.sum(result["test"]["confusion"]) == 8
    again = evaluate_run(tmp_path / "run")
    assert again["loss"] == pytest.approx(result["test"]["loss"], rel=1e-5)
    assert again["confusion"] == result["test"]["confusion"]
    predicted, gold = read_predictions(tmp_path / "run")
    assert np.concatenate(gold).tolist() == [0, 1] * 4
    assert np.mean(np.concatenate(predicted) == np.concatenate(gold)) == result["test"]["accuracy"]
    saved = tmp_path / "run" / ("adapter" if method == "lora" else "best")
    assert ImageProcessing.read(saved) == PROCESSING


def test_what_is_saved_is_where_the_next_run_begins(model, data, tmp_path):
    run(settings(model, data, tmp_path / "base", method="full", epochs=1, image_size=12))
    base = tmp_path / "base" / "best"
    assert ImageProcessing.read(base) == PROCESSING.with_size(12, 12)
    run(settings(base, data, tmp_path / "next", method="head", epochs=1))
    trained = load_pretrained(tmp_path / "next" / "best", "image-classification")
    started = load_pretrained(base, "image-classification")
    assert torch.equal(
        trained.vit.encoder.layer[1].output.dense.weight, started.vit.encoder.layer[1].output.dense.weight
    )
    assert not torch.equal(trained.classifier.weight, started.classifier.weight)


def test_pictures_come_in_the_models_size_with_its_normalisation(model, data):
    config = settings(model, data, Path("unused"))
    dataset = image.load(config)["test"]
    resized = load_pretrained(model, "image-classification", ["a"], image_size=(16, 12), fresh_head=True)
    inputs, _ = image.encode(dataset, resized, config).collate(np.arange(3))
    assert inputs["pixel_values"].shape == (3, 3, 16, 12)
    assert torch.equal(inputs["pixel_values"], PROCESSING.with_size(16, 12)(dataset.images[:3]))


def test_augmentation_and_seed_come_from_the_settings(model, data):
    config = settings(model, data, Path("unused"), augment="crop", seed=7)
    built = load_pretrained(model, "image-classification")
    batches = image.encode(image.load(config)["train"], built, config)
    assert (batches.augment, batches.seed) == ("crop", 7)


def test_the_saved_preprocessing_has_the_size_of_training(model, data, tmp_path):
    image.save_preprocessing(settings(model, data, Path("unused")), tmp_path)
    assert ImageProcessing.read(tmp_path) == PROCESSING
    image.save_preprocessing(settings(model, data, Path("unused"), image_size=16), tmp_path)
    assert ImageProcessing.read(tmp_path) == PROCESSING.with_size(16, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_without_a_preprocessor_config_pixels_are_as_for_vit_and_it_is_said(data, tmp_path, caplog, channels):
    built = build_model(config_from_dict({**SIZES, "num_channels": channels}), "image-classification", ["a", "b"])
    save_pretrained(built, tmp_path)
    config = settings(tmp_path, data, Path("unused"))
    inputs, _ = image.encode(image.load(config)["test"], built, config).collate(np.arange(2))
    assert inputs["pixel_values"].shape == (2, channels, 8, 8)
    assert inputs["pixel_values"].min() >= -1
    assert inputs["pixel_values"].max() > 0.5
    assert "no preprocessor_config.json: pixels are brought to -1 to 1" in caplog.text
    assert built(**inputs).shape == (2, 2)


def test_a_preprocessor_config_for_other_channels(data, tmp_path):
    built = build_model(config_from_dict({**SIZES, "num_channels": 1}), "image-classification", ["a", "b"])
    save_pretrained(built, tmp_path)
    PROCESSING.save(tmp_path)
    config = settings(tmp_path, data, Path("unused"))
    with pytest.raises(ValueError, match="means for 3 channels, but the model reads 1"):
        image.encode(image.load(config)["test"], built, config)


def test_a_part_of_the_data(model, data, tmp_path):
    part = image.load(settings(model, data, tmp_path, train_examples=12, test_examples=3))
    assert {split: np.bincount(images.targets).tolist() for split, images in part.items()} == {
        "train": [6, 6], "validation": [2, 2], "test": [2, 1]}  # fmt: skip


def test_the_kind_is_registered():
    assert kind_of("image-classification") is image
    assert image.task(("a", "b"), RunConfig()).labels == ("a", "b")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_dinov2_takes_the_size_that_its_preprocessor_cuts_out(data, tmp_path, method, caplog):
    """Its checkpoints have positions for larger pictures (518 pixels in published ones, which are used with 224)."""
    sizes = {"model_type": "dinov2", "image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    save_pretrained(build_model(config_from_dict(sizes), "image-classification", ["none"]), tmp_path / "dino")
    processing = ImageProcessing(size=(8, 8), resize_to=None, shortest_edge=9)
    processing.save(tmp_path / "dino")
    config = settings(tmp_path / "dino", data, tmp_path / "run", method=method, epochs=3)
    with caplog.at_level("INFO"):
        result = run(config).result
    assert "pictures are taken at (8, 8) pixels, as preprocessor_config.json says" in caplog.text
    assert evaluate_run(tmp_path / "run")["loss"] == pytest.approx(result["test"]["loss"], rel=1e-5)
    assert ImageProcessing.read(tmp_path / "run" / ("adapter" if method == "lora" else "best")) == processing
    picture = np.full((20, 30), 200, dtype=np.uint8)
    found = pipeline("image-classification", tmp_path / "run", top_k=2)(picture)
    export_run(tmp_path / "run", points_lost=100)
    exported = pipeline("image-classification", tmp_path / "run/model.onnx", top_k=2)(picture)
    assert [label["label"] for label in exported] == [label["label"] for label in found]
    assert exported[0]["score"] == pytest.approx(found[0]["score"], abs=1e-4)
    larger = dataclasses.replace(config, output_dir=tmp_path / "larger", image_size=12, epochs=1)
    run(larger)
    kept = ImageProcessing.read(tmp_path / "larger" / ("adapter" if method == "lora" else "best"))
    assert (kept.size, kept.shortest_edge) == ((12, 12), 14)
