"""Running text to words, each with its place in the text, so that a prediction points back at what was written.

Words are cut as in annotated corpora: `IL-2`, `95.5`, `CD4+` and `patient's` stay whole, brackets, quotes, percent
signs and the full stop stand alone, and each Chinese character is a word, as it is to BERT. White space and stray
marks belong to no word. The model's tokenizer cuts the words further.
"""

import re
import unicodedata

Span = tuple[int, int]
"""(start, end) of a word: `text[start:end]` is the word as written."""

LETTER, DIGIT, MARK, JOINER, IDEOGRAPH, SYMBOL, SPACE = "w", "0", "m", "j", "c", "p", " "
"""What the shape of a text has in place of its characters. ASCII punctuation stands for itself."""

_LOOK_ALIKES = {"’": "'", "ʼ": "'", "‐": "-", "‑": "-"}
_IDEOGRAPHS = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x2FA20))

_WORD = re.compile(
    r"""
      (?<! [w0mj]) w M* (?: \. w M* (?! [mjw0]) )+ \.? M*       # U.S.  e.g.  u.v
    | [-/]? (?: \. (?= 0) )? UNITS                               # -dependent  /luciferase  -5  .25
      (?: (?: (?<= 0) [,:] (?= 0) | \. (?= 0)                    # 1,000.50  12:30  v1.2
            | ['+]? [-/] | ['+*&@_]                              # IL-2  5'-end  Ca2+-bound  patient's
          ) UNITS )*
      (?: \++ | (?<= 0) ' | - (?! -) )? M*                       # CD4+  3'  anti-
    | c M*
    | p m* (?: j p m* )* M*                                      # an emoji of several people is one word
    | ([^\sw0mjcp]) (?: M* \1 )* M*                              # ...  --  ``
    """.replace("UNITS", "(?: [w0] M* )+").replace("M*", "[mj]*"),
    flags=re.VERBOSE,
)


class _Shapes(dict[int, str]):
    """Code points to shapes, for `str.translate`; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        shape = self[code] = _shape(chr(code))
        return shape


_SHAPES = _Shapes()


def split_text(text: str) -> list[Span]:
    """The words of a text, in order: (start, end) for each. They do not overlap, and an empty text has none."""
    return [match.span() for match in _WORD.finditer(text.translate(_SHAPES))]


def _shape(character: str) -> str:
    if character.isspace():
        return SPACE
    character = _LOOK_ALIKES.get(character, character)
    if any(first <= ord(character) < end for first, end in _IDEOGRAPHS):
        return IDEOGRAPH
    if character == "\u200d":  # zero width joiner
        return JOINER
    category = unicodedata.category(character)
    # Accents, direction marks and skin tones are part of what they follow.
    if category[0] == "M" or category in ("Cc", "Cf") or "\U0001f3fb" <= character <= "\U0001f3ff":
        return MARK
    if character.isdecimal():
        return DIGIT
    if category[0] in "PS":
        return character if character.isascii() else SYMBOL
    return LETTER
