"""Foreign text, such as a tensor's name, made harmless to print.

A name may hold whatever UTF-8 can say: escape sequences that repaint a terminal, carriage returns that hide the start
of a line, controls that reverse the direction of writing, or megabytes. Everything that people read goes through here.
"""

from __future__ import annotations

import unicodedata

LONGEST = 1000
"""Characters of a line or a cell; the rest is counted."""

# Controls, formats (of direction, of width), surrogates, private use, unassigned, separators of lines and paragraphs.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def plain(text: str, longest: int = LONGEST) -> str:
    r"""``text`` on one line: what does not print is written as Python would, ``\x1b``, and its middle left out.

    ``longest`` is the number of characters of ``text`` that are shown where it has more.
    """
    if len(text) > longest:
        head, tail = longest * 2 // 3, longest // 3
        left_out = len(text) - head - tail
        return f"{plain(text[:head])} … ({left_out:,} characters) … {plain(text[-tail:])}"
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if prints(character) else _escaped(character) for character in text)


def prints(character: str) -> bool:
    """Whether a character is seen as itself, and changes nothing but the place where it stands."""
    return unicodedata.category(character) not in _UNSEEN


def plain_lines(text: str) -> str:
    """``plain`` for each line of ``text``; line feeds stay."""
    return "\n".join(plain(line) for line in text.split("\n"))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
