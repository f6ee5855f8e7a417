"""spaCy's binary training files (.spacy), read with spaCy where it is installed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIX = ".spacy"


def docs(path: Path) -> Iterator[Any]:
    """The documents of a DocBin, as spaCy's `Doc` objects.

    Raises:
        ValueError: it is damaged.
        ModuleNotFoundError: spaCy is not installed. The message has the remedy.
    """
    try:
        import spacy  # pyright: ignore[reportMissingImports]
        from spacy.tokens import DocBin  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is spaCy's binary form, which needs spaCy: pip install spacy. Or export the documents as JSON "
            'lines {"text": "...", "entities": [[start, end, "TYPE"], ...]}.',
            name=error.name,
        ) from error
    try:
        stored = DocBin().from_disk(path)
    except Exception as error:  # spaCy lets what zlib and msgpack raise through
        raise ValueError(f"{path} is not a .spacy file, or is damaged: {error}. Fetch it again.") from error
    yield from stored.get_docs(spacy.blank("xx").vocab)


def words_and_tags(doc: Any) -> tuple[list[str], list[str]]:
    """The words of a `Doc` without those of white space alone, and their tags in BIO. Words without one count as O."""
    kept = [token for token in doc if token.text.strip()]
    inside = [token.ent_iob_ in ("B", "I") for token in kept]
    tags = [
        f"{token.ent_iob_}-{token.ent_type_}" if is_inside else "O"
        for token, is_inside in zip(kept, inside, strict=True)
    ]
    return [token.text for token in kept], tags
