"""`vprompt export`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import tyro

from vprompt.cli.console import UsageError, percent, print_json, print_note, print_table
from vprompt.cli.options import Json, Root, Weights
from vprompt.cli.predict import trained_on
from vprompt.exporters.base import FORMATS

if TYPE_CHECKING:
    from vprompt.exporters.export import Int8
    from vprompt.exporters.metadata import About
    from vprompt.model.model import FoldedModel


def _format_option() -> Any:
    """The choice of a format, for tyro: the registry's names, and what runs each."""
    names: Any = Optional[Literal[FORMATS.names()]]  # noqa: UP045 - made at run time
    return tyro.conf.arg(constructor=names, help=" ".join(f"{format.name}: {format.summary}." for format in FORMATS))


@dataclass(frozen=True, kw_only=True)
class Export:
    """An adapter and its backbone as one model for another runtime, compared with the original before it is done."""

    adapter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")]
    """Folder of the adapter, or its Hub id; with --engine, the name of a backbone, or an adapter that has it."""
    format: Annotated[str | None, _format_option()] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The file; named after the adapter and put into the working directory when left out."""
    engine: bool = False
    """Write the backbone alone, once, for any adapters that are handed to it while it runs (onnx, openvino, pt2)."""
    for_: Annotated[str | None, tyro.conf.arg(name="for", metavar="ENGINE")] = None
    """Write the file of the adapter for this engine, which is all that the engine needs of it."""
    adapters: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ADAPTER")] = ()
    """Adapters to compare the engine with; random ones make them up to three. Accuracy is that of the first."""
    max_prompts: int = 256
    """Most prompts of a block that the engine takes."""
    images: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMAGE")] = ()
    """Image files or folders to compare the file with the original on; those of --int8 or bundled
    images when left out."""
    include_preprocessing: bool = False
    """The file takes uint8 pixels (B, H, W, 3) in RGB, resized to the model's size, and gives probabilities or
    values."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """fp16: weights in float16, half as large (onnx, openvino)."""
    opset: int | None = None
    """Version of ONNX's operators, for older runtimes."""
    labels: bool = False
    """Write labels.txt and config.json (id2label) beside the file, for other tools."""
    int8: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """Make it an int8 model: images to calibrate with (openvino) and to compare on, a folder or as for `vprompt eval`.
    Where they have labels, the training split is used, and the accuracy before and after is that of the test split."""
    eval: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """Measure the accuracy before and after int8 on these labelled images instead; on their test split, if there is."""
    root: Root = None
    split_seed: int | None = None
    """Cuts the splits that a folder does not have; as for the training when left out."""
    weights: Weights = None
    device: str = "auto"
    """Device for the accuracy before int8, such as cpu or cuda; all else is done by the processor, as the file is."""
    trust_file: bool = False
    """Read an engine that is a .pt2 file and was written elsewhere: it may run code on this machine."""
    json: Json = False

    def run(self) -> None:
        """Loads, folds, exports, prints."""
        if self.for_ is not None:
            self._for_engine(self.for_)
        elif self.format is None:
            raise UsageError(f"Say what is to run the file: --format {'|'.join(FORMATS.names())}, or --for ENGINE.")
        elif self.engine:
            self._engine(self.format)
        else:
            self._whole(self.format)

    def _whole(self, format: str) -> None:
        from vprompt.exporters.export import export
        from vprompt.model.load import load
        from vprompt.utils.devices import device_named
        from vprompt.utils.progress import bar

        if self.eval is not None and self.int8 is None:
            raise UsageError("--eval measures what int8 costs; give the images to calibrate with, too: --int8 DATA.")
        out, name = self._out(format), self._name
        model = load(self.adapter, weights=self.weights).fold().to(device_named(self.device))
        int8 = None if self.int8 is None else self._int8(model, self.int8)
        with bar("exporting") as report:
            exported = export(
                model,
                out,
                images=self.images,
                int8=int8,
                precision=self.precision,
                opset=self.opset,
                include_preprocessing=self.include_preprocessing,
                labels=self.labels,
                adapter=name,
                report=report,
            )
        self._say(out, exported.about, exported.bytes)

    @property
    def _name(self) -> str:
        return Path(self.adapter).resolve().name if Path(self.adapter).is_dir() else Path(self.adapter).name

    def _out(self, format: str) -> Path:
        suffix = FORMATS.get(format).suffix
        out = Path(self._name + suffix) if self.out is None else self.out
        if out.suffix.lower() != suffix:
            raise UsageError(f"The name of an {format} file ends in {suffix}, which {out} does not.")
        return out

    def _refuse(self, why: str, *others: str) -> None:
        """Refuses options that were given and do not go with what is asked."""
        plain = {entry.name: entry.default for entry in fields(self)}
        given = [name for name in others if getattr(self, name) != plain[name]]
        if given:
            raise UsageError(f"{why}; leave out --{given[0].replace('_', '-')}.")

    def _engine(self, format: str) -> None:
        from vprompt.backbones.factory import create_backbone
        from vprompt.exporters.engine import export_engine
        from vprompt.exporters.export import Int8
        from vprompt.model.load import load
        from vprompt.utils.progress import bar

        self._refuse("An engine takes normalised images", "include_preprocessing", "labels", "device")
        out = self._out(format)
        folder = Path(self.adapter).is_dir()
        own = [load(self.adapter, weights=self.weights, backbone_precision="fp32")] if folder else []
        backbone = own[0].backbone if own else create_backbone(self.adapter, weights=self.weights)
        models = [*own, *(load(adapter, backbone, backbone_precision="fp32") for adapter in self.adapters)]
        if self.eval is not None and not models:
            raise UsageError("--eval measures the accuracy of an adapter on the engine; give one: --adapters ADAPTER.")
        source = self.int8 or self.eval
        data = self._int8(models[0].fold(), source) if models and source else None
        if source and not models:
            data = Int8(calibration=[source])
        with bar("exporting") as report:
            made = export_engine(
                backbone,
                out,
                adapters=models,
                images=self.images,
                precision=self.precision if self.int8 is None else "int8",
                data=data,
                opset=self.opset,
                max_prompts=self.max_prompts,
                report=report,
            )
        self._say(out, made.about, sum(file.stat().st_size for file in FORMATS.get(format).files(out)))

    def _for_engine(self, engine: str) -> None:
        from vprompt.exporters.engine import SUFFIX, export_adapter, open_engine
        from vprompt.model.load import load

        why = "The file of an adapter is for an engine that is there already"
        self._refuse(why, "format", "engine", "adapters", "precision", "int8", "eval", "opset", "labels", "device")
        out = Path(self._name + SUFFIX) if self.out is None else self.out
        model = load(self.adapter, weights=self.weights, backbone_precision="fp32")
        runs = open_engine(engine, trust=self.trust_file)
        made = export_adapter(model, out, runs, images=self.images, adapter=self._name)
        self._say(out, made.about, out.stat().st_size)

    def _say(self, out: Path, about: About, size: int) -> None:
        if self.json:
            print_json({"path": str(out), "bytes": size, **asdict(about)})
        else:
            _show(out, about, size)

    def _int8(self, model: FoldedModel, data: str) -> Int8:
        """The images to calibrate with, and those to measure the accuracy on, where there are labels."""
        from vprompt.data.tasks import load_labelled
        from vprompt.exporters.export import Int8
        from vprompt.utils.errors import DataError
        from vprompt.utils.text import printable

        sample, seed, columns = trained_on(Path(self.adapter))

        def labelled(spec: str, split: Literal["auto", "train"]):  # noqa: ANN202 - what load_labelled returns
            return load_labelled(
                spec,
                model.preprocessing,
                model.target,
                root=self.root,
                columns=columns,
                split=split,
                split_seed=seed if self.split_seed is None else self.split_seed,
                sample=sample,
            )

        try:
            calibration, spec = labelled(data, "train")[0], self.eval or data
        except DataError:
            if not Path(data).is_dir():
                raise
            calibration, spec = [data], self.eval
        if spec is None:
            return Int8(calibration=calibration)
        images, split, _ = labelled(spec, "auto")
        if split == "train":
            raise DataError(
                f"{printable(spec)} has training images only, on which int8 is calibrated; give others: --eval DATA."
            )
        return Int8(calibration=calibration, labelled=images, data=Path(spec).name, split=split)


def _show(out: Path, about: About, size: int) -> None:
    found = {"numbers": about.precision, "MB": f"{size / 1e6:.3g}"}
    if about.comparison is not None:
        found |= {
            "images compared": str(about.comparison.images),
            "largest difference": f"{about.comparison.largest:.1e}",
            "allowed": f"{about.comparison.tolerance * about.comparison.scale:.1e}",
        }
    print_table(str(out), list(found), [list(found.values())])
    cost, target = about.quantisation, about.made_target
    if cost is None:
        return
    if about.precision == "int8" and about.comparison is not None:
        print_note(f"Calibrated on {cost.calibration_images} images; the difference is that of float32, before int8.")
    found = {
        "same class" if target.grouped else "same": percent(cost.same_class),
        f"{target.title} before": percent(cost.score_before),
        "after": percent(cost.score_after),
        "images": str(cost.images or "-"),
        "split": cost.split or "-",
    }
    print_table(cost.tool, list(found), [list(found.values())])
