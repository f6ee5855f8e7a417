"""The same recipe here and with PEFT and Trainer, over the same seeds: is the mean score the same?

    python benchmarks/peft_seeds.py examples/peft_seeds_agnews.toml --seeds 5 --output-dir runs/peft_seeds

The file has the settings of `lora-core train --config`, method lora, of texts or words. Of each seed both sides learn
from the same tokens of the same batches in the same order, with the same layers adapted and the same weights to start
from, and are scored on the test split by the same code, with the weights of the epoch of the best validation score. So
the interval is that of the paired differences. Where the settings have dropout, each side draws its own: without it,
what is left is the libraries' arithmetic. What is finished is not repeated.
"""

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import provenance
from torch.utils.data import DataLoader

import lora_core
from lora_core.adapters import hosts
from lora_core.files import read_json_object, write_json, write_text
from lora_core.models import resolve
from trainers.cli import exit_on_user_error, read_toml
from trainers.config import RunConfig
from trainers.data.batches import Data, evaluation_batches
from trainers.experiment import run
from trainers.model import build
from trainers.processes.distributed import World
from trainers.recipes import with_recipe
from trainers.results.significance import half_width, paired_interval
from trainers.show import markdown_table
from trainers.tasks import kind_of, settle
from trainers.tasks.task import Task
from trainers.training.batch_plan import BatchPlan

AIM = 0.3
"""Points within which the interval of the difference should lie."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
CLASSES = {"text-classification": ("AutoModelForSequenceClassification", "SEQ_CLS"),
           "token-classification": ("AutoModelForTokenClassification", "TOKEN_CLS")}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("config", type=Path, help="TOML file of settings")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/peft_seeds"))
    given = parser.parse_args()
    if given.seeds < 2:
        raise ValueError(f"--seeds is {given.seeds}: an interval takes two at least.")
    config = with_recipe(dataclasses.replace(read_toml(given.config, RunConfig()), resume="auto", quiet=True))
    if (config.lora_plus_ratio, config.head_rate_ratio) != (1, 1):
        raise ValueError(
            f"{given.config}: PEFT's side has one learning rate for all, but lora_plus_ratio is "
            f"{config.lora_plus_ratio:g} and head_rate_ratio {config.head_rate_ratio:g}. Name a learning_rate and "
            "leave both out."
        )
    ours, theirs = [], []
    for seed in range(config.seed, config.seed + given.seeds):
        one = dataclasses.replace(config, seed=seed, output_dir=given.output_dir / "ours" / f"seed-{seed}")
        ours.append(run(one).result["test"][config.metric])
        theirs.append(_with_peft(one, given.output_dir / "peft" / f"seed-{seed}.json")[config.metric])
        print(f"seed {seed}: ours {100 * ours[-1]:.2f}, PEFT {100 * theirs[-1]:.2f}", flush=True)
    text = f"{provenance()}\n\n{_table(config, 100 * np.array(ours), 100 * np.array(theirs))}"
    print(text)
    print(write_text(given.output_dir / "peft_seeds.md", text))


def _table(config: RunConfig, ours: np.ndarray, theirs: np.ndarray) -> str:
    rows = [
        [name, f"{scores.mean():.2f} ± {half_width(scores):.2f}", *(f"{score:.2f}" for score in scores)]
        for name, scores in (("ours", ours), ("PEFT and Trainer", theirs))
    ]
    low, high = paired_interval(list(ours - theirs)) or (float("-inf"), float("inf"))
    within = "within" if max(-low, high) <= AIM else "not within"
    header = ["", "mean of the seeds", *(str(config.seed + number) for number in range(len(ours)))]
    return (
        f"{markdown_table(header, rows)}\n\nTest {config.metric} of {config.data} in percent; the difference of the "
        f"means is {ours.mean() - theirs.mean():+.2f} (95% interval of the paired differences {low:+.2f} to "
        f"{high:+.2f}), {within} {AIM} points.\n"
    )


def _with_peft(config: RunConfig, path: Path) -> dict[str, Any]:
    """The test scores of PEFT and Trainer, which are kept in a file."""
    if path.is_file():
        return read_json_object(path, "Delete it to train again.")
    import peft
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.set_seed(config.seed)
    kind = kind_of(config.task)
    config, datasets = settle(config, kind.load(config))
    labels = datasets["train"].labels
    like = build(config, labels)
    data = {split: kind.encode(dataset.with_labels(labels), like, config) for split, dataset in datasets.items()}
    task = kind.task(labels, config, data["train"])
    class_name, task_type = CLASSES[config.task]
    model = getattr(transformers, class_name).from_pretrained(
        resolve(config.model), num_labels=len(labels), attention_probs_dropout_prob=config.attention_dropout,
        **({} if config.hidden_dropout is None else {"hidden_dropout_prob": config.hidden_dropout}),
    )  # fmt: skip
    adapter = peft.LoraConfig(
        r=config.r, lora_alpha=config.lora_alpha or config.r,  # type: ignore[arg-type]  # a float serves too
        lora_dropout=config.lora_dropout, bias=config.bias,
        use_rslora=config.use_rslora, use_dora=config.use_dora, task_type=task_type,
        target_modules=[name for name, _ in hosts(like)],
    )  # fmt: skip
    model = peft.get_peft_model(model, adapter)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trainable != lora_core.parameter_counts(like)[0]:
        raise ValueError(f"PEFT trains {trainable:,} parameters, we {lora_core.parameter_counts(like)[0]:,}.")
    begin = dict(lora_core.lora_state_dict(like))
    unknown = peft.set_peft_model_state_dict(model, begin).unexpected_keys
    if unknown or not begin:
        raise ValueError(f"PEFT does not know {', '.join(unknown)}.")
    plan = BatchPlan(data["train"], config, World(rank=0, size=1, device=torch.device("cpu")), None)
    arguments = transformers.TrainingArguments(
        str(path.parent / "trainer"), num_train_epochs=plan.epochs, per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate or 0.0, lr_scheduler_type=config.schedule,
        warmup_steps=round((config.warmup or 0) * plan.total_steps),
        weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm, seed=config.seed,
        label_smoothing_factor=config.label_smoothing, remove_unused_columns=False, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip

    def batch(indices: list[int]) -> dict[str, torch.Tensor]:
        inputs, targets = data["train"].collate(np.array(indices), epoch=0)
        return {**{name: inputs[name] for name in INPUTS if name in inputs}, "labels": targets}

    best = _BestEpoch(model, task, data["validation"], config)
    examples: Any = range(len(data["train"].lengths))
    loader = DataLoader(examples, batch_sampler=_Batches(plan), collate_fn=batch)

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self) -> DataLoader:
            return loader

    trainer = Trainer(model, arguments, train_dataset=examples, callbacks=[best.callback()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    best.restore()
    scores = _scores(model, task, data["test"], config)
    write_json(path, scores)
    return scores


class _Batches:
    """The batches of our training, epoch after epoch, as a sampler of torch's DataLoader."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan, self.epoch = plan, 0

    def __len__(self) -> int:
        return len(self.plan.batches(0))

    def __iter__(self) -> Iterator[list[int]]:
        self.epoch += 1  # now: Trainer takes as many batches as there are, and never learns that they have ended
        return iter([indices.tolist() for indices in self.plan.batches(self.epoch - 1)])


class _BestEpoch:
    """The trained weights of the epoch of the best validation score."""

    def __init__(self, model: Any, task: Task, validation: Data, config: RunConfig) -> None:
        self.model, self.task, self.validation, self.config = model, task, validation, config
        self.best, self.weights = -float("inf"), {}

    def note(self) -> None:
        score = _scores(self.model, self.task, self.validation, self.config)[self.config.metric]
        if score > self.best:
            self.best = score
            self.weights = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    def restore(self) -> None:
        self.model.load_state_dict(self.weights, strict=False)

    def callback(self) -> Any:
        import transformers

        note = self.note

        class AtEpochs(transformers.TrainerCallback):
            def on_epoch_end(self, *_: Any, **__: Any) -> None:
                note()

        return AtEpochs()


@torch.no_grad()
def _scores(model: Any, task: Task, data: Data, config: RunConfig) -> dict[str, Any]:
    """As our loop scores, of a transformers model; it is left in training mode or not as it was."""
    training = model.training
    model.eval()
    found: dict[int, np.ndarray] = {}
    for indices in evaluation_batches(data.lengths, config.evaluation_tokens(data.lengths)):
        inputs, targets = data.collate(indices)
        logits = model(**{name: inputs[name] for name in INPUTS if name in inputs}).logits
        found.update(zip(indices.tolist(), task.predict(logits, targets), strict=True))
    model.train(training)
    return task.metrics([found[index] for index in range(len(data.lengths))], data)


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
