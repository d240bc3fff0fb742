"""What many tests share: the command in this process, and small folders of images whose colour is their class."""

import contextlib
import gc
import io
import json
import os
import random
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf

from plans import PLAN
from processes import FORKED
from vprompt.cli.main import main
from vprompt.experiments.bench import local

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what a test does must not depend on whether there is a network

COLLECTING = gc.get_threshold()
gc.disable()  # until all tests are collected: what they import makes millions of objects, which stay
COLOURS = {"blue": (40, 40, 220), "green": (40, 220, 40), "red": (220, 40, 40)}


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def document(self):
        return json.loads(self.out)


def pytest_collection_finish():
    """The garbage collector need not look again and again at the millions of objects that torch and timm brought.

    Nor so often at those that libraries bring later, which tests import: full collections took a twelfth of all time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2000, 10, 50)
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()
    gc.set_threshold(*COLLECTING)
    gc.enable()


def run_command(*arguments):
    """Runs `vprompt ARGUMENTS` in this process, as the console script does, without a terminal."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # the parser ends the process for --help and wrong usage
            status = end.code or 0
    return Outcome(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def interrupt_once(ready):
    """Sends this process Ctrl-C as soon as `ready()`, unless the block is over by then."""
    over = threading.Event()

    def watch():
        while not over.is_set():
            if ready():
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def run_with_one_thread(*arguments):
    """`run_command`, to compare with processes that `plans.environment` gives one thread each."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run_command(*arguments)
    finally:
        torch.set_num_threads(before)


def write_images(folder, colour, count, *, start=0, size=(24, 20)):
    """Writes `count` PNG files, each in a shade of its own with some noise, so that no two are equal."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        chance = random.Random(f"{colour}{number}")
        image = Image.new("RGB", size, tuple(value + chance.randint(-30, 30) for value in colour))
        for _ in range(40):
            place = chance.randrange(size[0]), chance.randrange(size[1])
            image.putpixel(place, tuple(chance.randrange(256) for _ in range(3)))
        image.save(folder / f"{number:02}.png")


def write_classes(root, count, *, start=0, colours=None):
    """Writes `count` images for every class, one folder each; returns the root."""
    for name, colour in (colours or COLOURS).items():
        write_images(root / name, colour, count, start=start)
    return root


@pytest.fixture(scope="session")
def vprompt_command():
    return run_command


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """Three classes of 10 images each, not split: 16 train, 5 val and 9 test images after the cut."""
    return write_classes(tmp_path_factory.mktemp("colours"), 10)


@pytest.fixture(scope="session")
def split_colours(tmp_path_factory):
    """Three classes, cut by hand: 12 train, 6 val and 9 test images."""
    root = tmp_path_factory.mktemp("split-colours")
    for split, count, start in (("train", 4, 0), ("val", 2, 10), ("test", 3, 20)):
        write_classes(root / split, count, start=start)
    return root


@dataclass(frozen=True)
class Trained:
    """A finished run of `vprompt fit`."""

    folder: Path
    data: Path
    options: list
    result: dict
    outcome: Outcome


@pytest.fixture(scope="session")
def trained(tmp_path_factory, colours, two_blocks):
    """A small VPT-Deep adapter, trained on `colours` and not condensed; read it, never write to it."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    options = ["--prompts", 3, "--epochs", 2, "--batch-size", 8, "--lr", 0.001, "--img-size", 32]
    options += ["--backbone", two_blocks]
    outcome = run_command("fit", colours, *options, "--out", folder, "--json")
    assert outcome.status == 0, outcome.err
    return Trained(folder, colours, options, outcome.document, outcome)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_works():
    """A suite started in the background inherits an ignored SIGINT; the tests of Ctrl-C need the usual one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def quick_workers():
    """Workers of a benchmark in this process need not import torch either; those of other processes start as ever."""
    before, local.CONTEXT = local.CONTEXT, FORKED
    yield
    local.CONTEXT = before


@pytest.fixture(scope="session")
def text(tmp_path_factory, tiny_weights):
    """The plan, on a task in VTAB's layout of 60 small images whose colour tells their class, more or less."""
    folder, chance = tmp_path_factory.mktemp("data") / "colours", random.Random(0)
    for split, count in (("train800", 24), ("val200", 12), ("test", 24)):
        lines = []
        for number in range(count):
            label = number % 3
            colour = tuple(min(255, 90 + 60 * (channel == label) + chance.randrange(90)) for channel in range(3))
            path = f"images/{split}/{number}.png"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), colour).save(folder / path)
            lines.append(f"{path} {label}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    return PLAN.replace("DATA", str(folder)).replace("WEIGHTS", tiny_weights)


@pytest.fixture
def plan_file(tmp_path, text):
    path = tmp_path / "tiny.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, text):
    """The plan, run to its end by one worker with nothing in its way."""
    out = tmp_path_factory.mktemp("undisturbed")
    (out / "tiny.toml").write_text(text)
    done = run_with_one_thread("bench", out / "tiny.toml", "--out", out / "runs", "--json")
    assert done.status == 0, done.err
    return out / "runs", done.document


@pytest.fixture(scope="session")
def two_blocks(tmp_path_factory):
    """A backbone by name, for runs in which any will do: a ViT of two blocks for images of 32 pixels."""
    folder = tmp_path_factory.mktemp("backbone") / "vit"
    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_vit", img_size=32, depth=2), str(folder), model_args={"depth": 2})
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """A file with weights of `test_vit`, which is the smallest and has none here."""
    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), path)
    return str(path)
