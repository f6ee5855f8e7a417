"""Load a checkpoint in the transformers layout into our modules, and save one.

The modules bear the checkpoint's names, so loading is: read, split off the prefix, check, copy.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_core.models.build import ENCODERS, assemble, config_from_dict, initialise, task_model_class
from lora_core.models.heads import Encoder, TaskModel
from lora_core.models.labels import check_labels, labels_of_config, rows_for
from lora_core.models.source import resolve
from lora_core.models.weights import SINGLE_FILE, read_tensors, split_encoder

logger = logging.getLogger("lora_core")

CONFIG_FILE = "config.json"

HEADS_ELSEWHERE = (
    *("classifier", "pre_classifier", "cls", "lm_head", "qa_outputs"),
    *("vocab_transform", "vocab_layer_norm", "vocab_projector"),
)
"""Top-level modules of transformers' heads. Those of another task are left out in silence, other names are not."""

SHOWN = 10
"""Names that an error message lists of each kind."""


def load_pretrained(
    source: str | Path,
    task: str = "encoder",
    labels: Sequence[str] | None = None,
    *,
    revision: str | None = None,
    attention_dropout: float | None = None,
    hidden_dropout: float | None = None,
    fresh_head: bool = False,
    seed: int = 0,
) -> Encoder | TaskModel:
    """Load a pretrained model in eval mode and float32, on torch's default device.

    `source` is a folder in the transformers layout, a hub id (at `revision`) or `"embedded"`, see
    `lora_core.models.source.resolve`. `task` is `encoder`, `token-classification` or `text-classification`.

    `labels` are the label names in the order of the logits; None takes those of the checkpoint's head. Where both
    exist they must be the same names, and the head's rows are brought into the order of `labels` (the rows of a
    checkpoint that only says LABEL_0, LABEL_1... are taken as they come). A head that the checkpoint lacks, or that
    `fresh_head` says to leave out, is drawn from `seed`: its parameters are named in `model.fresh_parameters` and in
    a logged warning.

    `attention_dropout` and `hidden_dropout` replace the config's probabilities in all layers. Dropout that the
    config sets for the head alone (`classifier_dropout`, `seq_classif_dropout`) stays.

    Raises FileNotFoundError when files are missing, ValueError when the checkpoint is damaged, is of a family that
    is not implemented, does not have exactly the encoder's tensors, or has other labels.
    """
    folder = resolve(source, revision)
    values = _read_config(folder)
    config = config_from_dict(values).with_dropout(attention=attention_dropout, hidden=hidden_dropout)
    found, outside = split_encoder(read_tensors(folder), ENCODERS[config.model_type].base_model_prefix)
    if task == "encoder":
        if labels is not None or fresh_head:
            raise ValueError(f"a bare encoder has no head; leave out labels={labels!r}, fresh_head={fresh_head}")
        model = assemble(config, task, (), with_pooler="pooler.dense.weight" in found)
    else:
        task_class = task_model_class(config.model_type, task)
        known = _labels_of_head(values, outside, task_class, config.model_type)
        if labels is None and known is None:
            raise ValueError(
                f"{folder} has no head for {task} (its config.json says {values.get('architectures')}), so its labels "
                "are not known; pass labels=[...]"
            )
        names = check_labels(known if labels is None else labels)
        ...


