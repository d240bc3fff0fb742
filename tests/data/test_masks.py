"""Images with masks: where they lie, how masks are written, what is wrong with them, windows of training."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vprompt.data.images import UnusableImageError
from vprompt.data.masks import MaskedImages, mask_picture, pair_names, read_codes, read_mask
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.tasks import load_labelled, open_task
from vprompt.tasks.segmentation import COLOUR, IGNORED, Segmentation
from vprompt.utils.errors import DataError

SEEN = Preprocessing(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
RGB = np.array([(250, 10, 10), (10, 250, 10), (10, 10, 250), (120, 120, 120)], np.uint8)


def drawn(number, *, height=40, width=52, classes=3, blob=10):
    """A mask of blobs (H, W), in which all classes are."""
    chance = np.random.default_rng(number)
    coarse = chance.integers(classes, size=(-(-height // blob), -(-width // blob)))
    coarse.flat[:classes] = range(classes)
    return coarse.repeat(blob, 0).repeat(blob, 1)[:height, :width]


def painted(mask, number=0):
    """An image whose colour is the class, in a shade of its own."""
    return Image.fromarray(np.clip(RGB[mask].astype(int) + number % 5, 0, 255).astype(np.uint8))


def grey(mask):
    return Image.fromarray(mask.astype(np.uint8))


def write(folder, images="images", masks="masks", numbers=range(6), *, look=grey, named="{}", **drawing):
    for number in numbers:
        mask = drawn(number, **drawing)
        for kind, picture, name in (
            (images, painted(mask, number), f"{number:02}"),
            (masks, look(mask), named.format(f"{number:02}")),
        ):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            picture.save(folder / kind / f"{name}.png")
    return folder


def opened(folder, **options):
    return open_task(str(folder), SEEN, **options)


def everything(task):
    """Image name -> (pixels, mask) of all splits."""
    found = {}
    for part in (task.train, task.val, task.test):
        if part is not None:
            for row, path in enumerate(part.paths):
                pixels, masks = next(part.pairs(torch.tensor([row])))
                found[path] = pixels[0], masks[0]
    return found


def right(task, codes=range(3), **drawing):
    """All images of a task have the mask that was drawn, and it is that of their colour."""
    found = everything(task)
    for path, (pixels, mask) in found.items():
        true = drawn(int(path.rpartition("/")[2].partition(".")[0]), **drawing)
        assert mask.dtype == torch.int64
        assert np.array_equal(mask.numpy(), np.array(codes)[true])
        assert pixels.shape[1:] == mask.shape
        far = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - RGB[true]).max()
        assert far <= 4
    return len(found)


# ── where they lie ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("named", ["{}", "{}_mask", "{}-label", "{}_gt", "{}_L"])
def test_folders_of_images_and_masks(tmp_path, named):
    task = opened(write(tmp_path, named=named))
    assert task.target == Segmentation(names=("0", "1", "2"))
    assert right(task) == 6
    assert (len(task.train), len(task.val), len(task.test)) != (6, 0, 0)
    assert task.preprocessing.resize == "keep"


@pytest.mark.parametrize("target", [None, "segmentation"])
@pytest.mark.parametrize("text", ["id,camera,weather\n1,a,sun\n2,b,rain\n", "id,weather\n0,sun\n1,rain\n", ""])
def test_a_table_of_something_else_is_left_aside(tmp_path, text, target):
    (write(tmp_path) / "metadata.csv").write_text(text)
    task = opened(tmp_path, target=target)
    assert right(task) == 6
    assert any(note.startswith("Left aside: metadata.csv (") for note in task.summary.notes)


def test_of_a_table_of_classes_beside_masks_the_target_says_which_is_meant(tmp_path):
    rows = [f"images/{n:02}.png,{('sun', 'rain')[n % 2]}" for n in range(6)]
    (write(tmp_path) / "weather.csv").write_text("\n".join(["file,weather", *rows]))
    assert opened(tmp_path).target.names == ("rain", "sun")
    assert right(opened(tmp_path, target="segmentation")) == 6


@pytest.mark.parametrize("pair", [("images", "masks"), ("img", "label"), ("JPEGImages", "SegmentationClass")])
@pytest.mark.parametrize("inside", [False, True])
def test_splits_are_above_or_inside(tmp_path, pair, inside):
    for split, numbers in {"train": (0, 1, 2), "val": (3,), "test": (4, 5)}.items():
        images, masks = (f"{kind}/{split}" if inside else f"{split}/{kind}" for kind in pair)
        write(tmp_path, images, masks, numbers)
    task = opened(tmp_path)
    assert [len(part) for part in (task.train, task.val, task.test)] == [3, 1, 2]
    assert right(task) == 6
    images, split, _ = load_labelled(tmp_path, SEEN, task.target)
    assert (split, len(images)) == ("test", 2)
    both = task.train.joined(task.val)  # as where a model is trained on both
    assert right(type("Both", (), {"train": both, "val": None, "test": task.test})) == 6
    assert [*both.pairs(torch.tensor([0, 3]), seed=0, epoch=0)]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("lacks", ["images", "masks"])
def test_a_split_that_lacks_one_of_both_is_named(tmp_path, inside, lacks):
    for split, numbers in {"train": (0, 1, 2), "val": (3,), "test": (4, 5)}.items():
        write(tmp_path, *(f"{kind}/{split}" if inside else f"{split}/{kind}" for kind in ("images", "masks")), numbers)
    shutil.rmtree(tmp_path / (f"{lacks}/test" if inside else f"test/{lacks}"))
    with pytest.raises(DataError, match=r"test.*: the (image|mask) 04\.png has no (mask|image)"):
        opened(tmp_path)
    assert opened(tmp_path, skip_bad=True).test is None


def test_each_image_has_a_mask_of_its_own():
    """A mask called as an image is that image's, also where its name ends as a mask's may; none is two images'."""
    names = ["a.png", "a-mask.png", "b.png", "b_L.png"]
    pairs, problems = pair_names(names, ["a-mask.png", "a.png", "b_L.png"])
    assert pairs == {"a.png": "a.png", "a-mask.png": "a-mask.png", "b_L.png": "b_L.png"}
    assert problems == ["the image b.png has no mask"]
    pairs, problems = pair_names(["a.jpg", "a.png"], ["a_mask.png", "a_gt.png"])
    assert pairs == {"a.jpg": "a_mask.png"}
    assert problems == ["the images a.jpg and a.png have one mask, a_mask.png", "the mask a_gt.png has no image"]


def test_tables_name_image_and_mask(tmp_path):
    write(tmp_path, "photos", "truth")
    rows = [f"photos/{n:02}.png,truth/{n:02}.png,{'train' if n < 4 else 'test'}" for n in range(6)]
    (tmp_path / "all.csv").write_text("\n".join(["image,mask,split", *rows]))
    task = opened(tmp_path / "all.csv")
    assert (task.target.name, right(task), len(task.test)) == ("segmentation", 6, 2)
    (tmp_path / "all.csv").write_text("\n".join(["image,mask", *(row.rpartition(",")[0] for row in rows)]))
    assert right(opened(tmp_path / "all.csv")) == 6
    (tmp_path / "all.csv").write_text("\n".join(["image,mask,split", *rows, "photos/00.png,gone.png,train"]))
    with pytest.raises(DataError, match=r"all\.csv"):
        opened(tmp_path / "all.csv")


# ── how masks are written ────────────────────────────────────────────────────────────────────────────────────────────


def palette_png(mask):
    picture = Image.fromarray(mask.astype(np.uint8)).convert("P")
    picture.putdata(mask.astype(np.uint8).ravel().tolist())
    picture.putpalette(RGB.tobytes())
    return picture


def colours_png(mask):
    return Image.fromarray(RGB[mask])


def rgba_png(mask):
    alpha = np.full((*mask.shape, 1), 77, np.uint8)
    return Image.fromarray(np.concatenate([np.repeat(mask[..., None], 3, 2).astype(np.uint8), alpha], 2))


CODES = [COLOUR | int(r) << 16 | int(g) << 8 | int(b) for r, g, b in RGB[:3]]


@pytest.mark.parametrize(
    ("look", "classes", "codes"),
    [
        (grey, 3, ()),
        (palette_png, 3, ()),
        (rgba_png, 3, ()),
        (lambda mask: grey(255 * mask), 2, (0, 255)),
        (lambda mask: Image.fromarray(mask.astype(bool)), 2, ()),
        (lambda mask: Image.fromarray((mask * 1000 + 5).astype(np.uint16)), 3, (5, 1005, 2005)),
        (colours_png, 3, tuple(sorted(CODES))),
    ],
    ids=["index", "palette", "RGBA", "0-255", "1-bit", "16-bit", "colours"],
)
def test_masks_of_all_kinds(tmp_path, look, classes, codes):
    task = opened(write(tmp_path, look=look, classes=classes))
    assert task.target.codes == codes
    order = [sorted(CODES).index(code) for code in CODES] if look is colours_png else range(classes)
    assert right(task, order, classes=classes) == 6
    # What is predicted is written in the same codes, also where not all classes are in it.
    for mask in (torch.arange(12).view(3, 4) % classes, torch.zeros(2, 5).long(), torch.full((1, 1), classes - 1)):
        path = tmp_path / "said.png"
        mask_picture(mask, task.target).save(path)
        assert torch.equal(read_mask(path, task.target), mask)
    images, _, _ = load_labelled(tmp_path, SEEN, task.target, split="all")
    for path, mask in ((path, next(images.pairs(torch.tensor([row])))[1][0]) for row, path in enumerate(images.paths)):
        assert np.array_equal(np.array(order)[drawn(int(path[-6:-4]), classes=classes)], mask.numpy())


@pytest.mark.parametrize(
    ("file", "text", "look", "names", "codes", "ignored"),
    [
        ("classes.txt", "sky\ntree\nred car\n", grey, ("sky", "tree", "red car"), (), (255,)),
        ("classes.txt", "\ufeff0 sky\n1 tree\n2 red car\n", grey, ("sky", "tree", "red car"), (), (255,)),
        ("classes.txt", "0: sky\n\n2: car\n1: tree\n", grey, ("sky", "car", "tree"), (0, 2, 1), (255,)),
        ("classes.txt", "void\ntree\ncar\n", grey, ("tree", "car"), (1, 2), (0, 255)),
        ("classes.txt", "0 sky\n1 tree\n2 car\n255 void\n", grey, ("sky", "tree", "car"), (), (255,)),
        ("classes.txt", "sky\ntree\ncar\nghost\n,\n", grey, ("sky", "tree", "car", "ghost"), (), (255,)),
        *(
            (file, text, colours_png, ("sky", "tree", "red car"), tuple(CODES), (255,))
            for file, text in (
                ("class_dict.csv", "name,r,g,b\nsky,250,10,10\ntree,10,250,10\nred car,10,10,250\n"),
                ("label_colors.txt", "250 10 10\tsky\n10 250 10\ttree\n10 10 250\tred car\n"),
                ("labelmap.txt", "# label:color_rgb:parts\nsky:250,10,10::\ntree:10,250,10::\nred car:10,10,250::\n"),
            )
        ),
        (
            "labelmap.txt",
            "sky:250,10,10::\ntree:10,250,10::\nvoid:10,10,250::\n",
            palette_png,
            ("sky", "tree"),
            tuple(CODES[:2]),
            (255, CODES[2]),
        ),
    ],
)
def test_files_name_classes(tmp_path, file, text, look, names, codes, ignored):
    (tmp_path / file).write_text(text, "utf-8")
    task = opened(write(tmp_path, look=look))
    assert (task.target.names, task.target.codes, task.target.ignored) == (names, codes, ignored)
    first = {"sky": 0, "tree": 1, "car": 2, "red car": 2}
    present = [next((n for n in names if first.get(n) == code), None) for code in range(3)]
    assert right(task, [IGNORED if name is None else names.index(name) for name in present]) == 6


@pytest.mark.parametrize(
    ("file", "text", "names", "codes"),
    [
        ("classes.csv", "id,name\n0,sky\n1,tree\n2,red car\n", ("sky", "tree", "red car"), ()),
        ("classes.csv", "name\nsky\ntree\ncar\n", ("sky", "tree", "car"), ()),
        ("classes.csv", "sky,0\ntree,2\ncar,1\n", ("sky", "tree", "car"), (0, 2, 1)),
        ("classes.csv", '"name","id"\n"sky",0\n"tree",1\n"car",2\n', ("sky", "tree", "car"), ()),
        ("classes.txt", "sky 0\ntree 1\ncar 2\n", ("sky 0", "tree 1", "car 2"), ()),  # so they may be called
        ("classes.txt", "light pole\n2 wheeler\n3 wheeler\n", ("light pole", "2 wheeler", "3 wheeler"), ()),
        ("classes.txt", "", ("0", "1", "2"), ()),
        ("classes.txt", "soil m ²\ntree\ncar\n", ("soil m ²", "tree", "car"), ()),
    ],
)
def test_class_files_may_have_headings_and_quotes(tmp_path, file, text, names, codes):
    (tmp_path / file).write_text(text, "utf-8")
    task = opened(write(tmp_path))
    assert (task.target.names, task.target.codes) == (names, codes)


@pytest.mark.parametrize("text", ["0 sky\n0 tree\n1 car\n", "sky 0 0 0\ntree 128 0 0\ncar 128 0 0\n"])
def test_two_classes_of_one_value_are_refused(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=r"are both (0|#800000); give each a value of its own"):
        opened(write(tmp_path))


def test_a_file_that_says_otherwise_than_the_model_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "classes.txt").write_text("tree\nsky\ncar\n")
    with pytest.raises(DataError, match=r"0 is tree by the file of classes, and sky to the model"):
        load_labelled(tmp_path, SEEN, Segmentation(names=("sky", "tree", "car")), split="all")
    for names in (("Tree", "sky", "car"), ("0", "1", "2")):  # the latter are values: that model had no file
        assert len(load_labelled(tmp_path, SEEN, Segmentation(names=names), split="all")[0]) == 6


def test_values_that_a_picture_would_lose(tmp_path):
    """A GIF's numbers of colours are its writer's; deep colours and numbers of 32 or 64 bits are refused."""
    mask = 2 * drawn(0, classes=2)
    grey(mask).save(tmp_path / "a.gif")
    assert np.array_equal(read_codes(tmp_path / "a.gif"), mask)
    tifffile = pytest.importorskip("tifffile")
    for number, values in enumerate([mask.astype(np.int64), np.stack([mask] * 3, -1).astype(np.uint16)]):
        tifffile.imwrite(tmp_path / f"{number}.tif", values)
        with pytest.raises(UnusableImageError, match="is no mask of whole numbers of 8 or 16 bits"):
            read_codes(tmp_path / f"{number}.tif")
    for value in (-1, 70000):
        Image.fromarray(np.where(mask > 0, value, 0).astype(np.int32)).save(tmp_path / "c.tif")
        with pytest.raises(UnusableImageError, match=f"has pixels of {value}, and masks have values from 0 to 65535"):
            read_codes(tmp_path / "c.tif")


def test_an_image_without_a_pixel_that_counts_is_left_out(tmp_path):
    write(tmp_path)
    grey(np.full((40, 52), 255)).save(tmp_path / "masks" / "03.png")
    task = opened(tmp_path)
    assert right(task) == 5
    assert "1 image without a pixel that counts left out: images/03.png." in task.summary.notes
    images, _, notes = load_labelled(tmp_path, SEEN, task.target, split="all")
    assert len(images) == 5
    assert any("images/03.png" in note for note in notes)


@pytest.mark.parametrize("place", ["", "inner", "inner/masks"])
def test_names_of_classes_lie_beside_or_above_masks(tmp_path, place):
    write(tmp_path / "inner")
    (tmp_path / place / "classes.txt").write_text("sky\ntree\ncar\n")
    assert opened(tmp_path).target.names == ("sky", "tree", "car")


def test_two_names_are_for_0_and_255(tmp_path):
    (tmp_path / "classes.txt").write_text("road\ncrack\n")
    task = opened(write(tmp_path, look=lambda mask: grey(255 * mask), classes=2))
    assert (task.target.names, task.target.codes) == (("road", "crack"), (0, 255))
    assert "In the masks, crack is 255." in task.summary.notes


def test_pixels_of_255_count_for_nothing(tmp_path):
    def look(mask):
        return grey(np.where(mask == 2, 255, mask))

    task = opened(write(tmp_path, look=look))
    assert task.target.names == ("0", "1")
    assert right(task, [0, 1, IGNORED]) == 6
    assert torch.equal(
        task.train.labels[0],
        torch.tensor([(drawn(int(task.train.paths[0][-6:-4])) == k).sum() for k in (0, 1)]).float(),
    )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 31), (7, 130), (129, 8)])
def test_sizes_are_odd(tmp_path, height, width):
    classes = 1 if height == 1 else 2
    (tmp_path / "classes.txt").write_text("a\nb\n")
    task = opened(write(tmp_path, height=height, width=width, classes=classes))
    assert right(task, height=height, width=width, classes=classes) == 6
    for pixels, masks in task.train.with_augment("crop-flip").pairs(torch.arange(3), seed=0, epoch=1):
        assert (pixels.shape, masks.shape) == ((3, 3, 32, 32), (3, 32, 32))


def test_photos_that_lie_on_their_side_fit_upright_masks(tmp_path):
    write(tmp_path, width=30)
    for number in range(6):
        (tmp_path / f"images/{number:02}.png").unlink()
        photo = painted(drawn(number, width=30)).transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90° to the right for looking at it
        photo.save(tmp_path / f"images/{number:02}.jpg", exif=exif, quality=98, subsampling=0)
    for path, (pixels, mask) in everything(opened(tmp_path)).items():
        true = drawn(int(path[-6:-4]), width=30)
        assert np.array_equal(mask.numpy(), true)
        far = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - RGB[true]).max(2)
        assert (far < 40).mean() > 0.9


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels(tmp_path, channels):
    write(tmp_path)
    for path in (tmp_path / "images").iterdir():
        pixels = np.array(Image.open(path))
        Image.fromarray(pixels[:, :, 0] if channels == 1 else np.dstack([pixels, pixels[:, :, 0]])).save(path)
    seen = Preprocessing(size=(32, 32), mean=(0.5,) * channels, std=(0.5,) * channels)
    task = open_task(str(tmp_path), seen)
    pixels, masks = next(task.train.with_augment("crop-flip").pairs(torch.arange(2), seed=0, epoch=0))
    assert (pixels.shape, masks.shape) == ((2, channels, 32, 32), (2, 32, 32))
    assert next(task.train.pairs(torch.tensor([0])))[0].shape == (1, channels, 40, 52)


# ── what is wrong with them ──────────────────────────────────────────────────────────────────────────────────────────


def no_mask(root):
    (root / "masks/03.png").unlink()


def no_image(root):
    (root / "images/03.png").unlink()


def other_size(root):
    grey(drawn(3, width=40)).save(root / "masks/03.png")


def empty_mask(root):
    (root / "masks/03.png").write_bytes(b"")


def empty_image(root):
    (root / "images/03.png").write_bytes(b"")


def torn_mask(root):
    data = (root / "masks/03.png").read_bytes()
    (root / "masks/03.png").write_bytes(data[: len(data) // 2])


def jpeg_in_png(root):
    grey(drawn(3)).save(root / "masks/03.png", "JPEG")


def jpeg_mask(root):
    (root / "masks/03.png").unlink()
    grey(drawn(3)).save(root / "masks/03.jpg")


def out_of_range(root):
    (root / "classes.txt").write_text("a\nb\nc\n")
    mask = drawn(3)
    mask[0, 0] = 9
    grey(mask).save(root / "masks/03.png")


def fractions(root):
    (root / "masks/03.png").unlink()
    Image.fromarray(drawn(3).astype(np.float32)).save(root / "masks/03.tif")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_mask, "the image 03.png has no mask"),
        (no_image, "the mask 03.png has no image"),
        (other_size, "the mask masks/03.png has 40 x 40 pixels, and the image images/03.png 52 x 40"),
        (empty_mask, "the mask masks/03.png is"),
        (empty_image, "file images/03.png is"),
        (torn_mask, "the mask masks/03.png "),
        (jpeg_in_png, "the mask masks/03.png is a JPEG"),
        (jpeg_mask, "the mask masks/03.jpg is a JPEG"),
        (out_of_range, "the label of images/03.png has pixels of 9, and the classes are 0, 1 and 2"),
        (fractions, "the mask masks/03.tif has fractions"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_can_be_skipped(tmp_path, spoil, said):
    spoil(write(tmp_path))
    with pytest.raises(DataError) as refused:
        opened(tmp_path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "--skip-bad" in str(refused.value)
    task = opened(tmp_path, skip_bad=True)
    assert right(task) == 5
    assert any(said in note or said[0].upper() + said[1:] in note for note in task.skipped)
    known = Segmentation(names=("0", "1", "2"))
    with pytest.raises(DataError, match="03"):
        load_labelled(tmp_path, SEEN, known, split="all")
    images, _, notes = load_labelled(tmp_path, SEEN, known, split="all", skip_bad=True)
    assert len(images) == 5
    assert any("03" in note for note in notes)


def test_all_masks_as_jpeg_are_refused(tmp_path):
    write(tmp_path)
    for path in [*(tmp_path / "masks").iterdir()]:
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    with pytest.raises(DataError, match=r"masks/00\.jpg is a JPEG"):
        opened(tmp_path)


def test_smoothed_masks_have_too_many_values(tmp_path):
    with pytest.raises(DataError, match=r"\d+ different values, too many to be classes: give a file classes\.txt"):
        opened(write(tmp_path, look=lambda mask: grey(120 * mask).resize(mask.shape[::-1]).rotate(10, 2, expand=False)))


def test_one_class_is_none(tmp_path):
    with pytest.raises(DataError, match=r"has masks of 1 class only \(0\)"):
        opened(write(tmp_path, classes=1))


def test_new_masks_must_have_the_adapters_codes(tmp_path):
    known = Segmentation(names=("a", "b"), codes=(0, 255), ignored=(7,))
    write(tmp_path)
    with pytest.raises(DataError, match=r"has pixels of 1 and 2, and the classes are 0 and 255"):
        load_labelled(tmp_path, SEEN, known, split="all")


def test_images_with_masks_are_not_cropped_or_recoloured(tmp_path):
    write(tmp_path)
    with pytest.raises(DataError, match="resized by keep, fit or squash, not by crop"):
        opened(tmp_path, resize="crop")
    with pytest.raises(DataError, match="none or crop-flip"):
        opened(tmp_path).train.with_augment("light")


def test_values_of_files(tmp_path):
    for values, mode in ((np.arange(6).reshape(2, 3), np.int32), (np.arange(6).reshape(2, 3) * 9999, np.uint16)):
        Image.fromarray(values.astype(mode)).save(tmp_path / "a.tif")
        assert read_codes(tmp_path / "a.tif").tolist() == values.tolist()
    colour = np.array([[[1, 2, 3], [7, 7, 7]]], np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.png")
    assert read_codes(tmp_path / "a.png").tolist() == [[COLOUR | 0x010203, 7]]


# ── windows of training ──────────────────────────────────────────────────────────────────────────────────────────────


def agree(pixels, mask):
    """The share of pixels away from edges whose colour is that of their class, or the mean colour where it is none."""
    labels = mask.numpy()
    padded = np.pad(labels, 2, constant_values=-9)
    inner = np.ones_like(labels, bool)
    for dy in range(5):
        for dx in range(5):
            inner &= padded[dy : dy + labels.shape[0], dx : dx + labels.shape[1]] == labels
    wanted = np.where(labels[..., None] < 0, 128, RGB[labels])
    near = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - wanted).max(2) < 30
    return near[inner].mean() if inner.any() else 1.0


@pytest.mark.parametrize(("height", "width"), [(200, 150), (41, 90), (24, 30)])
@pytest.mark.parametrize("resize", ["keep", "fit", "squash"])
def test_image_and_mask_are_cut_alike(tmp_path, resize, height, width):
    task = opened(write(tmp_path, height=height, width=width, blob=height // 2), resize=resize)
    train = task.train.with_augment("crop-flip")
    for epoch in range(12):
        for pixels, masks in train.pairs(torch.arange(len(train)), seed=3, epoch=epoch):
            assert (pixels.shape[2:], masks.shape[1:], pixels.dtype) == ((32, 32), (32, 32), torch.uint8)
            for one, mask in zip(pixels, masks, strict=True):
                assert agree(one, mask) > 0.97
    for pixels, masks in train.with_augment("none").pairs(torch.arange(2), seed=3, epoch=0):
        assert min(map(agree, pixels, masks)) > 0.97


def test_windows_are_of_seed_and_epoch_and_of_all_sorts(tmp_path):
    train = opened(write(tmp_path, height=48, width=48)).train.with_augment("crop-flip")

    def windows(seed, epoch, rows=(0, 1, 2)):
        return torch.cat([masks for _, masks in train.pairs(torch.tensor(rows), seed=seed, epoch=epoch)])

    assert torch.equal(windows(0, 0), windows(0, 0))
    assert torch.equal(windows(0, 0, (2,)), windows(0, 0)[2:])  # batches have no part in it
    assert not torch.equal(windows(0, 0), windows(0, 1))
    assert not torch.equal(windows(0, 0), windows(1, 0))
    drawn_masks = torch.cat([windows(0, epoch) for epoch in range(20)])
    beside = (drawn_masks == IGNORED).flatten(1).any(1)
    assert 0 < beside.float().mean() < 1  # half its size, the image does not fill the window
    still = train.with_augment("none")
    assert all(
        torch.equal(*(next(still.pairs(torch.tensor([0]), seed=s, epoch=e))[1] for s, e in pair))
        for pair in [((0, 0), (1, 5))]
    )


def test_batches_are_of_equal_sizes_and_in_order(tmp_path):
    for number in range(6):
        write(tmp_path, numbers=[number], height=40 + 8 * (number % 2))
    part = opened(tmp_path).train
    order = torch.arange(len(part)).flip(0)
    found = [mask for _, masks in part.pairs(order) for mask in masks]
    assert len(found) == len(part)
    for mask, row in zip(found, order.tolist(), strict=True):
        number = int(part.paths[row][-6:-4])
        assert np.array_equal(mask.numpy(), drawn(number, height=40 + 8 * (number % 2)))
    image, mask = part[0]
    assert image.shape[1:] == mask.shape
    assert part.subset([1])[0][1].shape == part[1][1].shape


def test_the_fingerprint_is_of_masks_as_well(tmp_path):
    before = opened(write(tmp_path))
    fingerprint = before.fingerprint()
    assert fingerprint == opened(tmp_path).fingerprint()
    name = before.train.paths[0][-6:-4]
    mask = drawn(int(name))
    grey(np.random.default_rng(0).permutation(mask.ravel()).reshape(mask.shape)).save(tmp_path / f"masks/{name}.png")
    after = opened(tmp_path)
    assert isinstance(after.train, MaskedImages)
    assert torch.equal(before.train.labels, after.train.labels)  # as many pixels of each class
    assert fingerprint != after.fingerprint()
