"""The model of a run: built from its settings, or loaded as the run saved it; what the run tells its head; and models
that start from nothing, with their vocabulary.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lora_core
from lora_core.files import write_text
from lora_core.models import build_model, config_from_dict, load_pretrained
from lora_core.models.crf import CRFHead
from lora_core.models.heads import AttentionPooling
from lora_core.models.pretrained.source import read_config, resolve
from lora_core.models.task_model import TaskModel
from trainers.config import SCRATCH, RunConfig
from trainers.data.batches import Data, evaluation_batches, load_batches
from trainers.data.images.processing import ImageProcessing
from trainers.data.texts.dataset import TextDataset
from trainers.data.tokenizer import PAD, build_vocabulary, for_words, load_tokenizer
from trainers.data.tokens.bio import iob2_transitions
from trainers.data.tokens.reader import TokenDataset
from trainers.recipes import layers_of
from trainers.run_folder import RunFolder

logger = logging.getLogger("trainers")

LONGEST = 512
"""Their longest input in tokens, where the run does not say."""
SHOWN = 10
"""Words that a message lists."""
EVA_EXAMPLES = 512
"""Training examples whose inputs EVA looks at."""
EVA_TOKENS = 4096
"""Most of a batch of them, padding included."""


def build(config: RunConfig, labels: tuple[str, ...]) -> TaskModel:
    """The pretrained or untrained model with a head for ``labels``, prepared for the method."""
    if is_scratch(config):
        model = scratch_model(config, labels)
    else:
        size = image_size(config)
        if size != config.image_size:
            logger.info("pictures are taken at %s pixels, as preprocessor_config.json says; --image-size chooses", size)
        model = load_pretrained(
            config.model,
            config.task,
            labels,
            attention_dropout=config.attention_dropout,
            hidden_dropout=config.hidden_dropout,
            image_size=size,
            head=config.head,
            fresh_head=config.fresh_head,
            checkpoint_labels=config.checkpoint_labels or None,
            to_be_trained=config.train_head,
            seed=config.seed,
        )
    assert isinstance(model, TaskModel)
    if config.problem_type != "auto":
        if model.problem_type not in (None, config.problem_type):
            logger.warning("the head of %s was for %s; now it is for %s", config.model, model.problem_type,
                           config.problem_type)  # fmt: skip
        model.problem_type = config.problem_type
    prepare_head(model, config)
    if config.method == "lora":
        torch.manual_seed(config.seed)
        lora_core.inject_lora(
            model,
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=layers_of(config),
            modules_to_save=config.modules_to_save or None,  # () would leave out the head
            bias=config.bias,
            init_lora_weights="gaussian" if config.init_lora_weights == "eva" else config.init_lora_weights,
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
            base_model_name_or_path=config.model,
        )
    for name, parameter in model.named_parameters():
        if config.method == "head":
            parameter.requires_grad_(model.in_head(name))
        elif model.in_head(name) and not config.train_head:
            parameter.requires_grad_(False)
    return model


def start_from_inputs(model: TaskModel, train: Data, config: RunConfig, device: torch.device) -> None:
    """EVA's start of the adapters, where the settings ask for it: by what the layers see of some training examples.

    The examples and so the ranks are the same on every process and when the run goes on.
    """
    if config.method != "lora" or config.init_lora_weights != "eva":
        return
    chosen = np.random.default_rng(config.seed).permutation(len(train.lengths))[:EVA_EXAMPLES]
    batches = [chosen[part] for part in evaluation_batches(train.lengths[chosen], EVA_TOKENS)]
    loaded = load_batches(train, batches, device)
    lora_core.initialise_eva(model.to(device), (inputs for inputs, _ in loaded))
    logger.info("EVA has set the adapters by %d training examples.", len(chosen))


def image_size(config: RunConfig) -> int | tuple[int, int] | None:
    """The size at which a run's model takes pictures, where it is not the checkpoint's own.

    DINOv2's checkpoints have positions for larger pictures than preprocessor_config.json cuts out, and interpolate.
    """
    if config.image_size is not None or config.task != "image-classification":
        return config.image_size
    folder = resolve(config.model)
    stated = read_config(folder)
    processing = ImageProcessing.read(folder) if stated.get("model_type") == "dinov2" else None
    if processing is None or processing.size in (stated.get("image_size"), (stated.get("image_size"),) * 2):
        return None
    return processing.size


def load_model(config: RunConfig, labels: tuple[str, ...]) -> TaskModel:
    """The model that a run saved, with the best epoch's weights, in eval mode."""
    lora, saved = config.method == "lora", RunFolder(config.output_dir).weights(config.method)
    model = load_pretrained(
        config.model if lora else saved,
        config.task,
        labels,
        image_size=image_size(config) if lora else config.image_size,
        head=config.head,
        fresh_head=lora and config.fresh_head,
        head_follows=lora,
        seed=config.seed,
    )
    assert isinstance(model, TaskModel)
    if lora:
        lora_core.load_adapter(model, saved)
    if config.problem_type != "auto":
        model.problem_type = config.problem_type
    return model.eval()


def prepare_head(model: TaskModel, config: RunConfig) -> None:
    """Give the head what `confusing_words` and `crf_constraints` say, in place; what they do not set stays as it is.

    Raises:
        ValueError: the head has no use for them, or no word of the file is a token.
    """
    head = getattr(model, "classifier", None)
    if config.confusing_words:
        if not isinstance(head, AttentionPooling):
            raise ValueError(
                f"confusing_words is set, but the head {config.head!r} has no attention to take a penalty "
                "from. Use head attention."
            )
        head.mark_confusing(_token_ids(config), config.confusing_penalty)
    if config.crf_constraints:
        if not isinstance(head, CRFHead):
            raise ValueError(f"crf_constraints is set, but the head is {config.head!r}. Use head crf.")
        with torch.no_grad():
            head.constrain(torch.from_numpy(iob2_transitions(model.labels)))


def _token_ids(config: RunConfig) -> list[int]:
    """Ids of the words in the file, one a line, that are one token each; the others are named in a warning.

    A piece of a word stands in other words too, which the penalty must not touch. Where the tokenizer tells them apart,
    a word has an id in small letters, with a capital, and in capitals.
    """
    path = Path(config.confusing_words)
    words = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    tokenizer = for_words(load_tokenizer(tokenizer_folder(config)))
    unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "<unk>")
    found, left_out = [], []
    for word in words:
        forms = tokenizer.encode_batch(
            [[word], [word.capitalize()], [word.upper()]], is_pretokenized=True, add_special_tokens=False
        )
        ids = {form.ids[0] for form in forms if len(form) == 1} - {unknown}
        found += sorted(ids)
        left_out += [] if ids else [word]
    if not found:
        raise ValueError(f"{path} has no word that is a single token of the model, one word a line.")
    if left_out:
        logger.warning(
            "%s: %d of %d words are left out, for they are not a single token: %s",
            path,
            len(left_out),
            len(words),
            ", ".join(left_out[:SHOWN]),
        )
    return found


def is_scratch(config: RunConfig) -> bool:
    """Whether the run's model starts from nothing."""
    return config.model in SCRATCH


def write_vocabulary(config: RunConfig, train: Any) -> None:
    """Write tokenizer.json of the run's own vocabulary into its folder; nothing where it takes another model's.

    Raises:
        ValueError: as `scratch_model`, before anything is written.
    """
    _check_method(config)
    if config.tokenizer:
        return
    vocabulary = build_vocabulary(_texts(train.in_memory()))
    write_text(RunFolder(config.output_dir).tokenizer, vocabulary.to_str(pretty=True))


def tokenizer_folder(config: RunConfig) -> Path:
    """Where the tokenizer of the run's model is.

    Raises:
        ValueError: `tokenizer` is set for a model that has its own.
    """
    if not is_scratch(config):
        if config.tokenizer:
            raise ValueError(
                f"tokenizer is {config.tokenizer!r}, but {config.model} has its own. Leave it out, or train a model "
                f"from scratch: {', '.join(SCRATCH)}."
            )
        return resolve(config.model)
    return resolve(config.tokenizer) if config.tokenizer else config.output_dir


def positions(config: RunConfig) -> int:
    """Most tokens for which the run's model has room."""
    if is_scratch(config):
        return config.max_length or LONGEST
    return config_from_dict(read_config(resolve(config.model))).max_tokens  # type: ignore[attr-defined]  # all of texts


def scratch_model(config: RunConfig, labels: tuple[str, ...]) -> TaskModel:
    """The untrained model for the run's vocabulary.

    Raises:
        ValueError: the method would leave the untrained weights as they are.
    """
    _check_method(config)
    folder = tokenizer_folder(config)
    vocabulary = load_tokenizer(folder).get_vocab(with_added_tokens=True)
    padding = read_config(folder).get("pad_token_id", 0) if config.tokenizer else vocabulary[PAD]
    sizes = {
        "model_type": config.model,
        "vocab_size": max(vocabulary.values()) + 1,
        "pad_token_id": padding,
        "max_tokens": positions(config),
    }
    encoder = config_from_dict(sizes).with_dropout(attention=config.attention_dropout, hidden=config.hidden_dropout)
    model = build_model(encoder, config.task, labels, head=config.head, seed=config.seed)
    assert isinstance(model, TaskModel)
    return model


def _check_method(config: RunConfig) -> None:
    if config.method != "full":
        raise ValueError(f"method is {config.method!r}, but {config.model} starts untrained: use method full.")


def _texts(train: TextDataset | TokenDataset) -> Iterator[str]:
    if isinstance(train, TextDataset):
        yield from train.texts
        yield from train.pairs or ()
    else:
        for words in train.words:
            yield from words
