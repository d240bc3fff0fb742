"""Markdown in which text from data stays text."""

import re

import pytest

from vprompt.report.markdown import escaped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("9 methods (a, b): 85.2 ± 0.4 of vit_tiny.in21k.", "9 methods (a, b): 85.2 ± 0.4 of vit_tiny.in21k."),
        ("vtab:eurosat, test.txt; 30 % kept", "vtab:eurosat, test.txt; 30 % kept"),
        ("85.2", "85.2"),
        ("1. a", "1&#46; a"),
        ("12) a", "12\\) a"),
        ("- a", "\\- a"),
        ("_a_ __b__", "\\_a\\_ \\_\\_b\\_\\_"),
        ("see http://x.y or WWW.x.y", "see http&#58;//x.y or WWW&#46;x.y"),
        ("mailto:a@b.c :tada:", "mailto&#58;a&#64;b.c &#58;tada:"),
        ("![x](y) <b> a|b `c` $d$ ~~e~~ *f* &amp;", None),
    ],
)
def test_markdown_escapes_what_is_markup_and_nothing_else(text, shown):
    found = escaped(text)
    if shown is not None:
        assert found == shown
    else:
        assert not re.search(r"(?<!\\)[\[\]`|$~*]|<|&(?!(lt|gt|amp|#\d+);)", found)
