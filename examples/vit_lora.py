"""A vision transformer adapted to new images in several ways: from scratch, its head alone, LoRA, every parameter.

    torchrun examples/vit_lora.py                                              # digits, no download
    torchrun examples/vit_lora.py --config examples/vit_lora_pneumonia.toml    # chest X-rays, three seeds
    torchrun examples/vit_lora.py --config examples/vit_lora_base.toml         # ViT-base, 224 pixels
    torchrun examples/vit_lora.py --config examples/vit_lora_in21k.toml        # ViT-base from ImageNet-21k, 128 pixels

Without --model a small ViT is trained on scikit-learn's digits 0 to 4 first (540 pictures), then adapted to the digits
5 to 9, or to the images that --data names: an .npz file in the MedMNIST layout, a folder with a folder for each class,
or a CSV file. With --model a pretrained ViT is fine-tuned without LoRA and with it. The table (ablation.md, .json) and
the pictures (confusion.png, samples.png) go beside the run folders. Run it again and it continues where it was.

The digits take about 2 minutes on 2 CPU cores. Expect a test accuracy of about 60 % for the head alone, 92 to 94 % with
LoRA, 92 to 94 % in full, and 86 to 90 % from scratch; the pictures are few (540 to train on, 269 to test), so another
seed moves each by a point or two.

Flags are those of `lora-core train --help` and those below; --learning-rate is LoRA's. The ranks are 8 and 24, each
with alpha twice as large.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from lora_core.models import build_model, config_from_dict, save_pretrained
from trainers.cli import exit_on_user_error, parse_run
from trainers.config import RunConfig
from trainers.data.images.digits import BASE, NEW, write_digits
from trainers.data.images.processing import BICUBIC, ImageProcessing
from trainers.experiment import run
from trainers.processes.distributed import distributed
from trainers.results.confusion import samples_of_run
from trainers.series.ablation import Variant, ablation_table, run_ablation, write_ablation

SMALL_VIT = {"model_type": "vit", "image_size": 28, "patch_size": 4, "hidden_size": 64, "num_hidden_layers": 4,
             "num_attention_heads": 4, "intermediate_size": 128}  # fmt: skip
SMALL_VIT_NOTE = "The small ViT has seen nothing but the pictures named: no large pretrained model takes part."


@dataclass(frozen=True)
class VitConfig(RunConfig):
    """Adapt a vision transformer in several ways, and compare."""

    seeds: int = 1
    """Runs of each kind, with the seeds seed, seed + 1, ...; from two on the table has intervals."""
    full_learning_rate: float = 1e-3
    """Peak learning rate of the runs that train every parameter."""
    head_learning_rate: float = 1e-2
    """Peak learning rate of the run that trains the head alone."""
    base_epochs: int = 30
    """Passes over the digits 0 to 4 that the small ViT learns from first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, but it is {self.seeds}.")


RECIPE = VitConfig(task="image-classification", model="small-vit", output_dir=Path("runs/vit_lora"), resume="auto",
                   epochs=30, batch_size=32, learning_rate=5e-3, warmup=0.1, weight_decay=0.05,
                   target_modules=("query", "key", "value"), fresh_head=True)  # fmt: skip


def main() -> None:
    """Train in every way with every seed; write the table and the pictures."""
    config = parse_run(sys.argv[1:], RECIPE, prog="vit_lora.py")
    folder, seeds = config.output_dir, range(config.seed, config.seed + config.seeds)
    settings = RunConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(RunConfig)})
    full = {"method": "full", "learning_rate": config.full_learning_rate}
    head = {"method": "head", "learning_rate": config.head_learning_rate}
    lora = {r: {"method": "lora", "r": r, "lora_alpha": 2.0 * r} for r in (8, 24)}
    with distributed() as world:
        digits = world.from_main(lambda: write_digits(folder / "data"))
        settings = dataclasses.replace(settings, data=config.data or str(digits[NEW]))
        if config.model == RECIPE.model:
            random = world.from_main(lambda: {seed: write_random_vit(folder / "random", seed) for seed in seeds})
            run(dataclasses.replace(settings, **full, data=str(digits[BASE]), model=random[config.seed], augment="none",
                                    epochs=config.base_epochs, output_dir=folder / "base"))  # fmt: skip
            start, note = dict.fromkeys(seeds, str(folder / "base" / "best")), SMALL_VIT_NOTE
            pretrained = "small ViT, digits 0 to 4"
            ways = [("small ViT, random", "scratch", random, full), (pretrained, "head", start, head)]
        else:
            start, note, pretrained, ways = dict.fromkeys(seeds, config.model), "", Path(config.model).name, []
        ways += [(pretrained, f"lora-r{r}", start, changes) for r, changes in lora.items()]
        ways += [(pretrained, "full", start, full)]
        rows = run_ablation([Variant(title, [dataclasses.replace(settings, **changes, model=models[seed], seed=seed,
                                                                 output_dir=folder / name / f"seed-{seed}")
                                             for seed in seeds])
                             for title, name, models, changes in ways], world)  # fmt: skip
        if world.is_main:
            print(ablation_table(rows, note))
            for path in write_ablation(rows, folder, note):
                print(f"wrote {path}")
            samples_of_run(folder / "lora-r8" / f"seed-{config.seed}", folder / "samples.png")
            print(f"wrote {folder / 'samples.png'}")


def write_random_vit(folder: Path, seed: int) -> str:
    """Write a small ViT with random weights as a checkpoint: to train it in full is to train from scratch."""
    path = folder / f"seed-{seed}"
    save_pretrained(build_model(config_from_dict(SMALL_VIT), "image-classification", ["none"], seed=seed), path)
    ImageProcessing(size=(28, 28), resize_to=(28, 28), resample=BICUBIC).save(path)
    return str(path)


if __name__ == "__main__":
    exit_on_user_error(main)
