"""Models in int8: weights, and what enters the products with them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def quantise_openvino(model: Any, batches: Sequence[np.ndarray]) -> tuple[Any, str]:
    """An `openvino.Model` in int8 by NNCF, and the tool's name; ranges of values are those of the images."""
    import nncf

    quantised = nncf.quantize(
        model, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches)
    )
    return quantised, f"nncf {version('nncf')}"


def quantise_onnx(model: Any, folder: Path) -> tuple[Any, str]:
    """An `onnx_ir.Model` in int8 by ONNX Runtime, and the tool's name; ranges of values are found while it runs.

    Fixed ranges from images were slower and less accurate, most of all where products of activations had them, too.
    """
    import onnx
    import onnx_ir
    from onnxruntime import quantization

    whole, small = folder / "float32.onnx", folder / "int8.onnx"
    try:
        onnx_ir.save(model, whole)
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
