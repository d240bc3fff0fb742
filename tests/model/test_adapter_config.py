"""No content of adapter_config.json gives anything but a model or a sentence."""

import copy
import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from test_adapter import backbone, config_of, edit, folder, model_with, pristine, refused, some_images

import vprompt
from vprompt.model.config import FORMAT_VERSION, read_config, write_config
from vprompt.model.save import save_adapter
from vprompt.utils.errors import AdapterError

__all__ = ["backbone", "folder", "pristine"]  # fixtures

JUNK = [
    None,
    [],
    {},
    "x",
    "",
    -1,
    0,
    True,
    1.5,
    1e99,
    10**30,
    [[[]]],
    {"a": {"b": [None]}},
    [1, "x"],
    ["\udcff"],
    [-1] * 6,
]
ABSENT = object()


def paths(document, at=()):
    """The place of every value in nested JSON data."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in list(items)[:20] if at != ("condensation", "scores") else list(items)[:1]:
        yield (*at, key)
        yield from paths(value, (*at, key))


def changed(document, path, value):
    document = copy.deepcopy(document)
    *parents, last = path
    holder = document
    for key in parents:
        holder = holder[key]
    if value is ABSENT:
        del holder[last]
    else:
        holder[last] = value
    return document


@pytest.mark.filterwarnings("ignore:.*does not know")
def test_every_value_replaced_by_junk(pristine, folder, backbone):
    document = config_of(pristine)
    expected = vprompt.load(pristine, backbone)(some_images())
    path = folder / "adapter_config.json"
    outcomes = {True: 0, False: 0}
    for place in paths(document):
        for junk in [ABSENT, *JUNK]:
            text = json.dumps(changed(document, place, junk))
            try:
                read_config(text, str(path))
            except AdapterError as error:
                assert str(path) in str(error)  # noqa: PT017 - some of them load
                assert len(str(error)) < 600  # noqa: PT017
                outcomes[False] += 1
                continue
            path.write_text(text)
            try:
                assert torch.equal(vprompt.load(folder, backbone)(some_images()), expected)
                outcomes[True] += 1
            except AdapterError:
                outcomes[False] += 1
    assert outcomes[True] > 50
    assert outcomes[False] > 1000


@pytest.mark.parametrize("place", ["/".join(map(str, p)) for p in [("backbone",), ("backbone", "name"), ("classes",),
    ("condensation", "kept"), ("method", "name"), ("method", "num_prompts"), ("preprocessing", "resize"), ("recipe",),
    ("tensors_sha256",), ("format_version",), ("prompt_counts",)]])  # fmt: skip
def test_a_missing_key_is_named(pristine, place):
    document = changed(config_of(pristine), place.split("/"), ABSENT)
    name = place.replace("/", ".")
    with pytest.raises(AdapterError, match=f"'{name}'|method None"):
        read_config(json.dumps(document), "here")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.filterwarnings("ignore:.*does not know")
@settings(max_examples=150, deadline=None)
@given(data=st.data(), junk=json_values)
def test_random_values_anywhere(pristine, data, junk):
    document = config_of(pristine)
    place = data.draw(st.sampled_from(list(paths(document))))
    text = json.dumps(changed(document, place, junk))
    try:
        config = read_config(text, "here")
    except AdapterError:
        return
    assert read_config(write_config(config), "here") == config


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 50_000,
     b'{"format_version": NaN}',
     b'{"format_version": 1e999}', b'{"format_version": ' + b"9" * 5000 + b"}", b"\x80\x04\x95", b"{}", b"\0" * 40],
)  # fmt: skip
def test_text_that_is_no_configuration(folder, backbone, text):
    (folder / "adapter_config.json").write_bytes(text)
    assert len(refused("adapter_config.json", folder, backbone)) < 600


def test_a_truncated_configuration(folder, backbone):
    path = folder / "adapter_config.json"
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 29):
        path.write_bytes(whole[:length])
        refused("the text is not valid JSON", folder, backbone)


def test_a_newer_format(folder, backbone):
    edit(folder, format_version=FORMAT_VERSION + 1, method={"name": "from-the-future"})
    refused(f"format version {FORMAT_VERSION + 1}.*upgrade vprompt", folder, backbone)


def vpt(**changes):
    return {"name": "vpt-deep", "num_prompts": 4, "depth": "deep", "dropout": None, **changes}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": {"name": "magic"}}, "method 'magic' cannot be made.*vpt-deep"),
        ({"method": vpt(name="vpt-shallow")}, "those of 'vpt-deep'"),
        ({"method": {"name": "linear"}}, "prompts in blocks where the method linear has none"),
        ({"method": vpt(name="vpt-shallow", depth="shallow")}, "vpt-shallow has none"),
        ({"method": vpt(num_prompts=0)}, "at least one prompt"),
        ({"method": vpt(num_prompts="4")}, "cannot be made"),
        ({"method": vpt(num_prompts=2.5)}, "a whole number, not 2.5"),
        ({"recipe": {"epochs": -1}}, "'recipe' cannot be: .*epochs must be at least 0"),
        ({"recipe": {"optimizer": "adam"}}, "'recipe.optimizer' should be 'adamw' or 'sgd', not 'adam'"),
        ({"classes": ["ant", "bee"]}, "2 names in 'classes' for 3 classes"),
        ({"classes": ["ant", "bee", 3]}, r"'classes'\[2\] should be text, not 3"),
        ({"num_classes": 4, "classes": None}, "'head.weight' in .*shape 3×64, not 4×64"),
        ({"num_classes": True}, "'num_classes' should be a whole number, not True"),
        ({"prompt_counts": [4, 0, 3, 1, 0]}, "for each of the 6 blocks"),
        ({"prompt_counts": [4, 0, 3, 1, 0, 3]}, "'prompts.5' in .*shape 2×64, not 3×64"),
        ({"prompt_counts": [4, 0, 3, 1, 0, 0]}, "has a tensor 'prompts.5'"),
        ({"prompt_counts": [4, 1, 3, 1, 0, 2]}, "lacks the tensor 'prompts.1'"),
        ({"widths": [64] * 5 + [65]}, "block 5 is 65 wide there, 64 here"),
        ({"widths": [64, 65] + [64] * 4}, "block 1 is 65 wide there, 64 here"),
        ({"widths": [64] * 7, "prompt_counts": [4, 0, 3, 1, 0, 2, 0], "condensation": None}, "7 blocks there, 6 here"),
        ({"tensors_sha256": "f" * 64}, "is damaged, or is not the file.*ffffffffffff"),
        ({"tensors_sha256": "F" * 64}, "64 hex digits"),
        ({"format_version": 0}, "'format_version' should be at least 1"),
        ({"format_version": "1"}, "'format_version' should be a whole number, not '1'"),
    ],
)  # fmt: skip
def test_values_that_cannot_be(folder, backbone, changes, match):
    edit(folder, **changes)
    refused(match, folder, backbone)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"mean": [0.5', '"mean": [1e999', r"'preprocessing.mean'\[0\] should be a finite number, not inf"),
        ('"seed": 0', '"seed": ' + "9" * 30, "'recipe.seed' should be a whole number, not 9"),
        ('"lr": 0.5', '"lr": ' + "9" * 400, "'recipe.lr' should be a finite number or 'auto', not 9"),
        ('"lr": 0.5', '"lr": NaN', "NaN is not a JSON number"),
        ('"std": [0.5', '"std": [0', "'preprocessing' cannot be: 'std' is above 0"),
    ],
)
def test_numbers_that_cannot_be(pristine, old, new, match):
    text = json.dumps(config_of(pristine))
    assert old in text
    with pytest.raises(AdapterError, match=match):
        read_config(text.replace(old, new), "here")


def test_unknown_keys_are_a_warning(folder, backbone):
    document = config_of(folder)
    for name in ("", "method", "backbone", "preprocessing", "condensation", "recipe"):
        (document[name] if name else document)["from_tomorrow"] = {"x": 1}
    (folder / "adapter_config.json").write_text(json.dumps(document))
    with pytest.warns(UserWarning, match="does not know") as caught:
        model = vprompt.load(folder, backbone)
    names = [
        "from_tomorrow",
        *(f"{n}.from_tomorrow" for n in ("backbone", "condensation", "method", "preprocessing", "recipe")),
    ]
    assert [str(w.message).split("know: ")[1] for w in caught] == [
        ", ".join(f"'{n}'" for n in sorted(names)) + ". They are ignored."
    ]
    assert model.recipe == vprompt.Recipe(epochs=3, lr=0.5, optimizer="sgd")


def test_a_recipe_without_newer_keys_takes_their_defaults(folder, backbone):
    edit(folder, recipe={"epochs": 5})
    assert vprompt.load(folder, backbone).recipe == vprompt.Recipe(epochs=5)


def test_the_text_is_sorted_and_readable(pristine):
    text = (pristine / "adapter_config.json").read_text(encoding="utf-8")
    document = json.loads(text)
    assert list(document) == sorted(document)
    assert '"prompt_counts": [4, 0, 3, 1, 0, 2]' in text
    assert document["method"] == {
        "name": "vpt-deep",
        "num_prompts": 4,
        "depth": "deep",
        "dropout": None,
        "init": "random",
    }
    assert write_config(read_config(text, "here")) == text


def test_the_card_is_one_the_hub_accepts(pristine):
    text = (pristine / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "vprompt"
    assert front["base_model"] == "timm/test_vit.r160_in1k"
    assert "vpt-deep" in front["tags"]
    assert ModelCard(text).data.library_name == "vprompt"
    assert "| Block | 0 | 1 | 2 | 3 | 4 | 5 |" in text
    assert "| Prompts | 4 | 0 | 3 | 1 | 0 | 2 |" in text
    assert "vprompt.load(" in text
    assert "| 1 | bee |" in text


def test_a_name_of_a_backbone_cannot_break_the_card(backbone, tmp_path):
    model = model_with(backbone)
    model.info = type(model.info)(**{**vars(model.info), "name": 'x"\n---\n<b>: [evil]'})
    kept, backbone.pretrained_cfg = backbone.pretrained_cfg, {}
    try:
        save_adapter(model, tmp_path)
    finally:
        backbone.pretrained_cfg = kept
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("\n---\n")[0])["base_model"] == model.info.name
    assert "<b>" not in text.split("\n---\n", 1)[1]
    assert vprompt.load(tmp_path, backbone).prompt_counts == [4] * 6
