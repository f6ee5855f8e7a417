"""The card beside a run's weights: README.md, with the metadata that the hub reads and what people ask first."""

import itertools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from lora_core.files import write_text
from lora_core.models.pretrained.source import EMBEDDED, HUB_ID
from trainers.config import RunConfig
from trainers.data.rows import BadRows
from trainers.data.tokens.bio import OUTSIDE, find_entities
from trainers.data.tokens.reader import TokenDataset, TokenFile
from trainers.model import is_scratch
from trainers.run_folder import MAIN_SCORES, REGRESSION_SCORES, RunFolder, read_predictions
from trainers.tasks import kind_of
from trainers.tasks.intervals import f1_interval
from trainers.tasks.label_scores import multi_label_counts

CARD = "README.md"
EMBEDDED_ID = "sentence-transformers/all-MiniLM-L6-v2"
"""The embedded model's name on the hub."""
AUTO_CLASSES = {
    "token-classification": "AutoModelForTokenClassification",
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}
SHOWN = ("method", "target_modules", "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora", "epochs",
         "batch_size", "batch_tokens", "learning_rate", "schedule", "warmup", "weight_decay", "precision", "frozen",
         "head", "max_length", "long_text", "image_size", "class_weights", "metric", "seed")  # fmt: skip
"""Settings that the card lists, where they are set."""
OF_LORA = frozenset({"target_modules", "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora"})
LOOKED_AT = 200
"""Examples among which the one to show is looked for."""
LONGEST_SHOWN = 400
"""Characters of a text that is shown."""


def write_card(config: RunConfig, result: Mapping[str, Any], dataset: Any = None) -> Path:
    """Write README.md beside the weights that a run has saved, and return its path.

    Args:
        config: the run's settings, with its folder and its problem type.
        result: what the run's log says at the end.
        dataset: the scored split, of which an example is shown; None: none is shown.
    """
    folder = RunFolder(config.output_dir)
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, autoescape=False
    )
    text = templates.get_template("card.md.jinja").render(card_values(config, result, dataset))
    return write_text(folder.weights(config.method) / CARD, text)


def card_values(config: RunConfig, result: Mapping[str, Any], dataset: Any = None) -> dict[str, Any]:
    """What the template is filled with; arguments as for `write_card`."""
    split = "test" if "test" in result else "validation"
    scores, labels = result[split], list(result["labels"])
    predicted, gold = read_predictions(config.output_dir, split)
    lora, scratch = config.method == "lora", is_scratch(config)
    base, data = _hub_id(config.model), _hub_id(config.data)
    name, data_name = config.output_dir.resolve().name, data or Path(config.data).name or "data in memory"
    regression = config.problem_type == "regression"
    interval = None if regression else _interval(config, predicted, gold, labels)
    shown = REGRESSION_SCORES if regression else {**MAIN_SCORES, "accuracy": "accuracy"}
    parts = scores.get("types") or scores.get("labels") or {}
    parts = parts if isinstance(parts, dict) else {}
    head = config.head if config.head != "default" else ""
    why_not = "it starts from nothing" if scratch else f"the head is {head}" if head else ""
    if lora and config.task == "image-classification" and config.image_size is not None:
        why_not = f"positions are interpolated to {config.image_size} pixels, which a merged model alone holds"
    what = f"A LoRA adapter of {_code(config.model)}" if lora else f"{_code(config.model)}, {_TRAINED[config.method]},"
    kinds = "numbers" if regression else f"{len(labels)} labels"
    return {
        "metadata": _metadata(config, base, data, split, scores, shown, name, data_name),
        "name": name,
        "summary": f"{what} for {config.task.replace('-', ' ')} with {kinds}, trained on {data_name} with lora-core.",
        "split": split,
        "examples": f"{len(gold):,}",
        "data_name": data_name,
        "scores": [
            {"name": title, "value": f"{scores[key]:.4f}" if regression else _percent(scores[key])}
            for key, title in shown.items()
            if key in scores
        ],
        "interval": interval and f"{_percent(interval[0])} to {_percent(interval[1])}",
        "parts_are": "entity" if config.task == "token-classification" else "label",
        "parts": [
            {"name": _cell(part), "support": own["support"], **{key: _percent(own[key]) for key in MAIN_SCORES}}
            for part, own in parts.items()
        ],
        "example": None if dataset is None else _example(config, dataset, predicted, gold, labels),
        "elsewhere": not why_not,
        "why_not_elsewhere": why_not,
        "lora": lora,
        "auto_class": AUTO_CLASSES[config.task],
        "processor_class": "AutoImageProcessor" if config.task == "image-classification" else "AutoTokenizer",
        "processor": "processor" if config.task == "image-classification" else "tokenizer",
        "base": json.dumps(base or config.model),
        "labels": json.dumps(labels, ensure_ascii=False),
        "recipe": _recipe(config, result),
        "settings": [
            (name.replace("_", " "), _cell(", ".join(value) if isinstance(value, tuple) else str(value)))
            for name in SHOWN
            if (value := getattr(config, name)) not in (None, "", False, "default") and (lora or name not in OF_LORA)
        ],
        "data": _about_data(config, data),
        "limits": _limits(config, labels, split, len(gold), base),
    }


_TRAINED = {"full": "fine-tuned in full", "head": "of which the head was trained"}


def _metadata(
    config: RunConfig,
    base: str | None,
    data: str | None,
    split: str,
    scores: Mapping[str, Any],
    shown: Mapping[str, str],
    name: str,
    data_name: str,
) -> str:
    """The YAML that the hub reads (https://huggingface.co/docs/hub/model-cards)."""
    lora = config.method == "lora"
    metrics = [key for key in shown if key in scores]
    dataset = {"name": data_name, "type": data or data_name, "split": split}
    values: dict[str, Any] = {
        "library_name": "peft" if lora else "transformers",
        "pipeline_tag": config.task,
        "tags": ["lora-core", *(["lora"] if lora else []), config.task],
        "metrics": metrics,
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": config.task},
                        "dataset": dataset,
                        "metrics": [
                            {"type": key, "value": round(float(scores[key]), 6), "name": shown[key]} for key in metrics
                        ],
                    }
                ],
            }
        ],
    }
    if base:
        values |= {"base_model": base, "base_model_relation": "adapter" if lora else "finetune"}
    if data:
        values["datasets"] = [data]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _hub_id(source: str) -> str | None:
    """The hub id that a setting names; None where it names files here."""
    if source == EMBEDDED:
        return EMBEDDED_ID
    here = os.environ.get("LORA_DATA_DIR")
    if not HUB_ID.fullmatch(source) or Path(source).exists() or (here and Path(here, source).exists()):
        return None
    return source if "/" in source or not source.endswith((".json", ".jsonl", ".csv")) else None


def _interval(
    config: RunConfig, predicted: list[np.ndarray], gold: list[np.ndarray], labels: list[str]
) -> tuple[float, float] | None:
    several = config.problem_type == "multi_label_classification"
    counts = multi_label_counts if several else kind_of(config.task).counts
    return f1_interval(counts(predicted, gold, labels)) if gold else None


def _example(
    config: RunConfig, dataset: Any, predicted: list[np.ndarray], gold: list[np.ndarray], labels: list[str]
) -> dict[str, str]:
    """The first example that has something to find and was predicted rightly, else the first."""
    tags = config.task == "token-classification"
    outside = labels.index(OUTSIDE) if tags and OUTSIDE in labels else None
    pairs = list(zip(predicted[:LOOKED_AT], gold[:LOOKED_AT], strict=True))
    telling = (
        row
        for row, (found, true) in enumerate(pairs)
        if np.array_equal(found, true) and not (outside is not None and (true == outside).all())
    )
    index = next(telling, 0)
    if isinstance(dataset, TokenFile):  # which may be too large for memory
        words, ids = next(itertools.islice(dataset.sentences(BadRows("skip")), index, None))
        dataset, place = TokenDataset([words], [ids], dataset.labels, dataset.source), 0
    else:
        dataset, place = dataset.in_memory(), index
    shown = kind_of(config.task).shown(dataset, place)
    if tags:
        words = list(shown)
        return {
            "input": _line(" ".join(words)),
            **{
                key: _entities(words, [labels[number] for number in ids])
                for key, ids in (("predicted", predicted[index]), ("right", gold[index]))
            },
        }
    given = shown if isinstance(shown, str) else f"the picture {shown.name}" if isinstance(shown, Path) else "a picture"
    return {
        "input": _line(given),
        "predicted": _answer(config, predicted[index], labels),
        "right": _answer(config, gold[index], labels),
    }


def _entities(words: list[str], tags: list[str]) -> str:
    spans = sorted(find_entities(tags, strict=False), key=lambda entity: entity[1])
    return ", ".join(f"{_code(' '.join(words[a:b]))} ({kind})" for kind, a, b in spans) or "nothing"


def _answer(config: RunConfig, values: np.ndarray, labels: list[str]) -> str:
    if config.problem_type == "regression":
        return f"{float(values[0]):.4g}"
    if config.problem_type == "multi_label_classification":
        return ", ".join(_code(label) for label, given in zip(labels, values, strict=True) if given) or "no label"
    return _code(labels[int(values[0])])


def _recipe(config: RunConfig, result: Mapping[str, Any]) -> str:
    share = 100 * result["trainable"] / max(1, result["total"])
    best = f"the weights of epoch {result['best_epoch']} of {result['epochs']} were kept, "
    best = best if result["best_epoch"] else ""
    return (
        f"{result['trainable']:,} of {result['total']:,} parameters were trained ({share:.1f}%); {best}"
        f"by the {config.metric} of the validation split. It took {result['seconds']:.0f} s on {result['device']} with "
        f"{result['processes']} process{'es' if result['processes'] > 1 else ''}. All settings: the run's run.toml."
    )


def _about_data(config: RunConfig, data: str | None) -> str:
    if not config.data:
        return "It was given in memory, so nothing is known of its source or licence here."
    where = f"[{data}](https://huggingface.co/datasets/{data})" if data else f"{_code(Path(config.data).name)}, files"
    licence = _licence(config.data)
    return f"{where}. {f'Licence: {licence}.' if licence else 'Its licence is not known here: look it up before use.'}"


def _licence(data: str) -> str | None:
    """What a folder of data says of its licence: in its README.md's metadata, or in a LICENSE file's first line."""
    here = os.environ.get("LORA_DATA_DIR")
    folder = next((path for path in (Path(data), *([Path(here, data)] if here else [])) if path.is_dir()), None)
    if folder is None:
        return None
    readme = folder / CARD
    if readme.is_file():
        found = re.match(r"---\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        try:
            metadata = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError:
            metadata = None
        if isinstance(metadata, dict) and isinstance(metadata.get("license"), str):
            return metadata["license"]
    for path in sorted(folder.glob("LICEN[SC]E*")):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
        return next((line.strip() for line in lines if line.strip()), None)
    return None


def _limits(config: RunConfig, labels: list[str], split: str, examples: int, base: str | None) -> list[str]:
    limits = [
        f"The scores are of {examples:,} examples from the same source as the training data; others may do worse."
    ]
    if config.task == "token-classification":
        limits.append("Sentences longer than the model's input are cut into windows, which see their own words alone.")
    elif config.task == "text-classification":
        kept = {"head": "the beginning", "head_tail": "half from each end", "windows": "all, in windows,"}
        limits.append(f"Of texts longer than the model's input, {kept[config.long_text]} counts.")
    if config.problem_type != "regression":
        limits.append(f"It knows these labels alone: {', '.join(map(_code, labels))}.")
    if split == "validation":
        limits.append("There was no test split: the epoch was chosen on the examples that are scored here.")
    if config.method == "lora":
        limits.append(f"An adapter needs its base model, {_code(base or config.model)}, with the same weights.")
    if config.method == "lora" and base is None:
        limits.append("The base model is a folder of the machine that it was trained on: keep the two together.")
    return limits


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} ..."


def _code(text: str) -> str:
    """As code in Markdown; nothing in it then has a meaning."""
    fence = "``" if "`" in text else "`"
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _cell(text: str) -> str:
    """As a cell of a table in Markdown."""
    return " ".join(text.split()).replace("|", "\\|")
