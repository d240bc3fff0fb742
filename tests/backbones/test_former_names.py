"""The bundled backbone under the name that adapters saved before the library was renamed know it by."""

import json
import warnings

import torch

import vprompt
from vprompt.backbones.bundled import BUNDLED_BACKBONE, FORMER_NAMES
from vprompt.backbones.factory import can_create, create_backbone, describe_name
from vprompt.backbones.info import describe, fingerprint

FORMER = "laconic_vit_tiny_patch8_64.tiny_imagenet"


def test_the_former_name_makes_the_same_backbone_silently():
    assert can_create(FORMER)
    assert can_create(FORMER.partition(".")[0])
    assert not can_create("laconic_vit_tiny_patch8_640")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        former = create_backbone(FORMER, img_size=32)
    assert fingerprint(former) == fingerprint(create_backbone(BUNDLED_BACKBONE, img_size=32))
    assert describe(former).name == describe_name(FORMER).name == BUNDLED_BACKBONE
    assert all(can_create(name) for name in FORMER_NAMES.values())


def test_an_adapter_saved_under_the_former_name_loads(tmp_path):
    model = vprompt.attach(BUNDLED_BACKBONE, vprompt.VPT(2), num_classes=3, head_init="paper", img_size=32).eval()
    model.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["checksum"]
    config["backbone"]["name"] = FORMER
    file.write_text(json.dumps(config))
    images = torch.randn(2, 3, 32, 32)
    loaded = vprompt.load(tmp_path / "adapter")
    assert torch.equal(loaded(images), model(images))
    assert loaded.info.name == BUNDLED_BACKBONE
