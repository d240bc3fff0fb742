"""The command `vprompt condense`."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, replace
from pathlib import Path

from vprompt.cli.console import resumable
from vprompt.cli.fit import OUTPUT, RATIO, show_result
from vprompt.cli.options import command, values_of
from vprompt.experiments.folder import check_out
from vprompt.experiments.settings import CondenseSettings
from vprompt.utils.distributed import is_main_process
from vprompt.utils.serialization import build, options_of


@dataclass(frozen=True, kw_only=True)
class CondenseCommand:
    """Score the prompts of a trained adapter, keep the best, fine-tune them, and save the smaller adapter."""

    def run(self) -> None:
        """Scores, keeps, fine-tunes, evaluates, saves."""
        values, asked = values_of(self, _OPTIONS), values_of(self, OUTPUT)
        settings = build(CondenseSettings, {**values, "condense": values["ratio"]})
        out: Path = asked["out"]
        check_out(out, resume=asked["resume"])
        from vprompt.experiments.run import run_condense

        with resumable(out):
            result = run_condense(settings, out, resume=asked["resume"], progress=is_main_process())
        show_result(result, out, as_json=asked["json"])


_OPTIONS = {option.flag: option for option in ({**options_of(CondenseSettings), "condense": RATIO}).values()}
_OUT = {
    **OUTPUT,
    "out": replace(OUTPUT["out"], type=Path, default=MISSING, help="Folder for the smaller adapter and result.json."),
}

Condense = command(CondenseCommand, {**_OPTIONS, **_OUT}, {})
