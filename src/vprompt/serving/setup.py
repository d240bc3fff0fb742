"""What a service runs, as options: those of the command and of a deployment."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vprompt.backbones.names import BackbonePrecision
from vprompt.serving.limits import Limits
from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    from vprompt.serving.service import Service

TOKEN_VARIABLE = "VPROMPT_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Adapters, and what is needed to run them."""

    named: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")] = ()
    """Folders of adapters, or their Hub ids; with --engine, files of adapters for it as well. Each is asked for by its
    last name, or by NAME where given as NAME=ADAPTER. They may be of several backbones."""
    engine: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Run the adapters of its backbone on this engine, which `vprompt export BACKBONE --engine` wrote."""
    trust_file: bool = False
    """Read an engine that is a .pt2 file: one that was made to do so can then run code on this machine."""
    watch: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Serve the adapters in this folder, too: what is added, replaced or removed there while it runs is so here."""
    adapters: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|hf:USER")] = None
    """Load the adapters of this folder, or of a user or organisation on the Hub, when they are asked for by name; the
    least recently used go beyond --max-adapters and --max-adapter-bytes."""
    token_file: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """File with the token that clients must show; $VPROMPT_TOKEN when left out."""
    limits: Limits = field(default_factory=Limits)
    device: str = "auto"
    """Device, such as cpu or cuda; auto takes an accelerator where there is one."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """The backbone's weights, where the adapters were trained with a file of them that is no longer where it was."""
    backbone_precision: BackbonePrecision | None = None
    """How the backbone's linear layers are held, where not as in training; fp32, bf16, int8, int4, fp8."""

    def token(self) -> str | None:
        """The token in a file or in the environment, or None where neither is given.

        Raises:
            VPromptError: If it cannot be read, or no header could hold it.
        """
        if (file := self.token_file) is not None:
            where = f"The file {file}"
            try:
                token = Path(file).read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "it is no text"
                raise VPromptError(f"The token cannot be read from {file} ({reason}); check --token-file.") from error
        elif TOKEN_VARIABLE in os.environ:
            where, token = TOKEN_VARIABLE, os.environ[TOKEN_VARIABLE].strip()
        else:
            return None
        if not token or not all("!" <= c <= "~" for c in token):
            raise VPromptError(f"{where} holds no token: that is one line of visible ASCII characters without spaces.")
        return token

    def service(self, watched: ExitStack) -> Service:
        """The service, with all that is named loaded; until the stack is closed it follows what folders it has to."""
        from vprompt.serving.bank.banks import Banks
        from vprompt.serving.bank.engine import Engine
        from vprompt.serving.metrics import Metrics
        from vprompt.serving.service import Service
        from vprompt.serving.store import Store
        from vprompt.serving.watch import Watch
        from vprompt.utils.devices import device_named

        sources, device, metrics = named(self.named), device_named(self.device), Metrics()
        engines = [] if self.engine is None else [Engine(self.engine, trust=self.trust_file)]
        banks = Banks(*engines, weights=self.weights, device=device, backbone_precision=self.backbone_precision)
        for name, source in sources.items():
            banks.add(name, source)
        if self.watch is not None:
            watched.enter_context(Watch(banks, Path(self.watch)))
        store = None if self.adapters is None else Store(banks, self.adapters, self.limits, metrics)
        if store is not None:
            watched.enter_context(store)
        return Service(banks, self.limits, metrics=metrics, store=store)


def named(adapters: tuple[str, ...]) -> dict[str, str]:
    """The adapters by the names they are asked for.

    Raises:
        VPromptError: If an address cannot hold a name, or two have the same.

    Example:
        >>> named(("runs/birds", "pets=me/vit-pets"))
        {'birds': 'runs/birds', 'pets': 'me/vit-pets'}
    """
    from vprompt.serving.watch import ENGINE_FILE, check_name

    sources: dict[str, str] = {}
    for text in adapters:
        name, equals, source = text.partition("=")
        if not equals or os.path.isdir(text):
            name, source = Path(os.path.abspath(text)).name.removesuffix(ENGINE_FILE), text
        if not os.path.exists(source) and os.path.isfile(source + ENGINE_FILE):
            source += ENGINE_FILE
        if check_name(name) in sources:
            raise VPromptError(f"Two adapters would be called {name!r}; name one of them: NAME={source}.")
        sources[name] = source
    return sources
