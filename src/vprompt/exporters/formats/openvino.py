"""`.xml` and `.bin`: OpenVINO's own format, for Intel's processors."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vprompt.exporters.base import FORMATS, FORMER_KEY, KEY, Format
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import printable

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    from vprompt.exporters.base import Run


# OpenVINO and NNCF tell their makers how they are used, from forked processes that may hang; without this module they
# do not. Who imported them before has settled it.
sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]


class OpenVino(Format):
    """Two files: the graph names the SHA-256 of the weights, so that a mixture of two exports is found."""

    name = "openvino"
    summary = "Intel"
    suffix = ".xml"
    extra = "openvino"
    to_write = to_read = ("openvino",)
    to_quantise = ("nncf",)
    int8 = calibrates = True

    def convert(self, program: ExportedProgram) -> Any:
        """An `openvino.Model` with the input `images` and the output `logits`."""
        import openvino

        model = openvino.convert_model(program)
        images = next(node for node in program.graph.nodes if node.name == "images").meta["val"]
        model.reshape([-1, *images.shape[1:]])
        model.inputs[0].set_names({"images"})
        model.outputs[0].set_names({"logits"})
        return model

    def save(self, converted: Any, path: Path, about: str) -> None:
        """Writes the graph and the weights, in the numbers they are held in."""
        import openvino

        converted.set_rt_info(about, [KEY])
        openvino.save_model(converted, path, compress_to_fp16=False)
        converted.set_rt_info(_sha256(self.companions(path)[0]), [_checksum(KEY)])
        openvino.save_model(converted, path, compress_to_fp16=False)

    def read(self, path: Path) -> tuple[str | bytes | None, Callable[[], Run]]:
        """Reads both files; computes in float32 where the processor would rather take bfloat16."""
        import openvino
        import torch

        with path.open("rb") as file:
            start = file.read(200)
        if not start.startswith(b"<?xml") or b"<net " not in start:
            # OpenVINO would try whether it is another framework's.
            raise VPromptError(f"{printable(str(path))} is damaged, or no model of OpenVINO; export the adapter again.")
        core = openvino.Core()
        model = core.read_model(path)
        key = next((key for key in (KEY, FORMER_KEY) if model.has_rt_info([key])), None)
        if key is not None and model.get_rt_info([_checksum(key)]).astype(str) != _sha256(self.companions(path)[0]):
            raise VPromptError(f"{printable(str(path))} and its .bin are not of one export; export the adapter again.")
        threads = torch.get_num_threads()
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}

        def ready() -> Run:
            compiled = core.compile_model(model, "CPU", options)
            return lambda images: compiled(images)[0]

        return None if key is None else model.get_rt_info([key]).astype(str), ready

    def companions(self, path: Path) -> list[Path]:
        """The weights."""
        return [path.with_suffix(".bin")]

    def quantised(self, converted: Any, batches: Sequence[np.ndarray], folder: Path) -> tuple[Any, str]:
        """By NNCF, as it does transformers; ranges of values are those of the images."""
        import nncf

        quantised = nncf.quantize(
            converted, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches)
        )
        return quantised, f"nncf {version('nncf')}"


def _checksum(key: str) -> str:
    """Name of the weights' SHA-256 in the graph."""
    return f"{key}_weights_sha256"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


FORMATS.register(OpenVino())
