"""Text that comes from others, shown as it is."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Text in which what a reader would not see, or would be misled by, is written out.

    Line breaks, control characters, marks that turn the direction of reading, and bytes of file
    names that are not UTF-8 become escapes such as ``\n`` or ``\u202e``.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
