"""The kinds of files that a model is exported to, each in a module of its own that needs packages of its own."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    Run = Callable[[np.ndarray], np.ndarray]
    "Logits (B, C) of normalised images (B, 3, H, W), both float32."


class Format(ABC):
    """A kind of file.

    `convert` gives the model as the format's own library holds it, `save` writes that, `read` runs what was written.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    extra: ClassVar[str | None] = None
    """The optional dependencies of vprompt that it needs."""
    to_write: ClassVar[tuple[str, ...]] = ()
    """Packages that writing needs."""
    to_read: ClassVar[tuple[str, ...]] = ()
    """Packages that reading and running need."""
    max_batch: ClassVar[int] = 1024
    """Largest batch that one call takes."""
    int8: ClassVar[bool] = False
    """Whether vprompt makes int8 models of this format."""
    calibrates: ClassVar[bool] = False
    """Whether int8 takes its ranges of values from images, rather than finding them while it runs."""

    @abstractmethod
    def convert(self, program: ExportedProgram) -> Any:
        """The model in this format, in memory."""

    @abstractmethod
    def save(self, converted: Any, path: Path, about: str) -> None:
        """Writes it with its description; beside `path` only files that `companions` names."""

    @abstractmethod
    def read(self, path: Path) -> tuple[str | bytes | None, Callable[[], Run]]:
        """The description, None where there is none, and what makes the file ready to run."""

    def companions(self, path: Path) -> list[Path]:
        """Files that may belong to the one at `path`."""
        return []

    def quantised(self, converted: Any, batches: Sequence[np.ndarray], folder: Path) -> tuple[Any, str]:
        """The model with int8 weights and activations, and the name of the tool that made it.

        Args:
            converted: From `convert`; may be used up.
            batches: Normalised images, (1, 3, H, W) each.
            folder: For temporary files.
        """
        raise NotImplementedError

    def require(self, packages: Sequence[str]) -> None:
        """Raises the sentence that tells how to install what is missing."""
        for package in packages:
            try:
                with quiet():
                    import_module(package)
            except ImportError as error:
                raise VPromptError(
                    f"{self.suffix} files need {package}, which is not installed: pip install 'vprompt[{self.extra}]'."
                ) from error


FORMATS = {"pt2": ".pt2", "onnx": ".onnx", "openvino": ".xml", "executorch": ".pte"}
"""Names of the formats, and how their files' names end."""


def format_of(path: Path) -> Format:
    """The format of a file, by the end of its name.

    Raises:
        VPromptError: If no format's files end so.
    """
    for name, suffix in FORMATS.items():
        if path.suffix.lower() == suffix:
            return import_module(f"vprompt.exporters.{name}").FORMAT
    known = ", ".join(f"{suffix} ({name})" for name, suffix in FORMATS.items())
    raise VPromptError(f"{path} is the name of no exported file; its end says the format: {known}.")


def is_exported(source: str | Path) -> bool:
    """Whether a name can only be that of an exported file."""
    return Path(source).suffix.lower() in FORMATS.values() and not Path(source).is_dir()


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keeps what the formats' libraries have to say about themselves off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
