"""`.pt2`: a program of PyTorch, as `torch.export.save` writes it.

`torch.export.load` unpickles what an archive calls a pickle and evaluates sizes that are written as text. So it reads
only what is trusted. Here an archive is a list of calls of operators that compute on tensors and do nothing else, and
of weights that are plain numbers; of all else in it nothing is read.
"""

from __future__ import annotations

import io
import operator
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vprompt.exporters.base import FORMATS, FORMER_KEY, KEY, Format, refuse
from vprompt.exporters.checksum import BLANK, add_checksum, verify_checksum
from vprompt.utils.serialization import parse

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, fx
    from torch.export import ExportedProgram

    from vprompt.exporters.base import Run

MOST_JSON = 2**26
"""Bytes of one JSON file in an archive; those of large models have a few million."""

MOST_BYTES = 2**32
"""Memory that a program may take at a time for every image, beside its weights."""

MOST_PARTS = 2**16
"""Length of what a program may cut into a list of tensors."""

_OPERATORS = """
" _softmax _to_copy abs adaptive_avg_pool1d adaptive_avg_pool2d add add_ addmm alias amax amin arange argmax avg_pool2d
baddbmm batch_norm bmm cat ceil chunk clamp clamp_max clamp_min clone constant_pad_nd contiguous conv1d conv2d
convolution cos cumsum detach div div_ dropout einsum elu empty_like eq erf exp expand expand_as flatten floor
floor_divide full full_like ge gelu group_norm gt hardsigmoid hardswish hardtanh index index_select layer_norm le
leaky_relu lift_fresh_copy linalg_vector_norm linear log log_softmax logical_and logical_not logical_or lt mT
masked_fill matmul max max_pool2d maximum mean meshgrid min minimum mish mm movedim mul mul_ narrow native_layer_norm ne
neg new_zeros norm ones ones_like pad permute pixel_shuffle pixel_unshuffle pow prelu reciprocal relu relu_ repeat
repeat_interleave reshape rms_norm roll round rsqrt rsub scalar_tensor scaled_dot_product_attention select sigmoid silu
silu_ sin slice softmax softplus split split_with_sizes sqrt square squeeze stack std sub sub_ sum sym_numel sym_size t
tan tanh to transpose tril triu type_as unbind unflatten unsqueeze upsample_bicubic2d upsample_bilinear2d
upsample_nearest2d var view where zeros zeros_like
"""
OPERATORS = frozenset(_OPERATORS.split())
"""Operators of ATen that compute from numbers and do nothing else."""

_ON_SIZES = frozenset(("add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge"))
"""Functions of the module `operator`, on sizes."""

_TYPES = {1: "uint8", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 12: "bool", 13: "bfloat16"}
_MEMORY_FORMATS = {1: "contiguous_format", 2: "channels_last", 4: "preserve_format"}

_NAMES = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)|data/sample_inputs/model\.pt"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|extra/(vprompt|laconic)\.json"
    r"|archive_format|archive_version|byteorder|\.data/\w+"
)


class Pt2(Format):
    """A zip archive of JSON and plain numbers; its comment is the checksum."""

    name = "pt2"
    summary = "PyTorch without vprompt"
    suffix = ".pt2"

    def convert(self, program: ExportedProgram, opset: int | None = None) -> ExportedProgram:
        """The program as it is."""
        return program

    def save(self, converted: ExportedProgram, path: Path, about: str) -> None:
        """Writes one file."""
        import torch

        archive = io.BytesIO()  # PyTorch ends the process where it cannot write to a disk
        torch.export.save(converted, archive, extra_files={f"{KEY}.json": about})
        with path.open("wb") as file:
            file.write(archive.getbuffer()[:-2])  # the archive ends with the length of its comment
            file.write(struct.pack("<H", len(BLANK)) + BLANK.encode())
        add_checksum([path])

    def read(self, path: Path) -> tuple[str | bytes | None, Callable[[], Run]]:
        """Reads nothing but data, and calls known operators only."""
        archive = _Archive(path)
        return archive.description(), lambda: _runner(archive)

    def read_trusted(self, path: Path) -> tuple[str | bytes | None, Callable[[], Run]]:
        """Reads by PyTorch, for which the archive is packed anew: it sees what was looked at."""
        archive = _Archive(path)
        return archive.description(), lambda: _library_runner(archive)


class _Archive:
    """The files in an archive, as `torch.export.save` packs them: not compressed.

    Raises:
        VPromptError: If there are others than it writes for plain weights.
        Exception: Of many kinds, if it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        verify_checksum([path])
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            self.root = entries[0].filename.partition("/")[0] + "/"
            names = [entry.filename.removeprefix(self.root) for entry in entries]
            strange = next((name for name in names if not _NAMES.fullmatch(name)), None)
            if strange is not None or len(set(names)) != len(names):
                refuse(path, f"it has {'the same name twice' if strange is None else ascii(strange[:80])} in it")
            if min(entry.header_offset for entry in entries) > 0:
                refuse(path, "something is before the files in it")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                refuse(path, "it is compressed, as PyTorch writes none")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                refuse(path, "what is in it is larger than itself")
            if any(entry.file_size > MOST_JSON for entry in entries if entry.filename.endswith(".json")):
                refuse(path, f"it has more than {MOST_JSON >> 20} MB of JSON in it")
            self.files = {name: archive.read(entry) for name, entry in zip(names, entries, strict=True)}

    def description(self) -> bytes | None:
        """The text beside the model; None where there is none."""
        return self.files.get(f"extra/{KEY}.json", self.files.get(f"extra/{FORMER_KEY}.json"))

    def tensors(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Name, file and form of all weights and constants."""
        for kind in ("weights", "constants"):
            for name, entry in parse(self.files[f"data/{kind}/model_{kind}_config.json"])["config"].items():
                if entry["use_pickle"]:
                    refuse(self.path, "it has a pickle in it")
                yield name, f"data/{kind}/{entry['path_name']}", entry["tensor_meta"]


def _runner(archive: _Archive) -> Run:
    import torch

    module, checked = _module(archive), set[int]()

    def run(images: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(images)
        if len(images) not in checked:
            _check_memory(module, given, archive)
            checked.add(len(images))
        with torch.inference_mode():
            return module(given).numpy()

    return run


def _module(archive: _Archive) -> fx.GraphModule:
    """The program as a module. PyTorch makes code of it, in which nothing but numbers comes from the file."""
    import torch
    from torch import fx

    program = parse(archive.files["models/model.json"])["graph_module"]
    root, graph, values = torch.nn.Module(), fx.Graph(), dict[str, fx.Node]()
    weights = _weights(archive)
    for number, spec in enumerate(program["signature"]["input_specs"]):
        ((kind, entry),) = spec.items()
        if kind == "user_input":
            values[entry["arg"]["as_tensor"]["name"]] = graph.placeholder("images")
        else:
            name = next(entry[key] for key in ("parameter_name", "buffer_name", "tensor_constant_name") if key in entry)
            root.register_buffer(f"weight_{number}", weights[name])
            values[entry["arg"]["name"]] = graph.get_attr(f"weight_{number}")
    for node in program["graph"]["nodes"]:
        if not node["outputs"]:  # checks of PyTorch's
            continue
        function = _function(node["target"], archive)
        args = tuple(_value(given["arg"], values) for given in node["inputs"] if given["kind"] == 1)
        kwargs = {given["name"]: _value(given["arg"], values) for given in node["inputs"] if given["kind"] != 1}
        if node["target"].startswith("_operator") and not all(isinstance(arg, int | fx.Node) for arg in args):
            refuse(archive.path, "it computes sizes from lists or texts")
        call = graph.call_function(function, args, kwargs)
        outputs = node["outputs"][0].get("as_tensors") or node["outputs"]
        if outputs is node["outputs"] and len(outputs) == 1:
            values[_name(outputs[0])] = call
            continue
        for index, output in enumerate(outputs):
            values[_name(output)] = graph.call_function(operator.getitem, (call, index))
    (result,) = program["signature"]["output_specs"]
    graph.output(values[_name(result["user_output"]["arg"])])
    graph.eliminate_dead_code()
    return fx.GraphModule(root, graph)


def _weights(archive: _Archive) -> dict[str, Tensor]:
    """Weights and constants by their names; a file is in memory once, however many are parts of it."""
    import torch

    memory: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, file, form in archive.tensors():
        if file not in memory:
            memory[file] = torch.frombuffer(archive.files.pop(file) or bytes(8), dtype=torch.uint8).clone()
        sizes, strides = ([size["as_int"] for size in form[key]] for key in ("sizes", "strides"))
        numbers = memory[file].view(getattr(torch, _TYPES[form["dtype"]]))
        found[name] = numbers.as_strided(sizes, strides, form["storage_offset"]["as_int"])
    return found


def _function(target: str, archive: _Archive) -> Callable[..., Any]:
    import torch

    place, _, name = target.rpartition(".")
    if place == "_operator" and name in _ON_SIZES:
        return getattr(operator, name)
    place, _, operation = place.rpartition(".")
    if place == "torch.ops.aten" and operation in OPERATORS:
        function = getattr(getattr(torch.ops.aten, operation), name)
        results = {str(result.type) for result in function._schema.returns}
        if operation.startswith("sym_") or results <= {"Tensor", "List[Tensor]"}:
            return function
    return refuse(
        archive.path,
        f"it calls {target[:80]!a}, which vprompt does not know to be harmless",
        "if you trust who made the file, give --trust-file (in Python: trust=True)",
    )


def _name(output: dict[str, Any]) -> str:
    """Name of a result: `{"name": ...}`, `{"as_tensor": {"name": ...}}` or `{"as_sym_int": {"as_name": ...}}`."""
    while "name" not in output and "as_name" not in output:
        (output,) = output.values()
    return output["name"] if "name" in output else output["as_name"]


def _value(arg: dict[str, Any], values: Mapping[str, fx.Node]) -> Any:
    """An argument of a call.

    Raises:
        ValueError: If it is of a kind that is not read.
    """
    ((kind, value),) = arg.items()
    match kind, value:
        case "as_none", _:
            return None
        case "as_name" | "name", str():
            return values[value]
        case (("as_tensor" | "as_sym_int" | "as_sym_float" | "as_sym_bool"), dict()):
            return _value(value, values)
        case (("as_tensors" | "as_optional_tensors" | "as_sym_ints"), list()):
            return [_value(part, values) for part in value]
        case (("as_int" | "as_bool"), int()) if abs(value) < 2**63:
            return value
        case "as_float", int() | float() | "Infinity" | "-Infinity" | "NaN":
            return float(value)
        case (("as_ints" | "as_floats" | "as_bools"), list()):
            return [_value({kind[:-1]: part}, values) for part in value]
        case "as_string", str() if re.fullmatch(r"[\w,.> -]{0,64}", value):
            return value
        case _:
            return _constant(kind, value)


def _constant(kind: str, value: Any) -> Any:
    import torch

    match kind, value:
        case "as_scalar_type", int():
            return getattr(torch, _TYPES[value])
        case "as_memory_format", int():
            return getattr(torch, _MEMORY_FORMATS[value])
        case "as_layout", 7:
            return torch.strided
        case "as_device", {"type": "cpu"}:
            return torch.device("cpu")
        case _:
            raise ValueError(f"it has {kind[:40]} {ascii(value)[:40]} in it")


def _check_memory(module: fx.GraphModule, images: Tensor, archive: _Archive) -> None:
    """Refuses a program that takes more memory or time than a model does, from its shapes alone."""
    import torch
    from torch import fx
    from torch._subclasses.fake_tensor import FakeTensorMode

    def storages(value: Any) -> dict[int, int]:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            return {storage._cdata: storage.nbytes()}  # pyright: ignore[reportPrivateUsage]
        parts: Sequence[Any] = value if isinstance(value, list | tuple) else ()
        return {key: size for part in parts for key, size in storages(part).items()}

    class Shapes(fx.Interpreter):
        def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            cuts = target.__module__ != "_operator" and str(target._schema.returns[0].type) == "List[Tensor]"
            if cuts and isinstance(args[0], torch.Tensor) and max(args[0].shape, default=0) > MOST_PARTS:
                refuse(archive.path, "it cuts a tensor into very many")
            value = super().call_function(target, args, kwargs)
            held = [kept for node, kept in self.env.items() if node.op != "get_attr"]
            if sum(storages([*held, value]).values()) > MOST_BYTES * len(images):
                refuse(archive.path, f"it takes more than {MOST_BYTES >> 30} GB of memory for an image")
            if isinstance(value, int) and abs(value) > 2**62:
                refuse(archive.path, "it has a size without bound")
            return value

    shapes = Shapes(module)
    shapes.extra_traceback = False  # no more than a sentence
    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes.run(torch.empty(images.shape, dtype=images.dtype))


def _library_runner(archive: _Archive) -> Run:
    """The program by PyTorch's own reader, which gets no pickle."""
    import torch

    list(archive.tensors())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for name, content in archive.files.items():
            target.writestr(archive.root + name, b"" if name == "data/sample_inputs/model.pt" else content)
    packed.seek(0)
    module: Any = torch.export.load(packed).module(check_guards=False)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return run


FORMATS.register(Pt2())
