"""Images with other than three channels: how they are decoded, and a whole run on them."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import vprompt
from vprompt.backbones.factory import create_backbone, describe_name
from vprompt.cli import main
from vprompt.data.images import decode
from vprompt.data.preprocessing import Preprocessing
from vprompt.utils.errors import BackboneError, DataError

tifffile = pytest.importorskip("tifffile")

BANDS = np.random.default_rng(0).integers(256, size=(6, 4, 5), dtype=np.uint8)


def plain(channels, **options):
    return Preprocessing(size=(6, 4), mean=(0.5,) * channels, std=(0.5,) * channels, **options)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, photometric="minisblack", **{"planarconfig": "contig", **options})
    return buffer.getvalue()


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("make", [npy, tiff, lambda bands: tiff(bands.transpose(2, 0, 1), planarconfig="separate")])
@pytest.mark.parametrize("channels", [2, 4, 5])
def test_bands_stay_as_they_are(make, channels):
    bands = BANDS[:, :, :channels]
    found = decode(make(bands), plain(channels))
    assert np.array_equal(found.numpy(), bands.transpose(2, 0, 1))


def test_deep_bands_are_scaled_to_white():
    deep = BANDS.astype(np.uint16) * 16
    for data in (npy(deep), tiff(deep)):
        found = decode(data, plain(5, white=4095)).numpy().astype(int)
        assert np.abs(found - BANDS.transpose(2, 0, 1)).max() <= 1
    share = (BANDS / 255).astype(np.float32)
    assert np.array_equal(decode(npy(share), plain(5)).numpy(), BANDS.transpose(2, 0, 1))


def test_each_band_is_resized_like_a_grey_image():
    small = Preprocessing(size=(3, 3), mean=(0.5,) * 5, std=(0.5,) * 5, resize="crop")
    grey = Preprocessing(size=(3, 3), mean=(0.5,), std=(0.5,), resize="crop")
    found = decode(npy(BANDS), small)
    for band in range(5):
        assert torch.equal(found[band], decode(png(BANDS[:, :, band]), grey)[0])


def test_grey_and_opacity():
    rgba = BANDS[:, :, :4]
    assert np.array_equal(decode(png(rgba), plain(4)).numpy(), rgba.transpose(2, 0, 1))
    grey = Image.fromarray(BANDS[:, :, :3]).convert("L")
    assert np.array_equal(decode(png(BANDS[:, :, :3]), plain(1)).numpy()[0], np.asarray(grey))
    assert np.array_equal(decode(npy(BANDS[:, :, 0]), plain(3)).numpy(), np.stack([BANDS[:, :, 0]] * 3))
    assert np.array_equal(decode(npy(BANDS[:, :, :3]), plain(3)), decode(png(BANDS[:, :, :3]), plain(3)))


@pytest.mark.parametrize(
    ("data", "channels", "problem"),
    [
        (png(BANDS[:, :, :3]), 4, "has 3 channels, not 4"),
        (npy(BANDS), 3, "has 5 channels, not 3"),
        (tiff(BANDS), 4, "has 5 channels, not 4"),
        (tiff(BANDS), 3, "holds 5 bands"),
        (npy(BANDS[None]), 5, r"is an array \(1, 6, 4, 5\), not \(H, W\) or \(H, W, C\)"),
        (npy(np.zeros((0, 4, 5), np.uint8)), 5, "is an array"),
        (npy(BANDS)[:-1], 5, "cannot be decoded"),
        (npy(BANDS.astype(object)), 5, "cannot be decoded"),
        (npy(-BANDS.astype(np.int32)), 5, "outside 0 to 65535"),
        (npy(BANDS)[:10], 5, "cannot be decoded"),
        (npy(BANDS).replace(b"(6, 4, 5)", b"(60000, 40000, 5)"), 5, "too large|cannot be decoded"),
    ],
)
def test_what_does_not_fit_is_said(data, channels, problem):
    with pytest.raises(DataError, match=problem):
        decode(data, plain(channels), name="a.tif")


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_the_first_layer_is_timms(channels):
    model = create_backbone("bundled", img_size=16, in_chans=channels)
    rgb = create_backbone("bundled", img_size=16).patch_embed.proj.weight
    own = model.patch_embed.proj.weight
    if channels == 1:
        torch.testing.assert_close(own, rgb.sum(1, keepdim=True), rtol=1e-3, atol=1e-3)
    else:
        torch.testing.assert_close(own, torch.cat([rgb, rgb], 1)[:, :channels] * 3 / channels, rtol=1e-3, atol=1e-3)
    assert describe_name("bundled", in_chans=channels).preprocessing.shape == (channels, 64, 64)
    with pytest.raises(BackboneError, match="for RGB, not for 4 channels"):
        create_backbone("bundled", in_chans=4, weights="nowhere.safetensors")


def test_a_run_on_bands(two_blocks, tmp_path, capsys):
    lines = ["image,label"]
    for number in range(30):
        bands = np.random.default_rng(number).integers(60, size=(20, 20, 5), dtype=np.uint16)
        bands[:, :, 3 + number % 2] += 900
        name = f"{number}.{('npy', 'tif')[number % 2]}"
        (tmp_path / name).write_bytes((npy, tiff)[number % 2](bands))
        lines.append(f"{name},{('crop', 'forest')[number % 2]}")
    (tmp_path / "fields.csv").write_text("\n".join(lines))
    fit = ["fit", str(tmp_path), "--epochs", "2", "--prompts", "2", "--img-size", "16", "--backbone", two_blocks]
    assert main([*fit, "--in-chans", "5", "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["settings"]["in_chans"] == 5
    assert len(result["provenance"]["preprocessing"]["mean"]) == 5
    assert result["provenance"]["preprocessing"]["white"] == 1023
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "out"), str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == result["test_accuracy"]
    model = vprompt.load(tmp_path / "out")
    paths = [str(tmp_path / "0.npy"), str(tmp_path / "1.tif")]
    found = model.fold().predict(paths)
    assert torch.allclose(found.probabilities, model.predict(paths).probabilities, atol=1e-4)
    exported = vprompt.export(model.fold(), tmp_path / "fields.pt2")
    images = torch.randn(2, *model.preprocessing.shape)
    assert torch.allclose(exported(images), model(images), atol=1e-3)
    assert main([*fit, "--out", str(tmp_path / "rgb")]) == 1
    assert "fields.csv, line 2: file 0.npy has 5 channels, not 3" in capsys.readouterr().err
