"""Processes of their own, forked from one that has imported torch and timm already, which takes seconds each time."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

FORKED = multiprocessing.get_context("forkserver")
ROOMS = ("cli.fit", "experiments.run", "experiments.bench.worker", "experiments.bench.bench", "report.plots")
FORKED.set_forkserver_preload([*(f"vprompt.{room}" for room in ROOMS), "torchmetrics"])  # this one takes two seconds


def descendants(ours):
    """All processes that one has started, and theirs: pid -> pid of the parent and the command line."""
    parents, lines = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                lines[int(entry.name)] = (entry / "cmdline").read_bytes()
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue

    def is_ours(pid):
        while pid > 1 and pid != ours:
            pid = parents.get(pid, 0)
        return pid == ours

    return {pid: (parents[pid], line) for pid, line in lines.items() if pid in parents and is_ours(pid)}


def _begin(out, err, environment):
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= environment
    import torch

    torch.set_num_threads(1)


def _command(out, err, environment, arguments, prepare):
    _begin(out, err, environment)
    from vprompt.cli.main import main

    if prepare is not None:
        prepare()
    sys.exit(main(arguments))


def _script(out, err, environment, code, arguments):
    _begin(out, err, environment)
    sys.argv = ["script", *arguments]
    sys.path.insert(0, os.path.dirname(__file__))
    exec(compile(code, "script", "exec"), {"__name__": "script"})


class _Process:
    def __init__(self, target, folder, environment, *arguments):
        self.out, self.err = folder / "printed-out", folder / "printed-err"
        self.process = FORKED.Process(target=target, args=(str(self.out), str(self.err), environment, *arguments))
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
        self.process.join()
        return self.status, *self.printed()


class Command(_Process):
    """`vprompt ARGUMENTS` in a process of its own, with one thread.

    Args:
        arguments: Of the command.
        folder: For what it prints.
        prepare: Called there before; must be a function of a module.
        environment: Variables that are set there before.
    """

    def __init__(self, *arguments, folder, prepare=None, environment=None):
        super().__init__(_command, folder, environment or {}, [*map(str, arguments)], prepare)


class Script(_Process):
    """Python code in a process of its own, with one thread; tests can be imported there.

    Args:
        code: The code.
        arguments: `sys.argv` from 1 on.
        folder: For what it prints.
        environment: Variables that are set there before.
    """

    def __init__(self, code, *arguments, folder, environment=None):
        super().__init__(_script, folder, environment or {}, code, [*map(str, arguments)])
