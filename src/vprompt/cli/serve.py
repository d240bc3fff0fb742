"""`vprompt serve`."""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vprompt.cli.console import UsageError, print_json, print_note
from vprompt.serving.setup import TOKEN_VARIABLE, Setup
from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    import socket

    from vprompt.serving.bank.banks import Banks


@dataclass(frozen=True, kw_only=True)
class Serve(Setup):
    """Answer images over HTTP with many adapters on one backbone, until Ctrl-C or SIGTERM."""

    host: str = "127.0.0.1"
    """Address to listen at; anywhere but on this machine itself a token is needed."""
    port: int = 8000
    """0 takes a free one."""
    manage: bool = False
    """Let clients with the token add adapters from folders of this machine, and remove any."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged on standard error."""
    access_log: bool = False
    """Log every request, and all as lines of JSON."""
    json: bool = False
    """Print address and adapters as JSON when the service listens."""

    def run(self) -> None:
        """Loads, listens, serves, stops."""
        if not self.named and self.watch is None and self.adapters is None:
            raise UsageError("There is no adapter to serve: vprompt serve ADAPTER ..., --watch or --adapters FOLDER.")
        token = self.token()
        if self.manage and token is None:
            raise UsageError(f"--manage needs a token; give --token-file FILE or set {TOKEN_VARIABLE}.")
        try:
            from vprompt.serving.server import Server, bind, serve
        except ModuleNotFoundError as error:
            raise VPromptError(f"vprompt serve needs {error.name}: pip install 'vprompt[serve]'.") from error
        from vprompt.serving.decoding import start
        from vprompt.serving.log import logging_to_stderr

        with (
            logging_to_stderr(self.log_level, json_lines=self.access_log),
            bind(self.host, self.port, guarded=token is not None) as listener,
            contextlib.ExitStack() as watched,
        ):
            service = self.service(watched)
            start()
            listening = functools.partial(self._announce, listener, service.bank)
            server = Server(service, token=token, manage=self.manage, listening=listening)
            try:
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
