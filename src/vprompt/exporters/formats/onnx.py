"""`.onnx`: for ONNX Runtime and whatever else reads ONNX."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vprompt.exporters.base import FORMATS, KEY, Format, check_shapes, refuse, signature
from vprompt.utils.version import FORMER_NAME

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    from vprompt.exporters.base import Run


MOST_BYTES = 2_000_000_000
"""Weights that one file holds; more lie in a second one beside it."""

_SMALL = 1024

_MORE = {"functions", "training_info", "sparse_initializer", "sparse_tensor", "g", "graphs", "tensors"}
"""Parts that a model, a graph or an attribute of a classifier does not have."""


class Onnx(Format):
    """Converted by PyTorch's exporter, run by ONNX Runtime."""

    name = "onnx"
    summary = "ONNX Runtime and many others"
    suffix = ".onnx"
    extra = "export"
    to_write = ("onnx", "onnxscript", "onnxruntime")
    to_read = ("onnx", "onnxruntime")
    opset = range(18, 24)
    engine = fp16 = int8 = True

    def convert(self, program: ExportedProgram, opset: int | None = None) -> Any:
        """An `onnx_ir.Model` with inputs, outputs and axes called as the program says."""
        import torch

        axes, outputs = signature(program)
        converted: Any = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(axes),
            output_names=outputs,
            opset_version=opset,
            dynamic_shapes=tuple(axes.values()),
            verbose=False,
        )
        return converted.model

    def save(self, converted: Any, path: Path, about: str) -> None:
        """Writes one file, or two where the weights are more than `MOST_BYTES`; `names` is what Ultralytics reads."""
        import onnx_ir

        classes: list[str] | None = json.loads(about)["classes"]
        names = {} if classes is None else {"names": repr(dict(enumerate(classes)))}
        converted.metadata_props.update({**names, KEY: about})
        values = [value.const_value for value in converted.graph.initializers.values()]
        large = sum(value.nbytes for value in values if value is not None) > MOST_BYTES
        onnx_ir.save(converted, path, external_data=f"{path.name}.data" if large else None)

    def read(self, path: Path) -> tuple[str | bytes | None, Callable[[], Run]]:
        """Reads by ONNX Runtime, once all that the file says was looked at."""
        import onnxruntime
        import torch

        _check(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def run(given: Any) -> Any:
            outputs: Any = session.run(None, given if isinstance(given, dict) else {"images": given})
            return outputs if len(outputs) > 1 else outputs[0]

        texts = session.get_modelmeta().custom_metadata_map
        return texts.get(KEY, texts.get(FORMER_NAME)), lambda: run

    def companions(self, path: Path) -> list[Path]:
        """The weights of a large model."""
        return [path.with_name(path.name + ".data")]

    def halved(self, converted: Any) -> Any:
        """By ONNX Runtime's tools; a processor without float16 computes in float32."""
        import onnx_ir
        from onnxruntime.transformers.float16 import convert_float_to_float16

        return onnx_ir.from_proto(convert_float_to_float16(onnx_ir.to_proto(converted), keep_io_types=True))

    def quantised(self, converted: Any, batches: Sequence[np.ndarray], folder: Path) -> tuple[Any, str]:
        """By ONNX Runtime; ranges of values are found while it runs.

        Fixed ranges from images were slower and less accurate, most of all where products of activations had them, too.
        """
        import onnx
        import onnx_ir
        from onnxruntime import quantization

        whole, small = folder / "float32.onnx", folder / "int8.onnx"
        onnx_ir.save(converted, whole)
        proto = onnx.load(whole)
        del proto.graph.value_info[:]  # the exporter's shapes do not fit what becomes of the weights
        weights = {tensor.name for tensor in proto.graph.initializer}
        products = [node for node in proto.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
        with_weights = [node.name for node in products if node.input[1] in weights]
        quantization.quantize_dynamic(proto, small, per_channel=True, nodes_to_quantize=with_weights)
        return onnx_ir.from_proto(onnx.load(small)), f"onnxruntime {version('onnxruntime')}"


def _check(path: Path) -> None:
    """Refuses a model that is more than operators of ONNX on tensors, or has weights elsewhere than beside it."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    if any(field.name in _MORE for part in (model, graph, *attributes) for field, _ in part.ListFields()):
        refuse(path, "it has functions, loops or sparse tensors in it")
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            refuse(path, f"it calls {node.op_type[:80]!a} of {node.domain[:80]!a}")
    for tensor in (*graph.initializer, *(attribute.t for attribute in attributes)):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place["location"] != f"{path.name}.data":
                refuse(path, f"it reads {place['location'][:80]!a}")
        elif len(tensor.raw_data) > _SMALL:
            tensor.ClearField("raw_data")  # shapes come from small ones
    del graph.value_info[:]
    found = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    check_shapes(path, ([size.dim_value or 1 for size in value.type.tensor_type.shape.dim] for value in found))


FORMATS.register(Onnx())
