"""The container's recipe: all that it names is there, and its health check tells sick from well."""

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import timm
import tyro
from test_serving import Running

import vprompt
from vprompt.cli.main import commands

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def steps():
    """Instructions in order: (name, rest)."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


def only(steps, name):
    [rest] = [rest for kind, rest in steps if kind == name]
    return rest


def ignored(path):
    """Whether .dockerignore leaves a path out; the last pattern that matches decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().split():
        if fnmatch.fnmatch(path, line.removeprefix("!")):
            out = not line.startswith("!")
    return out


def test_python_and_files_and_extras_are_there(steps):
    assert {kind for kind, _ in steps} <= {
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "USER",
        "ENV",
        "EXPOSE",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    image = re.fullmatch(r"python:(3\.\d+)-slim", only(steps, "FROM"))
    least = PROJECT["requires-python"].removeprefix(">=")
    assert tuple(map(int, image[1].split("."))) >= tuple(map(int, least.split(".")))
    assert f"on Python {image[1]}" in (ROOT / "constraints.txt").read_text().splitlines()[0]  # which versions are for
    copied = []
    for rest in (rest for kind, rest in steps if kind == "COPY"):
        *sources, _ = rest.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not ignored(source), source
            copied.append(source)
    wanted = ["pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]]  # what a build reads
    assert all(any(path == one or path.startswith(one + "/") for one in copied) for path in wanted)
    [install] = [shlex.split(rest) for kind, rest in steps if kind == "RUN" and "pip install" in rest]
    assert install[install.index("--constraint") + 1] in copied
    extras = re.fullmatch(r"\.\[(.*)\]", install[-1])[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert "serve" in extras


def test_it_runs_as_nobody_and_its_command_is_one(steps):
    kinds = [kind for kind, _ in steps]
    user = only(steps, "USER")
    assert user != "root"
    made = next(rest for kind, rest in steps if kind == "RUN" and "useradd" in rest)
    assert shlex.split(made.split("&&")[0])[-1] == user
    assert kinds.index("USER") < kinds.index("ENTRYPOINT")
    assert "RUN" not in kinds[kinds.index("USER") :]
    home = only(steps, "ENV").partition("=")[2]
    assert f"mkdir {home} && chown {user} {home}" in made
    program, *arguments = json.loads(only(steps, "ENTRYPOINT")) + json.loads(only(steps, "CMD"))
    assert program in PROJECT["scripts"]
    configuration = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    command = tyro.cli(commands(arguments), args=arguments, config=configuration)
    assert (command.host, command.port, command.adapters) == ("0.0.0.0", int(only(steps, "EXPOSE")), "/adapters")


def test_the_health_check_tells_sick_from_well(steps):
    check = only(steps, "HEALTHCHECK")
    program, *arguments = json.loads(check[check.index("CMD ") + 4 :])
    assert program == "python"
    assert f"127.0.0.1:{only(steps, 'EXPOSE')}/" in arguments[-1]
    running = Running(vprompt.Bank(timm.create_model("test_vit", img_size=32)), token="secret")
    arguments[-1] = arguments[-1].replace("127.0.0.1:8000", f"127.0.0.1:{running.port}")

    def status():
        return subprocess.run([sys.executable, *arguments], capture_output=True, check=False).returncode

    try:
        assert status() == 0
        running.service.stopping = True
        assert status() != 0
    finally:
        running.close()
    assert status() != 0
