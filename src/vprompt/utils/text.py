"""Text and numbers from data, made fit to be shown: one line, no control characters, never endless."""

from __future__ import annotations

import math
import string
import unicodedata
from typing import Any

LARGEST = 1e15
"""Numbers beyond it mean nothing here, and would overflow in a picture."""


def line(value: Any, most: int = 120) -> str:
    """Any value as one line of at most `most` characters; what does not print is written as an escape.

    Direction overrides count as what does not print: they would change how the text around them reads.

    Example:
        >>> line("a\\n\\u202eb"), line("x" * 9, 5), line(None)
        ('a \\\\u202eb', 'xxxx…', '–')
    """
    if value is None:
        return "–"
    text = value if isinstance(value, str) else str(value)
    shown = printable(" ".join(text[: 8 * most].split()) + " " * (len(text) > 8 * most))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def lines(value: Any, most: int = 20_000) -> str:
    """Text of several lines, each as `line` would show it but with its spaces."""
    text = value.expandtabs(4) if isinstance(value, str) else ""
    return printable(text[:most], keep="\n") + "\n…" * (len(text) > most)


def paragraphs(value: Any) -> list[str]:
    """The paragraphs of a text, which empty lines part."""
    blocks = value.replace("\r\n", "\n").split("\n\n") if isinstance(value, str) else []
    return [line(block, 4000) for block in blocks if block.strip()]


def number(value: Any) -> float | None:
    """A finite number of sensible size, or None.

    Example:
        >>> number(0.5), number(float("nan")), number("0.5"), number(True)
        (0.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST and math.isfinite(value) else None


def show(value: float | None, form: str = "g", *, factor: float = 1, unit: str = "") -> str:
    """A number times a factor in a format, with its unit; a dash where there is none.

    Example:
        >>> show(0.256, ".0f", factor=100, unit=" %"), show(None)
        ('26 %', '–')
    """
    return "–" if value is None else f"{factor * value:{form}}{unit}"


def title_of(key: str) -> str:
    """The key of a figure in words.

    Example:
        >>> title_of("pixel_accuracy"), title_of("mean_iou")
        ('pixel accuracy', 'mean IoU')
    """
    return key.replace("_", " ").replace("iou", "IoU")


def percent(value: float | None) -> str:
    """A share in percent, without the sign.

    Example:
        >>> percent(0.7055)
        '70.5'
    """
    return "–" if value is None else f"{100 * value:.1f}"


def spread(mean: float | None, std: float | None, digits: int = 1, *, factor: float = 100) -> str:
    """A mean and, where there is one, its standard deviation, both times a factor: shares as percent.

    Example:
        >>> spread(0.123, 0.05), spread(0.01, None), spread(0.123, 0.05, 2, factor=1), spread(None, None)
        ('12.3 ± 5.0', '1.0', '0.12 ± 0.05', '–')
    """
    form = f".{digits}f"
    return show(mean, form, factor=factor) + ("" if mean is None or std is None else f" ± {factor * std:{form}}")


def amount(value: float | None) -> str:
    """A number of things, whole where it is.

    Example:
        >>> amount(48010), amount(80.25), amount(None)
        ('48,010', '80.2', '–')
    """
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.1f}"


def gmacs(value: float | None) -> str:
    """Multiply-accumulates in thousand millions."""
    return "–" if value is None else f"{value:.3f}" if value < 1 else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """A time that reads well.

    Example:
        >>> duration(45), duration(5000), duration(360_000)
        ('45 s', '83 min', '100.0 h')
    """
    if seconds is None:
        return "–"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def count(many: int, noun: str) -> str:
    """A number and its noun.

    Example:
        >>> count(1, "seed"), count(2000, "run"), count(3, "class")
        ('1 seed', '2,000 runs', '3 classes')
    """
    return f"{many:,} {noun}{('es' if noun.endswith('s') else 's') * (many != 1)}"


def capital(words: str) -> str:
    """Words as a sentence begins.

    Example:
        >>> capital("mean AP")
        'Mean AP'
    """
    return words[:1].upper() + words[1:]


def listed(names: list[str], most: int = 8) -> str:
    """Names in a sentence; those with commas are parted by semicolons.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a", "b", "c"], 2)
        ('a, b and c', 'a, b and 1 more')
    """
    between = "; " if any("," in name for name in names) else ", "
    if len(names) > most:
        return f"{between.join(names[:most])} and {len(names) - most:,} more"
    return names[0] if len(names) == 1 else f"{between.join(names[:-1])} and {names[-1]}" if names else ""


_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of characters that move, turn or hide the text around them, or that a UTF-8 file cannot hold."""

_JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji are spelled with."""


def printable(text: str, *, keep: str = "") -> str:
    """Text from data as it may be shown anywhere: one line, in which all that is no visible character is an escape.

    Those are control characters, marks of direction, invisible characters, and undecodable bytes of file names.

    Args:
        text: The text.
        keep: Characters that stay as they are, such as the ends of lines.

    Example:
        >>> printable("photo\\u202egnp.exe"), printable("a\\nb", keep="\\n") == "a\\nb"
        ('photo\\\\u202egnp.exe', True)
    """
    if text.isascii() and text.isprintable():
        return text
    # A joiner belongs to the letter or emoji before it; in plain ASCII it would only hide.
    shown = (
        c in keep or unicodedata.category(c) not in _UNSHOWN or (c in _JOINERS and not text[i - 1 : i].isascii())
        for i, c in enumerate(text)
    )
    return "".join(c if whole else ascii(c)[1:-1] for c, whole in zip(text, shown, strict=True))


_ESCAPES = {
    **{c: f"\\{c}" for c in string.punctuation if c not in "-,/';?%"},
    **{c: f"&#{ord(c)};" for c in '<>&"@:.'},
}
"""Everything that could be markup in a line of Markdown, links that GitHub makes of plain text included."""


def escape(text: str) -> str:
    """Text from data as it can stand in a line of Markdown: never markup, never more than one line."""
    return "".join(_ESCAPES.get(c, c) for c in printable(text))
