"""Runs without a plan: every result.json below a folder, whatever else lies there."""

import copy
import json

import pytest

from vprompt.experiments import report as benchmark
from vprompt.experiments.bench.collect import study_of
from vprompt.utils.errors import VPromptError

RESULT = {
    "test_accuracy": 0.5,
    "method": "vpt-deep",
    "backbone": "no_such_model",
    "seed": 0,
    "settings": {"method": "vpt-deep", "prompts": 5, "condense": None, "recipe": {"lr": None, "seed": 0}},
    "provenance": {"data": {"source": "mine", "classes": ["a", "b"], "images": {"train": 2}, "differences": []}},
}


def write(folder, name, document):
    (folder / name).mkdir()
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / name / "result.json").write_text(text)


def changed(**changes):
    """The result with other values at `a__b`."""
    found = copy.deepcopy(RESULT)
    for path, value in changes.items():
        *above, last = path.split("__")
        inner = found
        for key in above:
            inner = inner[key]
        inner[last] = value
    return found


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "[1, 2",
        "[]",
        "[" * 100_000,
        '{"a": 1}',
        changed(provenance={}),
        changed(provenance=3),
        changed(provenance__data__source=["x"]),
        changed(seed=[1]),
        changed(seed=True),
        changed(method=1),
        changed(backbone=3),
        changed(settings=[]),
    ],
)
def test_what_is_no_result_is_said_and_passed_over(tmp_path, damaged):
    write(tmp_path, "damaged", damaged)
    with pytest.raises(VPromptError, match=r"1 cannot"):
        study_of(str(tmp_path))
    write(tmp_path, "good", RESULT)
    study = study_of(str(tmp_path))
    assert [cell["result"]["name"] for cell in study["cells"]] == ["good"]
    assert "1 file that cannot be read as results: damaged/result.json." in benchmark.markdown(study)


@pytest.mark.parametrize(
    "odd",
    [
        changed(provenance__data__differences=5, provenance__data__classes=4, provenance__data__images=3),
        changed(settings__condense="x", settings__img_size="x", settings__recipe=[1]),
        changed(settings__img_size=-3, backbone="vit_base_patch16_224", test_accuracy="a"),
    ],
)
def test_odd_values_in_a_result_make_a_report_all_the_same(tmp_path, odd):
    write(tmp_path, "odd", odd)
    assert len(study_of(str(tmp_path))["cells"]) == 1
    benchmark.page(study_of(str(tmp_path)))


def test_runs_that_differ_in_a_setting_are_methods_of_their_own(tmp_path):
    for name, lr in (("a", None), ("b", 0.01), ("c", 0.01)):
        write(tmp_path, name, changed(settings__recipe__lr=lr))
    study = study_of(str(tmp_path))
    named = ["vpt-deep, 5 prompts, lr default", "vpt-deep, 5 prompts, lr 0.01", "vpt-deep, 5 prompts, lr 0.01, run 2"]
    assert [method["label"] for method in study["methods"]] == named
    benchmark.page(study)


def test_backbones_are_told_apart_and_none_stands_for_all(tmp_path):
    for name in ("one", "two"):
        write(tmp_path, name, changed(backbone=name, settings__backbone=name, provenance__data__source=name))
    study = study_of(str(tmp_path))
    assert study["backbone"] == {"name": "several (one, two)", "parameters": None, "bare_gmacs": None}
    assert [method["label"] for method in study["methods"]] == [
        "vpt-deep, 5 prompts, backbone one",
        "vpt-deep, 5 prompts, backbone two",
    ]


def test_results_of_versions_under_the_old_name_are_those_of_the_same_backbone_and_package(tmp_path):
    for name, package in (("old", "laconic"), ("new", "vprompt")):
        backbone = f"{package}_vit_tiny_patch8_64.tiny_imagenet"
        write(
            tmp_path,
            name,
            changed(
                backbone=backbone,
                settings__backbone=backbone,
                provenance__data__source=name,
                provenance__versions={package: "0.1.0", "torch": "2.9.0"},
            ),
        )
    study = study_of(str(tmp_path))
    assert study["backbone"]["name"] == "vprompt_vit_tiny_patch8_64.tiny_imagenet"
    assert study["backbone"]["bare_gmacs"] > 0
    assert [method["label"] for method in study["methods"]] == ["vpt-deep, 5 prompts"]
    assert [cell["result"]["provenance"]["versions"]["vprompt"] for cell in study["cells"]] == ["0.1.0"] * 2
    assert "laconic" not in benchmark.csv_rows(study) + benchmark.page(study)


def test_results_of_methods_without_prompts_are_called_by_no_number_of_them(tmp_path):
    write(tmp_path, "linear", changed(method="linear", settings__method="linear"))
    assert [method["label"] for method in study_of(str(tmp_path))["methods"]] == ["linear"]
