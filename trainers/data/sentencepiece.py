"""A tokenizer from a SentencePiece unigram model, which many multilingual checkpoints and DeBERTa-v3 come with alone.

The file is a protobuf message, `ModelProto` of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto: pieces with their log probabilities,
and the table by which a text's characters are normalised first. Both go into a tokenizer of the tokenizers library;
the sentencepiece package is not needed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.normalizers import NFC, NFKD, Lowercase, Normalizer, Precompiled, Replace, StripAccents

from lora_core.files import read_json_object, regular_file
from lora_core.patterns import shown

SENTENCEPIECE_FILES = ("spm.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""The names that checkpoints give the file."""

SPACE = "▁"
UNIGRAM, UNKNOWN_PIECE = 1, 2
"""`TrainerSpec.ModelType` and `SentencePiece.Type` of the message."""
BARRIER = "\uffff"
"""A code point that is no character: nothing is composed or moved over it."""


@dataclass(frozen=True)
class Layout:
    """How a family of checkpoints numbers the pieces of its file, and what stands around a text."""

    start: str
    end: str
    pad: str
    unknown: str
    mask: str
    first: tuple[str, ...] = ()
    """Tokens with the first ids, in the place of the file's first ``left_out`` pieces."""
    left_out: int = 0
    twice_between: bool = False
    """Whether the end stands twice between the texts of a pair, which then have one segment."""


_BERT = Layout(start="[CLS]", end="[SEP]", pad="[PAD]", unknown="[UNK]", mask="[MASK]")
_FAIRSEQ = {"start": "<s>", "end": "</s>", "pad": "<pad>", "unknown": "<unk>", "mask": "<mask>", "twice_between": True}

LAYOUTS = {
    "deberta-v2": _BERT,
    "albert": Layout(start="[CLS]", end="[SEP]", pad="<pad>", unknown="<unk>", mask="[MASK]"),
    "xlm-roberta": Layout(**_FAIRSEQ, first=("<s>", "<pad>", "</s>", "<unk>"), left_out=3),
    "camembert": Layout(**_FAIRSEQ, first=("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"), left_out=1),
}
"""By `model_type` of config.json, as the checkpoints' authors numbered them."""


def from_sentencepiece(path: Path, model_type: Any, config: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a checkpoint whose folder holds a SentencePiece model.

    Tokens of added_tokens.json beside it come after the pieces, with the ids that it says.

    Args:
        path: the file.
        model_type: the checkpoint's family, as config.json names it.
        config: the content of tokenizer_config.json.

    Raises:
        ValueError: the file is damaged, is no unigram model, or of a family whose numbering is not known.
    """
    if not isinstance(model_type, str) or model_type not in LAYOUTS:
        raise ValueError(
            f"{path}: how {shown(model_type)} models number the pieces of this file is not known (known: "
            f"{', '.join(LAYOUTS)}). Write a tokenizer.json beside it with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    layout = LAYOUTS[model_type]
    model = _read(path)
    pieces = [(token, 0.0) for token in layout.first]
    pieces += [(piece.piece, piece.score) for piece in model.pieces[layout.left_out :]]
    tokens = [token for token, _ in pieces]
    unknown = tokens.index(layout.unknown) if layout.unknown in tokens else None
    lacking = [token for token in (layout.start, layout.end, layout.pad) if token not in tokens]
    if unknown is None or lacking:
        raise ValueError(
            f"{path} lacks the pieces {lacking or [layout.unknown]} of {model_type} models. Take the file that belongs "
            "to the checkpoint, or correct model_type in config.json."
        )
    for token, number in _added(path.parent, layout, tokens):
        if number != len(pieces):
            raise ValueError(
                f"{path.parent / 'added_tokens.json'} gives {token!r} the id {number}, expected {len(pieces)}, the "
                f"next one after the pieces of {path.name}. Take both files from one checkpoint."
            )
        pieces.append((token, 0.0))
    tokenizer = Tokenizer(Unigram(pieces, unk_id=unknown, byte_fallback=model.trainer_spec.byte_fallback))
    tokenizer.normalizer = normalizers.Sequence(_normalise(model.normalizer_spec, model_type, config))
    scheme = "always" if model.normalizer_spec.add_dummy_prefix else "never"
    split = model.trainer_spec.split_by_whitespace
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=split)
    tokenizer.decoder = MetaspaceDecoder(SPACE, prepend_scheme=scheme, split=split)
    numbers = {token: number for number, (token, _) in enumerate(pieces)}
    start, end = layout.start, layout.end
    pair = f"{start} $A {end} {end} $B {end}" if layout.twice_between else f"{start} $A {end} $B:1 {end}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", pair=pair, special_tokens=[(start, numbers[start]), (end, numbers[end])]
    )
    tokenizer.add_special_tokens([start, end, layout.pad, layout.unknown])
    if layout.mask in numbers:  # it stands for a word and the blank before it
        tokenizer.add_special_tokens([AddedToken(layout.mask, lstrip=True, special=True)])
    return tokenizer


def _added(folder: Path, layout: Layout, tokens: list[str]) -> list[tuple[str, int]]:
    """Tokens that follow the pieces, in the order of their ids; the mask alone, where no file lists any."""
    path = folder / "added_tokens.json"
    if not path.is_file():
        return [] if layout.mask in tokens else [(layout.mask, len(tokens))]
    found = read_json_object(path, "Fetch the file again.")
    wrong = [token for token, number in found.items() if isinstance(number, bool) or not isinstance(number, int)]
    if wrong:
        raise ValueError(f"{path}: the id of {wrong[0]!r} is {found[wrong[0]]!r}, expected a number.")
    return sorted(((token, number) for token, number in found.items() if token not in tokens), key=lambda pair: pair[1])


def _normalise(spec: Any, model_type: str, config: dict[str, Any]) -> list[Normalizer]:
    """What is done to a text before it is cut into pieces."""
    steps: list[Normalizer] = []
    if model_type == "albert":  # its authors did this before they called SentencePiece
        steps += [Replace("``", '"'), Replace("''", '"')]
        if not config.get("keep_accents", False):
            steps += [NFKD(), StripAccents()]
        if config.get("do_lower_case", True):
            steps.append(Lowercase())
    table = spec.precompiled_charsmap
    if table:
        steps += [*_composed(), Precompiled(table), *_composed()]
    if spec.remove_extra_whitespaces:
        steps += [Replace(Regex(" {2,}"), " "), Replace(Regex("^ | $"), "")]
    return steps


def _composed() -> list[Normalizer]:
    """Letters and marks that stand beside each other made one character.

    SentencePiece replaces the longest sequence in its table; `Precompiled` looks up whole characters with their marks
    up to five bytes, else code points (https://github.com/huggingface/tokenizers/issues/2116), and so leaves
    decomposed Korean and half-width Japanese apart. NFC would also sort marks, which the table does not: between those
    of Hebrew and Arabic, which are often typed in another order than Unicode's, stands a barrier meanwhile.
    """
    mark = r"[\u0590-\u08ff&&[\p{Mn}]]"
    return [Replace(Regex(f"(?<={mark})(?={mark})"), BARRIER), NFC(), Replace(BARRIER, "")]


def _read(path: Path) -> Any:
    """The message in the file."""
    model: Any = _message_class()()
    try:
        model.ParseFromString(regular_file(path).read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path} is not a SentencePiece model ({error}). Fetch the file again.") from error
    if not model.pieces or sum(piece.type == UNKNOWN_PIECE for piece in model.pieces) != 1:
        raise ValueError(f"{path} holds no pieces of a SentencePiece model. Fetch the file again.")
    if model.trainer_spec.model_type != UNIGRAM or model.trainer_spec.treat_whitespace_as_suffix:
        raise ValueError(
            f"{path} is not a unigram model with blanks before the words, which is what encoders have. Write a "
            "tokenizer.json beside it with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    return model


def _message_class() -> type[Message]:
    """`ModelProto`, of the fields that are read here."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    fields = {
        "Piece": [
            ("piece", 1, field.TYPE_STRING, None),
            ("score", 2, field.TYPE_FLOAT, None),
            ("type", 3, field.TYPE_INT32, "1"),
        ],
        "TrainerSpec": [
            ("model_type", 3, field.TYPE_INT32, "1"),
            ("split_by_whitespace", 22, field.TYPE_BOOL, "true"),
            ("treat_whitespace_as_suffix", 24, field.TYPE_BOOL, "false"),
            ("byte_fallback", 35, field.TYPE_BOOL, "false"),
        ],
        "NormalizerSpec": [
            ("precompiled_charsmap", 2, field.TYPE_BYTES, None),
            ("add_dummy_prefix", 3, field.TYPE_BOOL, "true"),
            ("remove_extra_whitespaces", 4, field.TYPE_BOOL, "true"),
        ],
    }
    file = descriptor_pb2.FileDescriptorProto(
        name="lora_core/sentencepiece.proto", package="lora_core", syntax="proto2"
    )
    for name, parts in fields.items():
        message = file.message_type.add(name=name)
        for part, number, kind, default in parts:
            message.field.add(
                name=part,
                number=number,
                type=kind,
                label=field.LABEL_OPTIONAL,
                default_value=default,  # type: ignore[arg-type]
            )
    model = file.message_type.add(name="ModelProto")
    for part, number, kind, label in (
        ("pieces", 1, "Piece", field.LABEL_REPEATED),
        ("trainer_spec", 2, "TrainerSpec", field.LABEL_OPTIONAL),
        ("normalizer_spec", 3, "NormalizerSpec", field.LABEL_OPTIONAL),
    ):
        model.field.add(name=part, number=number, type=field.TYPE_MESSAGE, label=label, type_name=f".lora_core.{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("lora_core.ModelProto"))
