"""Text that a reader sees as it is: what is invisible or changes the direction of reading is named.

Floor 5: pure. For text of models and of users, before a page or figure escapes it in its own way.
"""

import unicodedata

KEPT = "\n\t"
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # control, format, surrogate, private, line and paragraph separators


def visible(text: str) -> str:
    """Return the text with invisible characters written out, as in ⟨U+202E⟩.

    Line feeds and tabs stay. So do joiners between emoji and in scripts that need them (U+200D, U+200C), unless ASCII
    stands beside them, where they only hide.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(text, i) for i in range(len(text)))


def _shown(text: str, i: int) -> str:
    character = text[i]
    if character in KEPT or unicodedata.category(character) not in HIDDEN:
        return character
    if character in "\u200c\u200d" and i and not text[i - 1].isascii() and not text[i + 1 : i + 2].isascii():
        return character
    return f"⟨U+{ord(character):04X}⟩"
