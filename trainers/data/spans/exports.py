"""One row of an annotation tool's export to a document with spans: the layouts of the tools, each told by its keys.

doccano, Prodigy, spaCy's training data, Label Studio (JSON and JSON-MIN), GLiNER, BioC's JSON, Dataturks, CLUENER,
SNIPS (its parts of texts), and plain rows of a text with spans.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from trainers.data.rows import short
from trainers.data.spans.align import Document, Note, Span, place_of_words, quoted_in, span

Tagged = tuple[list[Any], list[str]]
"""Words, and a tag for each, of rows whose words are tagged already."""

TEXT_KEYS = ("text", "data")
SPAN_KEYS = ("spans", "entities", "ents", "labels", "label", "annotations", "ner")
"""Where plain rows, doccano and Prodigy have the spans; the first that holds some. Label Studio has its own."""
START_KEYS, END_KEYS = ("start", "start_offset", "begin"), ("end", "end_offset")
LABEL_KEYS = ("label", "type", "tag")
STUDIO_KEYS = ("annotations", "completions")
TOKEN_KEYS = ("ner_tags", "tags")
"""Rows of words that have tags, another form, have one of these."""

REJECTED = "texts that Prodigy's answer rejects or ignores were left out"
UNDONE = "tasks without an annotation, or only with cancelled ones, were left out"
SEVERAL = "annotations of tasks that have several were left out: taken is the ground truth, or the first not cancelled"
NO_SPANS = "texts have no key of spans and were taken for texts without entities"
OTHER_RESULTS = "results that label no span, such as relations and choices, were passed over"
MISSING = "words have the tag '-', not annotated, and count as O"


class LeftOut(Exception):
    """A row that is whole, but is none to learn from. What and where has been noted."""


def is_span_row(row: Any) -> bool | None:
    """Whether a row is one of these layouts. None: it does not tell, as one without spans."""
    if isinstance(row, list):
        return len(row) > 1 and isinstance(row[0], str) and isinstance(row[1], dict) and "entities" in row[1]
    if not isinstance(row, dict):
        return None if row is None else False
    if "tokenized_text" in row or "paragraphs" in row or _is_paragraph(row) or _is_task(row):
        return True
    if isinstance(row.get("passages"), list) or _is_passage(row) or _is_dataturks(row):
        return True
    if _is_cluener(row):
        return True
    if _is_parts(row):
        return True if any("entity" in part for part in row["data"]) else None
    if isinstance(row.get("tokens"), list) and row["tokens"]:
        return isinstance(row["tokens"][0], dict) and not any(key in row for key in TOKEN_KEYS)
    if not any(isinstance(row.get(key), str) for key in TEXT_KEYS):
        return True if _spans_key(row) else None
    if _spans_key(row):
        return True
    return False if any(isinstance(row.get(key), str) for key in ("label", "labels")) else None


def text_or_words(row: Any) -> str | list[str] | None:
    """What an annotator was given, whether or not it is labelled: a text, or words where there is no text.

    None: the row is no tool's own layout but an object with columns.
    """
    if isinstance(row, list):
        return row[0] if is_span_row(row) else None
    if not isinstance(row, dict):
        return None
    if isinstance(row.get("data"), dict) and "text" not in row:  # a task of Label Studio, annotated or not
        return _text(row["data"], [])
    if _is_paragraph(row):
        tokens = (token for sentence in row["sentences"] for token in _list(sentence.get("tokens"), "tokens"))
        return [token["orth"] for token in tokens if token["orth"].strip()]
    if "text" not in row and isinstance(row.get("tokenized_text"), list):
        return [str(word) for word in row["tokenized_text"]]
    tokens = row.get("tokens")
    if isinstance(row.get("text"), str) and isinstance(tokens, list) and tokens and isinstance(tokens[0], dict):
        return row["text"]  # Prodigy's tokens say where words stand
    return None


def documents(row: Any) -> list[Any]:
    """The rows that a row holds, each of them a document: spaCy's paragraphs, BioC's passages; else itself."""
    if isinstance(row, dict) and isinstance(row.get("paragraphs"), list):
        return row["paragraphs"]
    if isinstance(row, dict) and isinstance(row.get("passages"), list):
        return [part for passage in row["passages"] for part in _with_text(passage)]
    return [row]


def read_row(row: Any, names: Mapping[int, str], note: Note, seen: set[Any]) -> Document | Tagged:
    """The document of a row, or its words and tags.

    Args:
        row: what the file holds, a value of JSON.
        names: the names of labels that are numbers, as in doccano's first exports.
        note: told about what is left out.
        seen: the tasks that were met, which grow.

    Raises:
        ValueError: it is none of the layouts, or damaged.
        LeftOut: it is not to be learned from.
    """
    if isinstance(row, list):
        return _simple(row, names, note)
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with a text and its spans, got {short(row)}")
    if _is_paragraph(row):
        return _paragraph(row, note)
    if "tokenized_text" in row:
        return _gliner(row)
    if _is_passage(row):
        return _passage(row)
    if _is_dataturks(row):
        return _dataturks(row)
    if _is_task(row):
        return _studio_task(row, note)
    if _is_cluener(row):
        return _cluener(row)
    if _is_parts(row):
        return _parts(row)
    if row.get("answer", "accept") != "accept":
        note(REJECTED, "")
        raise LeftOut
    if "annotation_id" in row and "id" in row:
        if row["id"] in seen:
            note(SEVERAL, "")
            raise LeftOut
        seen.add(row["id"])
    return _plain(row, names, note)


def _plain(row: dict[str, Any], names: Mapping[int, str], note: Note) -> Document:
    """A text and spans under any key: doccano, Prodigy, JSON-MIN."""
    key = _spans_key(row) or next((key for key in SPAN_KEYS if row.get(key) == []), None)
    if key is None:
        present = next((key for key in SPAN_KEYS if row.get(key) is not None), None)
        if present is not None:
            raise ValueError(f"{present} is {short(row[present])}, expected spans with a start, an end and a label")
        note(NO_SPANS, "")
    spans = list(_spans(row[key], names)) if key else []
    text = _text({name: value for name, value in row.items() if name != key}, spans)
    words = row.get("tokens")
    if words is None:
        return Document(text, spans)
    if not isinstance(words, list) or not all(isinstance(word, dict) for word in words):
        raise ValueError(f"tokens is {short(words)}, expected objects with a start and an end")
    places = [span(word.get("start"), word.get("end"), "token") for word in words]
    return Document(text, spans, [(place.start, place.end) for place in places])


def _simple(row: list[Any], names: Mapping[int, str], note: Note) -> Document:
    """spaCy's ["text", {"entities": [[start, end, label]]}]."""
    if is_span_row(row) is not True:
        raise ValueError(f'expected ["text", {{"entities": [[start, end, "TYPE"], ...]}}], got {short(row)}')
    return _plain({"text": row[0], "entities": row[1]["entities"]}, names, note)


def _gliner(row: dict[str, Any]) -> Document:
    """GLiNER's words, with spans from the first to the last word, counted from 0."""
    text, words = place_of_words(row["tokenized_text"])
    spans = []
    for item in _list(row.get("ner", []), "ner"):
        if not isinstance(item, list) or len(item) < 3:
            raise ValueError(f"ner holds {short(item)}, expected [first word, last word, label]")
        first, last = span(item[0], item[1], item[2]).parts[0]
        if not 0 <= first <= last < len(words):
            raise ValueError(f"the span {short(item)} lies outside of the text, which has {len(words)} words")
        spans.append(span(words[first][0], words[last][1], item[2]))
    return Document(text, spans, words)


def _with_text(passage: Any) -> list[Any]:
    """A passage of BioC, or where its sentences have the text, these."""
    sentences = passage.get("sentences") if isinstance(passage, dict) and not passage.get("text") else None
    return sentences or [passage]


def _is_passage(row: dict[str, Any]) -> bool:
    return "infons" in row and isinstance(row.get("annotations"), list) and type(row.get("offset")) is int


def _passage(row: dict[str, Any]) -> Document:
    """A passage of BioC: places count from the beginning of the document, and have a length."""
    spans = []
    for item in row["annotations"]:
        places = item.get("locations") if isinstance(item, dict) else None
        if not isinstance(places, list) or not places or not all(isinstance(place, dict) for place in places):
            raise ValueError(f"an annotation is {short(item)}, expected one with locations")
        starts = [place.get("offset", 0) - row["offset"] for place in places]
        ends = [start + place.get("length", 0) for start, place in zip(starts, places, strict=True)]
        whole = span(starts[0], ends[0], item.get("infons", {}).get("type"), item.get("text"))
        parts = tuple(sorted(zip(starts, ends, strict=True)))
        spans.append(Span(parts, whole.label, whole.quoted))
    return Document(row.get("text") or "", spans)


def _is_dataturks(row: dict[str, Any]) -> bool:
    return isinstance(row.get("content"), str) and "annotation" in row


def _dataturks(row: dict[str, Any]) -> Document:
    """A document of Dataturks, as the resumes of Kaggle: the end of a span is its last character."""
    spans = []
    for item in _list(row["annotation"] or [], "annotation"):
        points = item.get("points") if isinstance(item, dict) else None
        if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
            raise ValueError(f"an annotation is {short(item)}, expected one with a label and points")
        for label in _list(item.get("label"), "label"):
            for point in points:
                whole = span(point.get("start"), point.get("end"), label, point.get("text"))
                spans.append(Span(((whole.start, whole.end + 1),), whole.label, whole.quoted))
    return Document(row["content"], spans)


def _is_cluener(row: dict[str, Any]) -> bool:
    return isinstance(row.get("text"), str) and isinstance(row.get("label"), dict)


def _cluener(row: dict[str, Any]) -> Document:
    """A text of CLUENER, {"label": {"name": {"Anna": [[0, 3]]}}}: the end of a span is its last character."""
    spans = []
    for label, found in row["label"].items():
        for quoted, places in (found if isinstance(found, dict) else {}).items():
            for place in _list(places, f"the places of {quoted!r}"):
                if not isinstance(place, list) or len(place) != 2 or not all(type(at) is int for at in place):
                    raise ValueError(f"a place of {quoted!r} is {short(place)}, expected [first, last character]")
                spans.append(span(place[0], place[1] + 1, label, quoted))
    return Document(row["text"], spans)


def _is_parts(row: dict[str, Any]) -> bool:
    parts = row.get("data")
    return len(row) == 1 and isinstance(parts, list) and bool(parts) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) and part.keys() <= {"text", "entity"}
        for part in parts
    )  # fmt: skip


def _parts(row: dict[str, Any]) -> Document:
    """An utterance of SNIPS in parts, of which some are entities."""
    text, spans = "", []
    for part in row["data"]:
        start, text = len(text), text + part["text"]
        if part.get("entity"):
            spans.append(span(start, len(text), part["entity"], part["text"]))
    return Document(text, spans)


def _is_paragraph(row: dict[str, Any]) -> bool:
    return isinstance(row.get("sentences"), list) and "text" not in row


def _paragraph(row: dict[str, Any], note: Note) -> Tagged:
    """A paragraph of spaCy's training JSON: the words of all sentences, with their tags in BIO instead of BILUO."""
    words, tags = [], []
    for sentence in _list(row["sentences"], "sentences"):
        for token in _list(sentence.get("tokens") if isinstance(sentence, dict) else None, "tokens"):
            if not isinstance(token, dict) or not isinstance(token.get("orth"), str):
                raise ValueError(f'a token is {short(token)}, expected {{"orth": "word", "ner": "O"}}')
            tag = token.get("ner") or "-"
            if tag == "-":
                note(MISSING, f"{token['orth']!r}")
            elif not isinstance(tag, str) or (tag != "O" and (tag[0] not in _BIO or tag[1:2] != "-")):
                raise ValueError(f"the tag of {token['orth']!r} is {short(tag)}, expected BILUO, such as U-PERSON")
            if token["orth"].strip():
                words.append(token["orth"])
                tags.append("O" if tag in ("-", "O") else _BIO[tag[0]] + tag[1:])
    return words, tags


_BIO = {"B": "B", "I": "I", "L": "I", "U": "B"}


def _is_task(row: dict[str, Any]) -> bool:
    return isinstance(row.get("data"), dict) and any(key in row for key in STUDIO_KEYS)


def _studio_task(row: dict[str, Any], note: Note) -> Document:
    """A task of Label Studio with its annotations."""
    annotations = next(_list(row[key], key) for key in STUDIO_KEYS if key in row)
    if not all(isinstance(annotation, dict) for annotation in annotations):
        raise ValueError(
            f"annotations is {short(annotations)}, expected objects with a result: export the project as JSON, with "
            "its annotations"
        )
    done = [item for item in annotations if not (item.get("was_cancelled") or item.get("skipped"))]
    if not done:
        note(UNDONE, "")
        raise LeftOut
    done.sort(key=lambda item: not item.get("ground_truth"))
    for _ in done[1:]:
        note(SEVERAL, "")
    spans: list[Span] = []
    for result in _list(done[0].get("result", []), "result"):
        kind, value = result.get("type", "labels"), result.get("value", {})
        if kind in ("hypertextlabels", "paragraphlabels"):
            raise ValueError(
                f"a result is of the type {kind!r}, over HTML or a dialogue: expected labels of plain text"
            )
        if "labels" in value and "start" in value:
            spans.extend(_spans([value], {}))
        else:
            note(OTHER_RESULTS, f"{kind!r}")
    return Document(_text(row["data"], spans), spans)


def _text(fields: dict[str, Any], spans: list[Span]) -> str:
    """The text that was annotated: under its usual name, or the one that has what the spans repeat."""
    for key in TEXT_KEYS:
        if isinstance(fields.get(key), str):
            return fields[key]
    strings = {key: value for key, value in fields.items() if isinstance(value, str)}
    fitting = (
        list(strings) if len(strings) == 1 else [key for key in strings if spans and quoted_in(strings[key], spans)]
    )
    if len(fitting) != 1:
        raise ValueError(
            f"the text is missing: expected it under {TEXT_KEYS[0]!r}, but the strings are {short(list(strings))}. "
            "Call the key of the text that was annotated so"
        )
    return strings[fitting[0]]


def _spans_key(row: dict[str, Any]) -> str | None:
    """The key of a list whose first item is a span: a usual one, or where there is none, any."""
    for key in SPAN_KEYS:
        value = row.get(key)
        if isinstance(value, list) and value and _is_span(value[0]):
            return key
    if any(row.get(key) == [] for key in SPAN_KEYS):
        return None
    for key, value in row.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and _is_span(first) and any(name in first for name in ("labels", *LABEL_KEYS)):
            return key
    return None


def _is_span(item: Any) -> bool:
    if isinstance(item, list):
        return len(item) >= 3 and all(type(offset) in (int, float) for offset in item[:2])
    return isinstance(item, dict) and any(key in item for key in START_KEYS) and any(key in item for key in END_KEYS)


def _spans(items: list[Any], names: Mapping[int, str]) -> Iterator[Span]:
    for item in items:
        if isinstance(item, list) and len(item) >= 3:
            start, end, labels, quoted = item[0], item[1], item[2], None
        elif isinstance(item, dict):
            start, end = _first_of(item, START_KEYS), _first_of(item, END_KEYS)
            labels, quoted = item.get("labels", _first_of(item, LABEL_KEYS)), item.get("text")
        else:
            raise ValueError(f"a span is {short(item)}, expected a start, an end and a label")
        for label in labels if isinstance(labels, list) else [labels]:
            if type(label) is int and label not in names:
                raise ValueError(
                    f"the label of the span {start}-{end} is {label}, a number that nothing names: put the tool's list "
                    'of labels, [{"id": ' + str(label) + ', "text": "TYPE"}, ...], as labels.json beside the file'
                )
            yield span(start, end, names.get(label, label) if type(label) is int else label, quoted)


def _first_of(item: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((item[key] for key in keys if key in item), None)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {short(value)}, expected a list")
    return value
