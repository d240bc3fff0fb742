"""`.xml` and `.bin`: OpenVINO's own format, for Intel's processors."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from vprompt.exporters.base import FORMATS, KEY, Format, check_shapes, refuse, signature
from vprompt.utils.text import printable
from vprompt.utils.version import FORMER_NAME

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    from vprompt.exporters.base import Run


MOST_XML = 2**26
"""Bytes of a graph; those of large models have a few million."""

# OpenVINO and NNCF tell their makers how they are used, from forked processes that may hang; without this module they
# do not. Who imported them before has settled it.
sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]


class OpenVino(Format):
    """Two files, the graph and the weights."""

    name = "openvino"
    summary = "Intel"
    suffix = ".xml"
    extra = "openvino"
    to_write = to_read = ("openvino",)
    engine = fp16 = int8 = calibrates = True

    def convert(self, program: ExportedProgram, opset: int | None = None) -> Any:
        """An `openvino.Model` with inputs and outputs called as the program says."""
        import openvino

        model = openvino.convert_model(program)
        (inputs, outputs), shapes = signature(program), dict[Any, Any]()
        for node, (name, axes) in zip(model.inputs, inputs.items(), strict=True):
            shape = node.get_partial_shape()
            shapes[node] = [-1 if axis in axes else size for axis, size in enumerate(shape)]
            node.set_names({name})
        model.reshape(shapes)
        for node, name in zip(model.outputs, outputs, strict=True):
            node.set_names({name})
        return model

    def save(self, converted: Any, path: Path, about: str) -> None:
        """Writes the graph and the weights, in the numbers they are held in; `model_info` is what Model API reads."""
        import openvino

        converted.set_rt_info(about, [KEY])
        for key, value in _model_info(json.loads(about)).items():
            converted.set_rt_info(value, ["model_info", key])
        openvino.save_model(converted, path, compress_to_fp16=False)

    def read(self, path: Path) -> tuple[str | bytes | None, Callable[[], Run]]:
        """Reads both files; computes in float32 where the processor would rather take bfloat16."""
        import torch

        weights = self.companions(path)[0]
        _check_graph(path, weights.stat().st_size)
        core = _core()
        model = core.read_model(path, weights)
        shapes = [output.get_partial_shape() for node in model.get_ops() for output in node.outputs()]
        check_shapes(path, ([size.max_length for size in s if size.is_static] for s in shapes if s.rank.is_static))
        key = next((key for key in (KEY, FORMER_NAME) if model.has_rt_info([key])), None)
        threads = torch.get_num_threads()
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}

        def ready() -> Run:
            compiled: Any = core.compile_model(model, "CPU", options)
            lock = threading.Lock()  # all calls share one request

            def run(given: Any) -> Any:
                with lock:
                    outputs = compiled(given).to_tuple()
                return outputs if len(outputs) > 1 else outputs[0]

            return run

        return None if key is None else model.get_rt_info([key]).astype(str), ready

    def companions(self, path: Path) -> list[Path]:
        """The weights."""
        return [path.with_suffix(".bin")]

    def halved(self, converted: Any) -> Any:
        """By OpenVINO, as it saves models by default; processors compute in the numbers they like best."""
        import openvino

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "float16.xml"
            openvino.save_model(converted, path, compress_to_fp16=True)
            return _core().read_model(model=path.read_bytes(), weights=self.companions(path)[0].read_bytes())

    def quantised(self, converted: Any, batches: Sequence[np.ndarray], folder: Path) -> tuple[Any, str]:
        """By NNCF, as it does transformers; ranges of values are those of the images."""
        self.require(("nncf",))
        import nncf

        quantised = nncf.quantize(
            converted, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches)
        )
        return quantised, f"nncf {version('nncf')}"


@cache
def _core() -> Any:
    """OpenVINO, once in a process.

    Each sets a stack for signal handlers, which it frees in the end while it puts back the one before. Of two that end
    in another order the last leaves a freed one, on which the next Ctrl-C ends the process (OpenVINO 2026).
    """
    import openvino

    return openvino.Core()


def _model_info(about: dict[str, Any]) -> dict[str, str]:
    """Entries by which OpenVINO's Model API knows a classifier: names without blanks, pixels from 0 to 255."""
    found = {} if about["target"] or about["engine"] else {"model_type": "Classification"}
    if about["classes"] is not None:
        found["labels"] = " ".join("_".join(printable(name).split()) for name in about["classes"])
    if not about["includes_preprocessing"]:
        for key, name in (("mean", "mean_values"), ("std", "scale_values")):
            found[name] = " ".join(f"{255 * value:.6g}" for value in about["preprocessing"][key])
    return found


def _check_graph(path: Path, weights: int) -> None:
    """Refuses a graph that is more than operators of OpenVINO on tensors, and on the bytes that there are."""
    text = path.read_bytes()
    if not re.match(rb"<\?xml[^>]*>\s*<net ", text) or b"<!" in text or len(text) > MOST_XML:
        refuse(path, f"it is damaged, has entities in it, or is larger than {MOST_XML >> 20} MB")
    net = ElementTree.fromstring(text)
    if any("}" in each.tag for each in net.iter()):  # names of namespaces, which OpenVINO passes over
        refuse(path, "it has namespaces in it")
    for layer in net.iter("layer"):
        if layer.find("body") is not None or not re.fullmatch(r"opset\d+", layer.get("version", "")):
            refuse(path, f"it calls {ascii(layer.get('type'))[:80]}")
        for data in layer.iter("data"):
            start, length = int(data.get("offset", 0)), int(data.get("size", 0)) if "offset" in data.attrib else 0
            if min(start, length) < 0 or start + length > weights:
                refuse(path, "it reads past the end of its weights")


FORMATS.register(OpenVino())
