"""`vprompt serve`."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vprompt.backbones.names import BackbonePrecision
from vprompt.cli.console import UsageError, print_json, print_note
from vprompt.serving.limits import Limits
from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    import socket

    from vprompt.serving.bank.banks import Banks


TOKEN_VARIABLE = "VPROMPT_TOKEN"

_FILE = ".safetensors"
"""End of the names of adapters for engines; may be left out."""


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Answer images over HTTP with many adapters on one backbone, until Ctrl-C or SIGTERM."""

    adapters: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")]
    """Folders of adapters, or their Hub ids; with --engine, files of adapters for it as well. Each is asked for by its
    last name, or by NAME where given as NAME=ADAPTER. They may be of several backbones."""
    engine: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Run the adapters of its backbone on this engine, which `vprompt export BACKBONE --engine` wrote."""
    trust_file: bool = False
    """Read an engine that is a .pt2 file: one that was made to do so can then run code on this machine."""
    watch: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Serve the adapters in this folder, too: what is added, replaced or removed there while it runs is so here."""
    host: str = "127.0.0.1"
    """Address to listen at; anywhere but on this machine itself a token is needed."""
    port: int = 8000
    """0 takes a free one."""
    token_file: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """File with the token that clients must show; $VPROMPT_TOKEN when left out."""
    manage: bool = False
    """Let clients with the token add adapters from folders of this machine, and remove any."""
    limits: Limits = field(default_factory=Limits)
    device: str = "auto"
    """Device, such as cpu or cuda; auto takes an accelerator where there is one."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """The backbone's weights, where the adapters were trained with a file of them that is no longer where it was."""
    backbone_precision: BackbonePrecision | None = None
    """How the backbone's linear layers are held, where not as in training; fp32, bf16, int8, int4, fp8."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged on standard error."""
    access_log: bool = False
    """Log every request, and all as lines of JSON."""
    json: bool = False
    """Print address and adapters as JSON when the service listens."""

    def run(self) -> None:
        """Loads, listens, serves, stops."""
        if not self.adapters and self.watch is None:
            raise UsageError("There is no adapter to serve: vprompt serve ADAPTER ..., or --watch FOLDER.")
        token = read_token(self.token_file)
        if self.manage and token is None:
            raise UsageError(f"--manage needs a token; give --token-file FILE or set {TOKEN_VARIABLE}.")
        try:
            from vprompt.serving.server import Server, bind, serve
        except ModuleNotFoundError as error:
            raise VPromptError(f"vprompt serve needs {error.name}: pip install 'vprompt[serve]'.") from error
        from vprompt.serving.bank.banks import Banks
        from vprompt.serving.bank.engine import Engine
        from vprompt.serving.decoding import start
        from vprompt.serving.log import logging_to_stderr
        from vprompt.serving.service import Service
        from vprompt.serving.watch import Watch
        from vprompt.utils.devices import device_named

        sources = named(self.adapters)
        device = device_named(self.device)
        with (
            logging_to_stderr(self.log_level, json_lines=self.access_log),
            bind(self.host, self.port, guarded=token is not None) as listener,
        ):
            engines = [] if self.engine is None else [Engine(self.engine, trust=self.trust_file)]
            banks = Banks(*engines, weights=self.weights, device=device, backbone_precision=self.backbone_precision)
            for name, source in sources.items():
                banks.add(name, source)
            watch = contextlib.nullcontext() if self.watch is None else Watch(banks, Path(self.watch))
            service = Service(banks, self.limits)
            start()
            server = Server(service, token=token, manage=self.manage, listening=lambda: self._announce(listener, banks))
            try:
                with watch:
                    serve(server, listener)
            finally:
                if not service.close(self.limits.timeout):
                    # Python cannot end while a thread computes.
                    print_note("vprompt: A prediction did not come to an end and was given up.")
                    os._exit(1)

    def _announce(self, listener: socket.socket, banks: Banks) -> None:
        names = [entry.name for entry in banks.entries]
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if self.json:
            print_json({"url": url, "adapters": names})
        else:
            print_note(f"Listening on {url}, serving {', '.join(names) or 'no adapter yet'}. Ctrl-C stops.")


def named(adapters: tuple[str, ...]) -> dict[str, str]:
    """The adapters by the names they are asked for.

    Raises:
        VPromptError: If an address cannot hold a name, or two have the same.

    Example:
        >>> named(("runs/birds", "pets=me/vit-pets"))
        {'birds': 'runs/birds', 'pets': 'me/vit-pets'}
    """
    from vprompt.serving.service import check_name

    sources: dict[str, str] = {}
    for text in adapters:
        name, equals, source = text.partition("=")
        if not equals or os.path.isdir(text):
            name, source = Path(os.path.abspath(text)).name.removesuffix(_FILE), text
        if not os.path.exists(source) and os.path.isfile(source + _FILE):
            source += _FILE
        if check_name(name) in sources:
            raise VPromptError(f"Two adapters would be called {name!r}; name one of them: NAME={source}.")
        sources[name] = source
    return sources


def read_token(file: str | None) -> str | None:
    """The token in a file or in the environment, or None where neither is given.

    Raises:
        VPromptError: If it cannot be read, or no header could hold it.
    """
    if file is not None:
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
