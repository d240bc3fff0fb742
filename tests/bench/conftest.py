import json
import random
import subprocess

import pytest
from PIL import Image
from tests.bench.common import PLAN, command, environment


@pytest.fixture(scope="module")
def text(tmp_path_factory):
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
    return PLAN.replace("DATA", str(folder))


@pytest.fixture
def plan_file(tmp_path, text):
    path = tmp_path / "tiny.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, text):
    """The plan, run to its end by one worker with nothing in its way."""
    out = tmp_path_factory.mktemp("undisturbed")
    (out / "tiny.toml").write_text(text)
    done = subprocess.run(
        command(out / "tiny.toml", out / "runs", "--json"),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return out / "runs", json.loads(done.stdout)
