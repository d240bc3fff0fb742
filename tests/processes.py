"""Processes of their own, forked from one that has imported torch and timm already, which takes seconds each time."""

import multiprocessing
import os
import signal
import sys
import time

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["laconic.cli", "laconic.experiment", "laconic.bench.worker", "laconic.bench.run"])


def _command(arguments, out, err, prepare):
    """What such a process does; its streams go to files."""
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    from laconic.cli import main

    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    sys.exit(main(arguments))


class Command:
    """`laconic ARGUMENTS` in a process of its own, with one thread.

    Args:
        arguments: Of the command.
        folder: For what it prints.
        prepare: Called there before; must be a function of a module.
    """

    def __init__(self, *arguments, folder, prepare=None):
        self.out, self.err = folder / "printed-out", folder / "printed-err"
        self.process = FORKED.Process(
            target=_command, args=([*map(str, arguments)], str(self.out), str(self.err), prepare)
        )
        self.process.start()
        self.pid = self.process.pid

    @property
    def status(self):
        """None while it runs; a signal that ended it is negative."""
        return self.process.exitcode

    def printed(self):
        """What it has written so far to standard output and standard error."""
        return tuple(path.read_text() if path.exists() else "" for path in (self.out, self.err))

    def when(self, ready, number):
        """Sends it a signal once `ready()`, and waits for its end; (status, output, errors)."""
        try:
            deadline = time.monotonic() + 300
            while not ready():
                assert self.process.is_alive(), f"it ended too soon: {self.printed()[1]}"
                assert time.monotonic() < deadline
                time.sleep(0.002)
            os.kill(self.pid, number)
            return self.end()
        finally:
            self.process.kill()

    def end(self):
        """Waits for its end; (status, output, errors)."""
        self.process.join(300)
        self.process.kill()
        return self.status, *self.printed()
