"""`.onnx`: for ONNX Runtime and whatever else reads ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from vprompt.exporters.base import Format
from vprompt.exporters.metadata import KEY

if TYPE_CHECKING:
    import numpy as np

    from vprompt.exporters.base import Run


MOST_BYTES = 2_000_000_000
"""Weights that one file holds; more lie in a second one beside it."""


class Onnx(Format):
    """Converted by PyTorch's exporter, run by ONNX Runtime."""

    name = "onnx"
    suffix = ".onnx"
    extra = "export"
    to_write = ("onnx", "onnxscript", "onnxruntime")
    to_read = ("onnxruntime",)
    int8 = True

    def convert(self, program: ExportedProgram) -> Any:
        """An `onnx_ir.Model` with the input `images`, the output `logits` and the axis `batch`."""
        converted: Any = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
        return converted.model

    def save(self, converted: Any, path: Path, about: str) -> None:
        """Writes one file, or two where the weights are more than `MOST_BYTES`."""
        import onnx_ir

        converted.metadata_props[KEY] = about
        values = [value.const_value for value in converted.graph.initializers.values()]
        large = sum(value.nbytes for value in values if value is not None) > MOST_BYTES
        onnx_ir.save(converted, path, external_data=self.companions(path)[0].name if large else None)

    def read(self, path: Path) -> tuple[str | bytes | None, Callable[[], Run]]:
        """Reads by ONNX Runtime alone."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def run(images: np.ndarray) -> np.ndarray:
            logits: Any = session.run(None, {"images": images})[0]
            return logits

        return session.get_modelmeta().custom_metadata_map.get(KEY), lambda: run

    def companions(self, path: Path) -> list[Path]:
        """The weights of a large model."""
        return [path.with_name(path.name + ".data")]

    def quantised(self, converted: Any, batches: Sequence[np.ndarray], folder: Path) -> tuple[Any, str]:
        """By ONNX Runtime; takes nothing from the images."""
        from vprompt.exporters.int8 import quantise_onnx

        return quantise_onnx(converted, folder)


FORMAT = Onnx()
