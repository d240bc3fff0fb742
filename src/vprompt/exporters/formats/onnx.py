"""`.onnx`: for ONNX Runtime and whatever else reads ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vprompt.exporters.base import FORMATS, FORMER_KEY, KEY, Format

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    from vprompt.exporters.base import Run


MOST_BYTES = 2_000_000_000
"""Weights that one file holds; more lie in a second one beside it."""


class Onnx(Format):
    """Converted by PyTorch's exporter, run by ONNX Runtime."""

    name = "onnx"
    summary = "ONNX Runtime and many others"
    suffix = ".onnx"
    extra = "export"
    to_write = ("onnx", "onnxscript", "onnxruntime")
    to_read = ("onnxruntime",)
    int8 = True

    def convert(self, program: ExportedProgram) -> Any:
        """An `onnx_ir.Model` with the input `images`, the output `logits` and the axis `batch`."""
        import torch

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
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def run(images: np.ndarray) -> np.ndarray:
            logits: Any = session.run(None, {"images": images})[0]
            return logits

        texts = session.get_modelmeta().custom_metadata_map
        return texts.get(KEY, texts.get(FORMER_KEY)), lambda: run

    def companions(self, path: Path) -> list[Path]:
        """The weights of a large model."""
        return [path.with_name(path.name + ".data")]

    def quantised(self, converted: Any, batches: Sequence[np.ndarray], folder: Path) -> tuple[Any, str]:
        """By ONNX Runtime; ranges of values are found while it runs.

        Fixed ranges from images were slower and less accurate, most of all where products of activations had them, too.
        """
        import onnx
        import onnx_ir
        from onnxruntime import quantization

        whole, small = folder / "float32.onnx", folder / "int8.onnx"
        try:
            onnx_ir.save(converted, whole)
            proto = onnx.load(whole)
            del proto.graph.value_info[:]  # the exporter's shapes do not fit what becomes of the weights
            weights = {tensor.name for tensor in proto.graph.initializer}
            products = [node for node in proto.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
            with_weights = [node.name for node in products if node.input[1] in weights]
            quantization.quantize_dynamic(proto, small, per_channel=True, nodes_to_quantize=with_weights)
            return onnx_ir.from_proto(onnx.load(small)), f"onnxruntime {version('onnxruntime')}"
        finally:
            whole.unlink(missing_ok=True)
            small.unlink(missing_ok=True)


FORMATS.register(Onnx())
