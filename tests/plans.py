"""A tiny plan on a tiny task, run as a user would run it, and what its tests look at."""

import os
import subprocess
from pathlib import Path

from vprompt.experiments.bench.store import open_store

HEAD = """
title = "tiny"
tasks = ["DATA"]
seeds = 1
[settings]
backbone = "test_vit"
weights = "WEIGHTS"
img_size = 32
epochs = 4
batch_size = 8
prompts = 4
"""

PLAN = f"""{HEAD}
[[methods]]
label = "Linear"
method = "linear"
[[methods]]
label = "VPT"
method = "vpt-deep"
[[methods]]
label = "PC {{condense%}}"
method = "vpt-deep"
condense = [0.25, 0.5]
fine_tune_epochs = 1
[[methods]]
label = "E2VPT"
method = "e2vpt"
kv_prompts = 2
prune_tokens = 0.5
prune_segments = 0.25
[search]
rungs = [0.25]
[search.space]
lr = [0.02, 0.005]
"""


TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
"""Variables of the second of two processes."""


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def results(out):
    """Every result with the moment it was finished, all of them whole."""
    store = open_store(str(out))
    found = {name: store.result(name) for name in store.finished()}
    assert None not in found.values()
    return found


FIGURES = ("test_accuracy", "val_accuracy", "val_loss", "prompt_counts", "learned_params", "epochs")


def figures(found):
    return {name: [document.get(key) for key in FIGURES] for name, document in found.items()}


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def workers(pid):
    """The worker processes of a driver: not the helper that multiprocessing keeps beside them."""
    commands = {}
    for child in children(pid):
        try:
            commands[child] = Path(f"/proc/{child}/cmdline").read_text()
        except OSError:
            continue
    return [child for child, text in commands.items() if "spawn_main" in text]
