"""What Griffe must know of our docstrings: their section `Example` holds examples."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Reads `Example:` as Google's `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Renames the section before it is parsed."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
