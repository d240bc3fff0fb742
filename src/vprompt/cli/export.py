"""`vprompt export`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vprompt.cli.console import UsageError, percent, print_json, print_note, print_table
from vprompt.exporters.base import FORMATS

if TYPE_CHECKING:
    from vprompt.exporters.export import Int8
    from vprompt.exporters.exported import Exported
    from vprompt.model.model import FoldedModel


def _format_option() -> Any:
    """The choice of a format, for tyro: the registry's names, and what runs each."""
    names: Any = Literal[FORMATS.names()]
    return tyro.conf.arg(constructor=names, help=" ".join(f"{format.name}: {format.summary}." for format in FORMATS))


@dataclass(frozen=True, kw_only=True)
class Export:
    """An adapter and its backbone as one model for another runtime, compared with the original before it is done."""

    adapter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")]
    """Folder of the adapter, or its Hub id."""
    format: Annotated[str, _format_option()]
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The file; named after the adapter and put into the working directory when left out."""
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
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds the tasks of VTAB-1k and FGVC; $VPROMPT_DATA or ./data when left out."""
    split_seed: int = 0
    """Cuts the splits that a folder does not have; as given to `fit`."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """The backbone's weights, where the adapter was trained with a file of them that is no longer where it was."""
    device: str = "auto"
    """Device for the accuracy before int8, such as cpu or cuda; all else is done by the processor, as the file is."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> None:
        """Loads, folds, exports, prints."""
        from vprompt.exporters.export import export
        from vprompt.model.load import load
        from vprompt.utils.devices import device_named
        from vprompt.utils.progress import bar

        if self.eval is not None and self.int8 is None:
            raise UsageError("--eval measures what int8 costs; give the images to calibrate with, too: --int8 DATA.")
        suffix = FORMATS.get(self.format).suffix
        name = Path(self.adapter).resolve().name if Path(self.adapter).is_dir() else Path(self.adapter).name
        out = Path(name + suffix) if self.out is None else self.out
        if out.suffix.lower() != suffix:
            raise UsageError(f"The name of an {self.format} file ends in {suffix}, which {out} does not.")
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
        if self.json:
            print_json({"path": str(out), "bytes": exported.bytes, **asdict(exported.about)})
        else:
            _show(exported)

    def _int8(self, model: FoldedModel, data: str) -> Int8:
        """The images to calibrate with, and those to measure the accuracy on, where there are labels."""
        from vprompt.data.tasks import load_labelled
        from vprompt.exporters.export import Int8
        from vprompt.utils.errors import DataError
        from vprompt.utils.text import printable

        def labelled(spec: str, split: Literal["auto", "train"]):  # noqa: ANN202 - what load_labelled returns
            return load_labelled(
                spec, model.preprocessing, model.target, root=self.root, split=split, split_seed=self.split_seed
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


def _show(exported: Exported) -> None:
    about = exported.about
    assert about.comparison is not None
    found = {
        "format": exported.format.name,
        "numbers": about.precision,
        "MB": f"{exported.bytes / 1e6:.1f}",
        "images compared": str(about.comparison.images),
        "largest difference": f"{about.comparison.largest:.1e}",
        "allowed": f"{about.comparison.tolerance * about.comparison.scale:.1e}",
    }
    print_table(str(exported.path), list(found), [list(found.values())])
    cost, target = about.quantisation, about.made_target
    if cost is None:
        return
    print_note(f"Calibrated on {cost.calibration_images} images; the difference is that of float32, before int8.")
    found = {
        "same class" if target.grouped else "same": percent(cost.same_class),
        f"{target.title} before": percent(cost.score_before),
        "after": percent(cost.score_after),
        "images": str(cost.images or "-"),
        "split": cost.split or "-",
    }
    print_table("int8", list(found), [list(found.values())])
