"""Image classification: a label for each picture."""

import logging
from functools import cache
from pathlib import Path

import numpy as np

from lora_core.models.labels import ProblemType
from lora_core.models.pretrained.source import read_config, resolve
from lora_core.models.task_model import TaskModel
from trainers.config import RunConfig
from trainers.data.images.batches import ImageBatches, ImageDataset
from trainers.data.images.processing import PREPROCESSOR_FILE, ImageProcessing
from trainers.data.images.reader import load_image_datasets
from trainers.data.reading import Reading
from trainers.data.splits import limited, stratified
from trainers.model import image_size
from trainers.tasks.classification import Classification
from trainers.tasks.label_scores import LABEL_METRICS, label_counts
from trainers.training.losses import training_loss

logger = logging.getLogger("trainers")

SETTINGS = frozenset({"image_size", "augment", "label_column", "delimiter", "encoding", "problem_type"})
METRICS = LABEL_METRICS
ONE_LABEL: bool = True
PROBLEM_TYPES: tuple[ProblemType, ...] = ("single_label_classification",)


def load(config: RunConfig) -> dict[str, ImageDataset]:
    """The splits of the run's data, or as much of them as the settings want."""
    datasets = load_image_datasets(config.data, on_bad_row=config.on_bad_row, reading=Reading.of(config))
    return limited(datasets, config.train_examples, config.test_examples, stratified)


def encode(dataset: ImageDataset, model: TaskModel, config: RunConfig, saved: Path | None = None) -> ImageBatches:
    """The pictures as the model takes them: in its size, normalised as its preprocessor_config.json says.

    Raises:
        ValueError: preprocessor_config.json has another number of channels than the model.
    """
    height, width = model.config.image_shape
    processing = _processing(config, model.config.num_channels, saved).with_size(height, width)
    return ImageBatches(dataset, processing, config.augment, config.seed)


def task(labels: tuple[str, ...], config: RunConfig, train: ImageBatches | None = None) -> Classification:
    """The loss and the scores."""
    return Classification(labels, None if train is None else training_loss(config, train.targets, len(labels)))


def save_preprocessing(config: RunConfig, folder: Path, pairs: bool = False) -> None:
    """Write preprocessor_config.json into ``folder``, with the size that the model was trained at."""
    values = read_config(resolve(config.model))
    size = image_size(config) or values.get("image_size", 224)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    _processing(config, values.get("num_channels", 3)).with_size(height, width).save(folder)


def _processing(config: RunConfig, channels: int, saved: Path | None = None) -> ImageProcessing:
    folder = saved or resolve(config.model)
    processing = ImageProcessing.read(folder)
    if processing is None:
        processing = ImageProcessing(mean=(0.5,) * channels, std=(0.5,) * channels)
        _say_as_for_vit(folder)
    if processing.channels != channels:
        raise ValueError(
            f"{folder / PREPROCESSOR_FILE} has means for {processing.channels} channels, but the model "
            f"reads {channels}: the files are not of one model."
        )
    return processing


@cache
def _say_as_for_vit(folder: Path) -> None:
    """Log it once, however many splits there are."""
    logger.warning("%s has no %s: pixels are brought to -1 to 1, as for ViT", folder, PREPROCESSOR_FILE)


def label_ids(dataset: ImageDataset) -> np.ndarray:
    """The label id of each example, (N,)."""
    return dataset.targets


counts = label_counts


def shown(dataset: ImageDataset, index: int) -> Path | bytes | np.ndarray:
    """The picture of an example: its file, the content of one, or its pixels."""
    return dataset.images[index]
