"""What a request holds, checked: the inputs as a pipeline takes them, its options, and whether there was only one.

Nothing here reads a file: a string is a text or the base64 of an image, never a path.
"""

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import FormData, UploadFile

from trainers.data.images.decode import open_image
from trainers.data.rows import refuse_lone_surrogates
from trainers.service.settings import Refusal, ServiceSettings
from trainers.service.words import MOST_CHARACTERS, parts_of

JSON = "application/json"
MULTIPART = "multipart/form-data"
WORDS = "words"
"""The option of a service that asks for the words that mattered; the pipelines do not have it."""
OPTIONS_FIELD = "options"
"""The part of a multipart body that is not an image, but JSON."""


@dataclass(frozen=True)
class PredictRequest:
    """The inputs of one request."""

    inputs: list[Any]
    options: dict[str, Any]
    adapter: str | None = None
    words: bool = False
    """Whether the words that mattered are asked for."""
    one: bool = False
    """Whether a single input was sent, and not a list of them."""
    kind: str = "text"
    """Inputs of one kind may be computed together: text, pair, words or image."""
    costs: list[int] = field(default_factory=list)
    """About how many tokens each input has."""


def read_json(body: bytes) -> Any:
    """The value of a JSON body.

    Raises:
        Refusal: it is not JSON.
    """
    try:
        return json.loads(body)
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise Refusal(400, f"the body is not JSON: {short(error)}") from None


class RequestReader:
    """Reads the requests to a model of one task."""

    def __init__(self, task: str, settings: ServiceSettings, option_names: tuple[str, ...], longest: int) -> None:
        """
        Args:
            option_names: those of the task's pipeline.
            longest: tokens after which a text costs no more, for it is cut; 0: it is not.
        """
        self.task = task
        self.settings = settings
        self.option_names = option_names
        self.longest = longest

    def of_json(self, value: Any, *, options_key: str = "options", one_or_many: bool = False) -> PredictRequest:
        """From ``{"inputs": [...], "options": {...}}``; with ``one_or_many`` "inputs" may be a single one.

        Raises:
            Refusal: it is something else, or exceeds a limit.
        """
        if not isinstance(value, dict) or "inputs" not in value:
            keys = f" with {short(sorted(value))}" if isinstance(value, dict) else ""
            raise Refusal(422, f'expected a JSON object with "inputs", got {_kind(value)}{keys}')
        unknown = sorted(set(value) - {"inputs", options_key})
        if unknown:
            raise Refusal(422, f'unknown field {short(unknown[0])}; expected "inputs" and "{options_key}"')
        given = value["inputs"]
        one = one_or_many and not isinstance(given, list)
        if not one and not isinstance(given, list):
            raise Refusal(422, f'"inputs" is {_kind(given)}; expected a list')
        options = value.get(options_key)
        return self._read([given] if one else given, {} if options is None else options, one)

    def of_images(self, images: list[bytes], options: Any, one: bool) -> PredictRequest:
        """From the contents of image files."""
        if self.task != "image-classification":
            raise Refusal(415, f"this model does {self.task}; send {JSON}")
        return self._read(list(images), options, one)

    async def of_form(self, form: FormData) -> PredictRequest:
        """From a multipart body: files, and a field "options" with JSON."""
        images, options = [], {}
        for name, part in form.multi_items():
            if isinstance(part, UploadFile):
                images.append(await part.read())
            elif name == OPTIONS_FIELD:
                options = read_json(part.encode("utf-8", "surrogatepass"))
            else:
                raise Refusal(422, f'unknown field {short(name)}; expected files and "{OPTIONS_FIELD}"')
        return self.of_images(images, options, one=False)

    def _read(self, given: list[Any], options: Any, one: bool) -> PredictRequest:
        if len(given) > self.settings.max_inputs:
            raise Refusal(413, f"{len(given)} inputs; this service takes at most {self.settings.max_inputs} a request")
        options, adapter = self._options(options)
        words = options.pop(WORDS, False)
        read: Callable[[Any], tuple[str, Any, int]]
        read = self._image if self.task == "image-classification" else self._text
        inputs, kinds, costs = [], [], []
        for index, each in enumerate(given):
            try:
                kind, found, cost = read(each)
            except Refusal as refusal:
                raise Refusal(refusal.status, f"input {index}: {refusal}") from None
            except ValueError as error:
                raise Refusal(422, f"input {index}: {error}") from None
            inputs.append(found)
            kinds.append(kind)
            costs.append(cost)
        # A model of words takes texts and lists of words together; of pairs and single texts a model takes one kind.
        if len(set(kinds)) > 1 and self.task != "token-classification":
            raise Refusal(422, "some inputs are pairs of texts and some are single texts; send one kind at a time")
        if words:
            costs = [cost * (1 + _parts(text)) for text, cost in zip(inputs, costs, strict=True)]
        return PredictRequest(inputs, options, adapter, words, one, kinds[0] if kinds else "text", costs)

    def _options(self, options: Any) -> tuple[dict[str, Any], str | None]:
        if not isinstance(options, dict):
            raise Refusal(422, f"the options are {_kind(options)}; expected a JSON object")
        left = dict(options)
        adapter = left.pop("adapter", None)
        if adapter is not None and not isinstance(adapter, str):
            raise Refusal(422, f"the option adapter is {_kind(adapter)}; expected a name")
        for name, value in left.items():
            if name not in self.option_names:
                known = ", ".join((*self.option_names, "adapter"))
                raise Refusal(422, f"a model for {self.task} has no option {short(name)}; it has {known}")
            expected, fits = OPTIONS[name]
            if not fits(value):
                raise Refusal(422, f"the option {name} is {short(value)}; expected {expected}")
        return left, adapter

    def _text(self, given: Any) -> tuple[str, Any, int]:
        if isinstance(given, str):
            return "text", self._checked(given), self._cost(len(given) // 4)
        if self.task == "token-classification":
            if isinstance(given, list) and all(isinstance(word, str) for word in given):
                self._checked(" ".join(given))
                return "text", given, self._cost(sum(1 + len(word) // 5 for word in given))
            raise Refusal(422, f"{_kind(given)}; expected a text or a list of words")
        if isinstance(given, Mapping) and {"text"} <= given.keys() <= {"text", "text_pair"}:
            texts = list(given.values())
            if all(isinstance(text, str) for text in texts):
                self._checked("\n".join(texts))
                cost = self._cost(sum(map(len, texts)) // 4)
                return (
                    ("text", texts[0], cost) if len(texts) == 1 else ("pair", (given["text"], given["text_pair"]), cost)
                )
        raise Refusal(422, f'{_kind(given)}; expected a text, or {{"text": ..., "text_pair": ...}} with two texts')

    def _checked(self, text: str) -> str:
        if len(text) > self.settings.max_characters:
            raise Refusal(413, f"{len(text)} characters; this service takes at most {self.settings.max_characters}")
        refuse_lone_surrogates(text)
        return text

    def _cost(self, tokens: int) -> int:
        return min(tokens + 3, self.longest or tokens + 3)

    def _image(self, given: Any) -> tuple[str, bytes, int]:
        if isinstance(given, str):
            try:
                given = base64.b64decode(given.partition(",")[2] if given.startswith("data:") else given, validate=True)
            except (binascii.Error, ValueError):
                raise Refusal(422, "a text that is not base64; expected the base64 of an image file") from None
        if not isinstance(given, bytes):
            raise Refusal(422, f"{_kind(given)}; expected the base64 of an image file")
        with open_image(given, "the image") as image:
            pixels = image.width * image.height
        if pixels > self.settings.max_pixels:
            raise Refusal(413, f"{pixels} pixels; this service takes at most {self.settings.max_pixels}")
        return "image", given, max(1, self.longest)


def _parts(text: Any) -> int:
    """How many times a text is computed anew for its words."""
    if not isinstance(text, str):
        raise Refusal(422, f"the option {WORDS} is for single texts; leave it out for pairs")
    if len(text) > MOST_CHARACTERS:
        raise Refusal(413, f"{len(text)} characters; with the option {WORDS} a text has at most {MOST_CHARACTERS}")
    return len(parts_of(text))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "top_k": ("a whole number, or null for all labels", _is_count),
    "threshold": ("a number", _is_number),
    "aggregation_strategy": ("first, average or max", _is_text),
    "strict": ("true or false", _is_flag),
    WORDS: ("true or false", _is_flag),
}
"""Options of the pipelines: what a value must be, in words and as a check. The pipelines check the rest."""


def short(value: object) -> str:
    """A value in at most 60 characters, for a message of one line."""
    text = repr(value) if isinstance(value, str) else str(value)
    text = text.encode("ascii", "backslashreplace").decode() if not text.isprintable() else text
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number",
             float: "a number", type(None): "null", bytes: "bytes"}  # fmt: skip
    return names.get(type(value), type(value).__name__)
