"""HTML and SVG elements whose text and attributes are escaped here, so that no one else has to think of it."""

from __future__ import annotations

import html

from laconic.report.text import number


class Markup(str):
    """Text that is markup already; only `tag` and `join` make it."""

    __slots__ = ()


Child = Markup | str | None


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """An element.

    Args:
        name: Of the element.
        children: Markup as it is, text escaped, None left out.
        attributes: Underscores become hyphens and one at the end goes (`class_`); None is left out, `""` has no value.

    Example:
        >>> tag("p", "a < b", tag("br"), title='"')
        '<p title="&quot;">a &lt; b<br></p>'
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    inside = join(*children)
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{inside}</{name}>")


def join(*children: Child) -> Markup:
    """Markup as it is and text escaped, one after the other."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children if c is not None))


_VOID = frozenset(("br", "meta", "hr", "img"))


def _attribute(key: str, value: str | float) -> str:
    name = key.rstrip("_").replace("_", "-")
    name = "viewBox" if name == "viewbox" else name
    if isinstance(value, str):
        return f' {name}="{html.escape(value)}"' if value else f" {name}"
    return f' {name}="{short(value)}"'


def short(value: float) -> str:
    """A coordinate with one decimal at most."""
    text = f"{number(value) or 0.0:.1f}"
    return text.removesuffix(".0")
