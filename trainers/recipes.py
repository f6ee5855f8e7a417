"""What a run takes where its settings leave it open: learning rate, warmup and LoRA's layers by method and task, epochs
by how many examples there are.

A learning rate is that of an encoder 384 wide, as MiniLM-L6 is, or narrower. A wider one takes a lower rate in inverse
proportion, as suits Adam (Yang et al. 2022, "Tensor Programs V"): half of it at 768, which is what BERT-base and
RoBERTa-base are usually given. LoRA takes ten to twenty times the rate of full fine-tuning, and layers of every kind
rather than a higher rank (Schulman et al., "LoRA Without Regret", 2025).
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from lora_core.models import config_from_dict
from lora_core.models.pretrained.source import read_config, resolve
from trainers.config import SCRATCH, RunConfig, TrainConfig
from trainers.run_folder import RunFolder

MEASURED_WIDTH = 384
"""Of the encoder that the learning rates were measured with."""
OPEN = ("learning_rate", "lora_plus_ratio", "warmup", "target_modules")
"""Settings that a recipe fills in."""
EPOCHS, MOST_EPOCHS = 3, 50
"""What is usual, and the most that few examples take."""
LEAST_STEPS = {"token-classification": 2000, "text-classification": 200, "image-classification": 200}
LEAST_STEPS_UNTRAINED = 2000
"""Of a whole training: fewer teach too little, so few examples take more epochs (measured in examples/README.md)."""


@dataclass(frozen=True)
class Recipe:
    """What a method takes for a task."""

    learning_rate: float
    """Of an encoder 384 wide, or narrower."""
    lora_plus_ratio: float = 1.0
    """LoRA's; with another learning rate than this recipe's it is 1."""
    warmup: float = 0.06
    target_modules: tuple[str, ...] = ()
    """LoRA's."""


RECIPES = {
    ("lora", "token-classification"): Recipe(2e-3, target_modules=("all-linear",)),
    ("lora", "text-classification"): Recipe(1e-4, lora_plus_ratio=8.0, target_modules=("all-linear",)),
    ("lora", "image-classification"): Recipe(2e-3, target_modules=("qkv",)),
    ("full", "token-classification"): Recipe(1e-4),
    ("full", "text-classification"): Recipe(1e-4),
    ("full", "image-classification"): Recipe(1e-4),
    ("head", "token-classification"): Recipe(1e-3, warmup=0.0),
    ("head", "text-classification"): Recipe(1e-3, warmup=0.0),
    ("head", "image-classification"): Recipe(1e-3, warmup=0.0),
}
"""By method and task. Where they are from, all with MiniLM-L6 unless said otherwise:

LoRA, words: BioNLP2004, 3 epochs, the table in examples/README.md. Texts: what suits 1,000 texts of AG News as well as
full fine-tuning does (examples/study_texts_small.toml) and is best of that kind for 5,100 (study_agnews.toml), where
three times the rate gains half a point, which loses three for 1,000; without LoRA+, 5e-4 does as well for 1,000 and a
point worse for 5,100, and at 2e-3 other short texts have ended in one class for all. Images: study_pneumonia.toml, a
ViT 64 wide. In full: the same studies for words and texts, and for images what pretrained ViTs are usually given.
"""
UNTRAINED = Recipe(1e-3, warmup=0.0)
"""Of a model that starts untrained, however wide."""


def as_begun(config: RunConfig) -> RunConfig:
    """The settings of a run that goes on, with what they leave open as it was when the run was begun."""
    folder = RunFolder(config.output_dir)
    if not config.resume or config.overwrite or not folder.settings.is_file():
        return config
    begun = folder.read_settings()
    left_open = [*_left_open(config), *(["epochs"] if config.epochs is None else [])]
    own = {name: begun[name] for name in left_open if begun.get(name) is not None}
    return dataclasses.replace(config, **{n: tuple(v) if isinstance(v, list) else v for n, v in own.items()})


def with_recipe(config: RunConfig) -> RunConfig:
    """The settings with what they leave open as the recipe says.

    Raises:
        ValueError, OSError: the model's config.json cannot be read.
    """
    _refuse_run(config.model)
    left_open = _left_open(config)
    if not left_open:
        return config
    recipe = _by_method(config)
    recipe = recipe_of(config) if "learning_rate" in left_open else dataclasses.replace(recipe, lora_plus_ratio=1.0)
    return dataclasses.replace(config, **{name: getattr(recipe, name) for name in left_open})


def usual_epochs(config: TrainConfig, steps: int) -> int:
    """Passes over training data of which one makes so many steps; where the task is not known, as for texts."""
    enough = LEAST_STEPS["text-classification"]
    if isinstance(config, RunConfig):
        enough = LEAST_STEPS_UNTRAINED if config.model in SCRATCH else LEAST_STEPS[config.task]
    return min(max(EPOCHS, -(-enough // max(1, steps))), MOST_EPOCHS)


def recipe_of(config: RunConfig) -> Recipe:
    """The recipe of a run's method, task and model."""
    recipe = _by_method(config)
    if config.model in SCRATCH:
        return recipe
    width = config_from_dict(read_config(resolve(config.model))).hidden_size  # type: ignore[attr-defined]  # all have it
    rate = recipe.learning_rate * min(1, MEASURED_WIDTH / width)
    return dataclasses.replace(recipe, learning_rate=float(f"{rate:.2g}"))


def _refuse_run(model: str) -> None:
    """Raises ValueError where the model is a run, or an adapter, in whose folder a model of its own lies elsewhere."""
    folder = Path(model).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        folder = folder.parent
    run = RunFolder(folder)
    if model not in SCRATCH and run.settings.is_file() and run.metrics.is_file():
        whole = folder / "best"
        remedy = f"give {whole}" if (whole / "config.json").is_file() else (
            f"make a model of it first: lora-core merge {folder} --output-dir FOLDER, and give that")  # fmt: skip
        raise ValueError(f"--model {model} is a run, not a model: {remedy}.")


def layers_of(config: RunConfig) -> tuple[str, ...]:
    """The layers that LoRA adapts: those of the settings, or of the recipe."""
    return config.target_modules or _by_method(config).target_modules


def _by_method(config: RunConfig) -> Recipe:
    return UNTRAINED if config.model in SCRATCH else RECIPES[config.method, config.task]


def _left_open(config: RunConfig) -> list[str]:
    return [name for name in OPEN if getattr(config, name) in (None, ())]
