"""What a run tells its head: tokens to distrust, labels that must not follow one another."""

import logging
from pathlib import Path

import torch

from lora_core.models.crf import CRFHead, iob2_transitions
from lora_core.models.task_model import TaskModel
from lora_core.models.text_heads import AttentionPooling
from trainers.config import RunConfig
from trainers.data.tokenizer import load_tokenizer
from trainers.scratch import tokenizer_folder

logger = logging.getLogger("trainers")

SHOWN = 10
"""Words that a message lists."""


def prepare_head(model: TaskModel, config: RunConfig) -> None:
    """Give the head what `confusing_words` and `crf_constraints` say, in place; what they do not set stays as it is.

    Raises:
        ValueError: the head has no use for them, or no word of the file is a token.
    """
    head = getattr(model, "classifier", None)
    if config.confusing_words:
        if not isinstance(head, AttentionPooling):
            raise ValueError(f"confusing_words is set, but the head {config.head!r} has no attention to take a penalty "
                             "from. Use head attention.")  # fmt: skip
        head.mark_confusing(_token_ids(config), config.confusing_penalty)
    if config.crf_constraints:
        if not isinstance(head, CRFHead):
            raise ValueError(f"crf_constraints is set, but the head is {config.head!r}. Use head crf.")
        with torch.no_grad():
            head.constrain(iob2_transitions(model.labels))


def _token_ids(config: RunConfig) -> list[int]:
    """Ids of the words in the file, one a line, that are one token each; the others are named in a warning.

    A piece of a word stands in other words too, which the penalty must not touch. Where the tokenizer tells them apart,
    a word has an id in small letters, with a capital, and in capitals.
    """
    path = Path(config.confusing_words)
    words = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    tokenizer = load_tokenizer(tokenizer_folder(config))
    unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "<unk>")
    found, left_out = [], []
    for word in words:
        forms = tokenizer.encode_batch([[word], [word.capitalize()], [word.upper()]], is_pretokenized=True,
                                       add_special_tokens=False)  # fmt: skip
        ids = {form.ids[0] for form in forms if len(form) == 1} - {unknown}
        found += sorted(ids)
        left_out += [] if ids else [word]
    if not found:
        raise ValueError(f"{path} has no word that is a single token of the model, one word a line.")
    if left_out:
        logger.warning("%s: %d of %d words are left out, for they are not a single token: %s", path, len(left_out),
                       len(words), ", ".join(left_out[:SHOWN]))  # fmt: skip
    return found
