"""Segmentation on the command line: what goes wrong is one sentence, what goes right is read back."""

import json

import numpy as np
import pytest
from PIL import Image

from conftest import run_command

FAST = ["--backbone", "bundled", "--img-size", "32", "--epochs", "1", "--batch-size", "8", "--method", "linear"]


def draw(folder, names=("ground", "square"), number=12, ending="png", values=(0, 1), masks="masks"):
    """Noise with a bright square each, and where it is; some pixels count for nothing."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / masks).mkdir()
    for index in range(number):
        image, mask = generator.integers(0, 120, (40, 53, 3), np.uint8), np.full((40, 53), values[0], np.uint8)
        top, left = generator.integers(0, 24, 2)
        image[top : top + 16, left : left + 16] += 120
        mask[top : top + 16, left : left + 16] = values[1]
        Image.fromarray(image).save(folder / "images" / f"i{index}.png")
        Image.fromarray(mask).save(folder / masks / f"i{index}.{ending}")
    if names:
        (folder / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmentation")
    run = run_command("fit", draw(folder / "squares"), *FAST, "--out", folder / "run")
    assert run.status == 0, run.err
    return folder, run


def refused(folder, *options):
    run = run_command("fit", folder, *FAST, *options, "--out", folder.parent / "refused")
    assert run.status != 0
    assert "Traceback" not in run.err
    return run.err.strip().splitlines()[-1]


def test_figures_are_called_by_their_names(trained):
    folder, run = trained
    assert "val mean IoU" in run.err
    page = (folder / "run" / "report.html").read_text("utf-8")
    assert "mean IoU" in page
    assert "mean iou" not in page + run.err + run.out


def test_masks_are_written_in_their_own_size_and_values(trained):
    folder, _ = trained
    image = folder / "squares" / "images" / "i0.png"
    run = run_command("predict", folder / "run", image, "--out", folder / "masks", "--json")
    (answer,) = json.loads(run.out)
    said = np.repeat(*np.array(answer["runs"]).T).reshape(answer["size"])
    assert said.shape == (40, 53)
    assert np.array_equal(said, np.asarray(Image.open(folder / "masks" / "i0.png")))


def test_masks_do_not_replace_images(trained, tmp_path):
    folder, _ = trained
    image = tmp_path / "i0.png"
    image.write_bytes((folder / "squares" / "images" / "i0.png").read_bytes())
    before = image.read_bytes()
    run = run_command("predict", folder / "run", tmp_path, "--out", tmp_path)
    assert run.status != 0
    assert "holds images to predict; give another folder for their masks" in run.err
    assert image.read_bytes() == before


def test_jpeg_masks_are_no_classes(tmp_path):
    """Neither all of them, nor one among others; and without them nothing is left."""
    folder = draw(tmp_path / "all", ending="jpg", values=(0, 255))
    assert "the mask masks/i0.jpg is a JPEG, which changes values" in refused(folder)
    assert f"{folder} has no image to learn from with a mask that can be used." in refused(folder, "--skip-bad")
    (folder / "classes.txt").unlink()
    assert f"{folder} has no image to learn from with a mask that can be used." in refused(folder, "--skip-bad")
    mixed = draw(tmp_path / "mixed")
    (mixed / "masks" / "i3.png").unlink()
    Image.new("L", (53, 40)).save(mixed / "masks" / "i3.jpg")
    assert "the mask masks/i3.jpg is a JPEG" in refused(mixed)


@pytest.mark.parametrize("split", ["", "train"])
def test_an_image_without_a_mask_is_named_with_its_folder(tmp_path, split):
    drawn = draw(tmp_path / "data" / split)
    (drawn / "masks" / "i4.png").unlink()
    assert f"{drawn / 'images'}: the image i4.png has no mask; fix it" in refused(tmp_path / "data")


def test_pixels_are_not_calibrated(trained):
    folder, _ = trained
    assert "no probabilities of images to calibrate; leave out --calibrate." in refused(
        folder / "squares", "--calibrate"
    )


def test_a_comparison_counts_whole_images_and_has_its_title_alone(trained):
    folder, _ = trained
    where = ["--methods", "linear", "--seeds", "2", "--out", folder / "compared"]
    run = run_command("compare", folder / "squares", *FAST[:-2], *where)
    assert run.status == 0, run.err
    title, blank, second, *_ = run.out.splitlines()
    assert title.endswith("2 seeds")
    assert not blank
    assert second == "Mean IoU: 2 images"
