"""A model's tokenizer: the one of its checkpoint, or for a model that starts from nothing one made of its texts.

What a checkpoint's files say of it is obeyed, tokenizer_config.json before tokenizer.json, as in transformers.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import BPE, WordLevel, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import BertProcessing, RobertaProcessing
from tokenizers.trainers import WordLevelTrainer

from lora_core.files import read_json_object, regular_file, write_json, write_text
from lora_core.patterns import shown
from trainers.data.sentencepiece import SENTENCEPIECE_FILES, from_sentencepiece

TOKENIZER_FILE = "tokenizer.json"
"""The name beside a model's weights, and in the metadata of an ONNX file."""
PAD, UNKNOWN, END = "[PAD]", "[UNK]", "[SEP]"
FETCH = "Fetch the file again."
CONFIG = "tokenizer_config.json"
UNLIMITED = 10**9
"""A larger `model_max_length` (transformers writes 10**30) is no limit."""
BERT_SETTINGS = {"do_lower_case": "lowercase", "strip_accents": "strip_accents",
                 "tokenize_chinese_chars": "handle_chinese_chars"}  # fmt: skip
"""Settings of tokenizer_config.json and what the tokenizers library calls them."""
SPECIAL_ROLES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token", "bos_token", "eos_token")
"""Settings of tokenizer_config.json that name a special token."""
USUAL_TOKENS = {"unk_token": ("<unk>", UNKNOWN), "pad_token": ("<pad>", PAD), "cls_token": ("<s>", "[CLS]"),
                "sep_token": ("</s>", END), "mask_token": ("<mask>", "[MASK]")}  # fmt: skip
"""Special tokens as RoBERTa and BERT write them, by role."""
LEAST_COUNT = 2
"""How often a word must occur in the training texts to get an embedding of its own."""
MOST_WORDS = 50_000


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder, with padding and truncation switched off.

    Reads `tokenizer.json`; without it `vocab.txt` (BERT, DistilBERT), `vocab.json` + `merges.txt` (RoBERTa), or a
    SentencePiece model, `spm.model` or the like (DeBERTa-v3, XLM-R, CamemBERT, ALBERT). Casing, accents, Chinese
    characters and the space before a text are as `tokenizer_config.json` says where it says something.

    Raises:
        ValueError: the folder holds none of these, or a file that cannot be read as a tokenizer; or it adds tokens that
            the tokenizer lacks.
    """
    folder = Path(folder)
    if (folder / TOKENIZER_FILE).is_file():
        build = _from_json
    elif (folder / "vocab.txt").is_file():
        build = _bert
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        build = _roberta
    elif any((folder / name).is_file() for name in SENTENCEPIECE_FILES):
        build = _sentencepiece
    else:
        raise ValueError(
            f"{folder} holds no tokenizer: expected tokenizer.json, vocab.txt (BERT), vocab.json and merges.txt "
            f"(RoBERTa), or {SENTENCEPIECE_FILES[0]} (DeBERTa). Copy the tokenizer files of the checkpoint into this "
            "folder."
        )
    config = _read_config(folder)
    with _library_errors(f"the tokenizer in {folder}"):
        tokenizer = build(folder, config)
    _refuse_added_tokens(folder, config, tokenizer)
    return tokenizer


def save_tokenizer(source: Path, folder: Path, max_length: int) -> None:
    """Write the tokenizer of a checkpoint folder as tokenizer.json and tokenizer_config.json, for all that read them.

    Args:
        source: where the tokenizer is, in any form that `load_tokenizer` reads.
        max_length: most tokens of an input, special ones included.
    """
    tokenizer = load_tokenizer(source)
    stated = read_json_object(source / CONFIG, FETCH) if (source / CONFIG).is_file() else {}
    kept = {name: value for name, value in stated.items() if name not in ("auto_map", "name_or_path")}
    if "tokenizer_class" not in kept:
        usual = [(role, token) for role, tokens in USUAL_TOKENS.items() for token in tokens]
        roles = {role: token for role, token in usual if tokenizer.token_to_id(token) is not None}
        kept = {"tokenizer_class": "PreTrainedTokenizerFast", **roles, **kept}
    write_text(folder / TOKENIZER_FILE, tokenizer.to_str(pretty=True))
    write_json(folder / CONFIG, {**kept, "model_max_length": max_length})


def for_words(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer for texts that are given as lists of words.

    Many vocabularies mark the start of a word by the space before it, which a list of words no longer has. Where the
    tokenizer adds none by itself it is copied with one that does: byte-level steps with `add_prefix_space=True`
    (RoBERTa, ModernBERT), metaspace steps that always prepend, and a space before texts whose spaces are replaced
    (mmBERT, whose tokenizer is Gemma's). Running text keeps its spaces and needs the tokenizer itself.
    """
    data = json.loads(tokenizer.to_str())
    before = json.dumps([data["pre_tokenizer"], data["normalizer"]])
    for step in _steps(data["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "ByteLevel":
            step["add_prefix_space"] = True
        elif step["type"] == "Metaspace" and step["prepend_scheme"] == "never":
            step["prepend_scheme"] = "always"
    normalizer = data["normalizer"]
    kinds = {step["type"]: step for step in _steps(normalizer, "normalizers")}
    if kinds.get("Replace", {}).get("pattern") == {"String": " "} and "Prepend" not in kinds:
        space = {"type": "Prepend", "prepend": kinds["Replace"]["content"]}
        data["normalizer"] = {"type": "Sequence", "normalizers": [space, normalizer]}
    if json.dumps([data["pre_tokenizer"], data["normalizer"]]) == before:
        return tokenizer
    return Tokenizer.from_str(json.dumps(data))


@dataclass(frozen=True)
class StatedLimits:
    """What a checkpoint says of long texts in tokenizer_config.json."""

    max_length: int | None
    """Most tokens of an input, special ones included (`model_max_length`); None: as many as the model has room for."""
    keeps_end: bool
    """Whether the beginning of a longer text is cut off, and not its end (`truncation_side`)."""

    @classmethod
    def read(cls, folder: str | Path) -> "StatedLimits":
        """From a checkpoint's folder; no limits where the file is missing or says nothing.

        Raises:
            ValueError: the file is damaged, or a value is none that transformers writes.
        """
        folder = Path(folder)
        config = _read_config(folder)
        longest, side = config.get("model_max_length"), config.get("truncation_side", "right")
        if longest is not None and (
            isinstance(longest, bool) or not isinstance(longest, (int, float)) or not longest >= 1
        ):
            raise ValueError(f"{folder / CONFIG}: model_max_length is {shown(longest)}, expected a number of tokens.")
        if side not in ("left", "right"):
            raise ValueError(f"{folder / CONFIG}: truncation_side is {shown(side)}, expected 'left' or 'right'.")
        return cls(None if longest is None or longest > UNLIMITED else int(longest), side == "left")


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Check that a model of `vocab_size` embeddings has one for every id that the tokenizer can produce.

    Raises:
        ValueError: it has not.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    token = max(vocabulary, key=vocabulary.__getitem__)
    if vocabulary[token] >= vocab_size:
        raise ValueError(
            f"the tokenizer's largest id is {vocabulary[token]} ({token!r}), but the model has {vocab_size} "
            f"embeddings (ids 0 to {vocab_size - 1}). Use the tokenizer that was saved with this model."
        )


def build_vocabulary(texts: Iterator[str]) -> Tokenizer:
    """A tokenizer whose tokens are the lower-cased words and punctuation marks that the texts hold more than once.

    Every text ends in [SEP], so none is empty. The same texts give the same ids.
    """
    tokenizer = Tokenizer(WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [PAD, UNKNOWN, END]
    trainer = WordLevelTrainer(
        vocab_size=MOST_WORDS, min_frequency=LEAST_COUNT, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B:1 {END}:1", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def _from_json(folder: Path, config: dict[str, Any]) -> Tokenizer:
    path = folder / TOKENIZER_FILE
    data = read_json_object(path, FETCH)
    if "model" not in data:
        raise ValueError(f"{path} is not a tokenizer of the tokenizers library: it has no 'model' entry.")
    data["padding"] = data["truncation"] = None
    if "add_prefix_space" in config:
        for step in _steps(data.get("pre_tokenizer"), "pretokenizers"):
            if step.get("type") == "ByteLevel":
                step["add_prefix_space"] = bool(config["add_prefix_space"])
    normalizer = data.get("normalizer")
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        normalizer |= {own: config[name] for name, own in BERT_SETTINGS.items() if name in config}
    return tokenizer_of_json(json.dumps(data), str(path))


def tokenizer_of_json(text: str, where: str) -> Tokenizer:
    """The tokenizer that a text in the tokenizers library's JSON describes.

    Raises:
        ValueError: it describes none. The message begins with ``where``.
    """
    with _library_errors(where):
        return Tokenizer.from_str(text)


@contextlib.contextmanager
def _library_errors(where: str) -> Iterator[None]:
    """Turns what the tokenizers library raises into a ValueError: plain Exceptions, and of a panic not even that."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            message = f"{where} cannot be read by the installed tokenizers library: {str(error)[:300]}"
            raise ValueError(message) from error
        raise


def _steps(step: Any, inner: str) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer's or a pre-tokenizer's JSON, those in sequences too; what is malformed is left to the
    library."""
    if not isinstance(step, dict):
        return
    if isinstance(step.get(inner), list):
        for each in step[inner]:
            yield from _steps(each, inner)
    else:
        yield step


def _bert(folder: Path, config: dict[str, Any]) -> Tokenizer:
    vocabulary = _read_vocabulary_lines(folder / "vocab.txt")
    special = _special_tokens(
        config,
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
    )
    _require_tokens(folder / "vocab.txt", vocabulary, special.values())
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    sep, cls = special["sep_token"], special["cls_token"]
    tokenizer.post_processor = BertProcessing((sep, vocabulary[sep]), (cls, vocabulary[cls]))
    tokenizer.decoder = WordPieceDecoder()
    tokenizer.add_special_tokens(list(special.values()))
    return tokenizer


def _roberta(folder: Path, config: dict[str, Any]) -> Tokenizer:
    vocabulary = read_json_object(folder / "vocab.json", FETCH)
    special = _special_tokens(
        config, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>", mask_token="<mask>"
    )
    _require_tokens(folder / "vocab.json", vocabulary, special.values())
    try:
        tokenizer = Tokenizer(BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ValueError(f"{folder}/merges.txt does not fit {folder}/vocab.json: {error}") from error
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    bos, eos = special["bos_token"], special["eos_token"]
    tokenizer.post_processor = RobertaProcessing((eos, vocabulary[eos]), (bos, vocabulary[bos]))
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(list(special.values()))
    return tokenizer


def _sentencepiece(folder: Path, config: dict[str, Any]) -> Tokenizer:
    path = next(folder / name for name in SENTENCEPIECE_FILES if (folder / name).is_file())
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{path} can be read with the checkpoint's config.json beside it alone, whose model_type says how its "
            "pieces are numbered. Copy that file into this folder."
        )
    return from_sentencepiece(path, read_json_object(folder / "config.json", FETCH).get("model_type", ""), config)


def _read_config(folder: Path) -> dict[str, Any]:
    """The content of tokenizer_config.json, in which every special or added token is its text; {} without one.

    Raises:
        ValueError: the file is damaged, or a value that is used here is malformed.
    """
    path = folder / CONFIG
    if not path.exists():
        return {}
    config = read_json_object(path, FETCH)
    for name in ("add_prefix_space", *BERT_SETTINGS):
        if not isinstance(config.get(name), bool | None):
            raise ValueError(f"{path}: {name} is {shown(config[name])}, expected true or false.")
        if config.get(name, True) is None and name != "strip_accents":  # whose null has a meaning
            del config[name]
    for role in SPECIAL_ROLES:
        if config.get(role) is not None:
            config[role] = _token(config[role], role, path)
    added = config.get("added_tokens_decoder") or {}
    if not isinstance(added, dict):
        raise ValueError(f"{path}: added_tokens_decoder is {shown(added)}, expected tokens by id.")
    config["added_tokens_decoder"] = {key: _token(token, "added_tokens_decoder", path) for key, token in added.items()}
    return config


def _token(value: Any, role: str, path: Path) -> str:
    """A token's text; some configs store it as {"content": ...}."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError(f"{path}: {role} is {shown(value)}, expected a token.")
    return text


def _special_tokens(config: dict[str, Any], **defaults: str) -> dict[str, str]:
    """The special tokens by role."""
    return {role: config.get(role) or token for role, token in defaults.items()}


def _read_vocabulary_lines(path: Path) -> dict[str, int]:
    with regular_file(path).open(encoding="utf-8") as lines:
        try:
            return {line.rstrip("\n"): index for index, line in enumerate(lines)}
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not text in UTF-8 ({error}). {FETCH}") from error


def _require_tokens(path: Path, vocabulary: dict[str, int], tokens: Any) -> None:
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise ValueError(f"{path} lacks the special tokens {missing}: it is cut short or of another kind of model.")


def _refuse_added_tokens(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """ValueError where the files beside the vocabulary add tokens that it lacks."""
    path = folder / "added_tokens.json"
    named = dict.fromkeys(read_json_object(path, FETCH), path) if path.is_file() else {}
    for token in config.get("added_tokens_decoder", {}).values():
        named.setdefault(token, folder / CONFIG)
    added = [token for token in named if tokenizer.token_to_id(token) is None]
    if added:
        raise ValueError(
            f"{named[added[0]]} adds tokens that the vocabulary lacks ({added[:5]}), which only a tokenizer.json can "
            f"carry. Write one: transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
        )
