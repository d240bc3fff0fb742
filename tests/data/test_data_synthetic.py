"""Rendered tasks: the same on every machine, geometry against independent measures, labels that mean what they say."""

import hashlib
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vprompt.data.preprocessing import Preprocessing
from vprompt.data.synthetic.dsprites import FACTORS, sprites
from vprompt.data.synthetic.tasks import SIZES, synthetic_names
from vprompt.data.tasks import load_labelled, open_task
from vprompt.utils.errors import DataError

NATIVE = Preprocessing(size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SQUARE, ELLIPSE, HEART = range(3)
PINNED = {
    "synthetic:dsprites-orientation": "e48aa13b0c5f9e99",
    "synthetic:dsprites-location": "8a0c3de6ca93f3d9",
    "synthetic:counting": "1b1fdbf266f93e95",
}


@pytest.fixture(scope="module", params=PINNED)
def task(request):
    return open_task(request.param, NATIVE)


@pytest.fixture(scope="module")
def location():
    return open_task("synthetic:dsprites-location", NATIVE)


@pytest.fixture(scope="module")
def counting():
    return open_task("synthetic:counting", NATIVE)


def pixels(split):
    return split.pixels(torch.arange(len(split))).permute(0, 2, 3, 1).numpy()


def parts(task):
    return [task.train, task.val, task.test]


def test_every_machine_renders_the_same(task):
    digest = hashlib.sha256()
    for part in parts(task):
        digest.update(pixels(part).tobytes() + part.labels.numpy().astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == PINNED[task.source]


def test_sizes_classes_and_names(task):
    assert [len(part) for part in parts(task)] == list(SIZES) == [800, 200, 2000]
    assert len(set(task.classes)) == len(task.classes) == (8 if "counting" in task.source else 16)
    for part in parts(task):
        assert set(part.labels.tolist()) == set(range(len(task.classes)))
    assert set(PINNED) == set(synthetic_names())
    assert task.name == task.source.removeprefix("synthetic:")


def test_no_image_is_there_twice(task):
    assert len({image.tobytes() for part in parts(task) for image in pixels(part)}) == sum(SIZES)


def test_images_are_resized_by_pillow(counting):
    small = Preprocessing(size=(28, 20), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    found = open_task("synthetic:counting", small).val.pixels(torch.tensor([7]))[0]
    expected = Image.fromarray(pixels(counting.val)[7]).resize((20, 28), Image.Resampling.BILINEAR)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_it_is_opened_by_its_name_and_evaluated_on(counting):
    assert open_task("synthetic:counting", NATIVE).fingerprint() == counting.fingerprint()
    for choice, wanted in {"auto": "test", "train": "train", "val": "val"}.items():
        images, name, skipped = load_labelled("synthetic:counting", NATIVE, counting.classes, split=choice)
        assert (name, skipped) == (wanted, ())
        assert images.fingerprint() == getattr(counting, wanted).fingerprint()
    images, name, _ = load_labelled("synthetic:counting", NATIVE, counting.classes, split="all")
    assert (len(images), name) == (3000, "all")
    with pytest.raises(DataError, match="not made for synthetic:counting"):
        load_labelled("synthetic:counting", NATIVE, counting.classes[::-1])


@pytest.mark.parametrize("spec", ["synthetic:", "synthetic:dsprites", "synthetic:Counting", "synthetic:counting "])
def test_other_names_are_refused_with_those_there_are(spec):
    with pytest.raises(DataError, match=r"There is no synthetic task .*; there are synthetic:dsprites-orientation, "):
        open_task(spec, NATIVE)


# ── sprites ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def middle(images):
    """Centres of mass (N, 2) as x and y, in pixels from the upper left corner."""
    mass = (images > 0).astype(float)
    places = np.arange(64) + 0.5
    total = mass.sum((1, 2))
    return np.stack([(mass.sum(1) * places).sum(1) / total, (mass.sum(2) * places).sum(1) / total], 1)


def random_factors(count, **fixed):
    generator = np.random.default_rng(3)
    names = ("shape", "scale", "orientation", "x", "y")
    return [
        tuple(int(fixed.get(name, generator.integers(number))) for name, number in zip(names, FACTORS, strict=True))
        for _ in range(count)
    ]


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE])
def test_sprites_lie_where_their_factors_say(shape):
    factors = random_factors(300, shape=shape)
    wanted = [[16 + 32 * x / 31, 16 + 32 * y / 31] for _, _, _, x, y in factors]
    assert np.abs(middle(sprites(factors)) - wanted).max() < 0.6  # a pixel's rounding on either side


@pytest.mark.parametrize(("shape", "area"), [(SQUARE, 19.2**2), (ELLIPSE, math.pi * 12.8 * 7.2)])
def test_areas_go_with_the_square_of_the_scale(shape, area):
    for scale in range(6):
        found = (sprites(random_factors(300, shape=shape, scale=scale)) > 0).sum((1, 2)).mean()
        assert found == pytest.approx(area * (0.5 + scale / 10) ** 2, rel=0.01)


def test_sprites_are_black_and_white_and_whole():
    images = sprites(random_factors(300))
    assert set(np.unique(images)) == {0, 255}
    assert images[:, [0, -1]].max() == images[:, :, [0, -1]].max() == 0


def test_squares_are_polygons_turned_against_the_clock():
    # Pillow's polygon, eight times as large: its own rounding of edges is then an eighth of a pixel.
    for factors in random_factors(40, shape=SQUARE):
        _, scale, orientation, x, y = factors
        angle, half = 2 * math.pi * orientation / 39, 9.6 * (0.5 + scale / 10)
        large = Image.new("L", (512, 512))
        corners = []
        for u, v in ((-half, -half), (half, -half), (half, half), (-half, half)):
            across = math.cos(angle) * u + math.sin(angle) * v
            down = -math.sin(angle) * u + math.cos(angle) * v
            corners.append((8 * (16 + 32 * x / 31 + across), 8 * (16 + 32 * y / 31 + down)))
        ImageDraw.Draw(large).polygon(corners, fill=255)
        share = np.asarray(large).reshape(64, 8, 64, 8).mean((1, 3)) / 255
        found = sprites([factors])[0] > 0
        assert found[share == 1].all()
        assert not found[share == 0].any()


def test_ellipses_lie_along_their_angle():
    for factors in random_factors(60, shape=ELLIPSE, scale=5):
        rows, columns = np.nonzero(sprites([factors])[0])
        spread = np.cov(columns, -rows)  # y upwards
        angle = 0.5 * math.atan2(2 * spread[0, 1], spread[0, 0] - spread[1, 1])
        difference = (angle - 2 * math.pi * factors[2] / 39 + math.pi / 2) % math.pi - math.pi / 2
        assert abs(math.degrees(difference)) < 4


def test_hearts_point_down_and_turn_with_their_angle():
    for orientation in range(40):
        image = sprites([(HEART, 5, orientation, 15, 15)])[0] > 0
        rows, columns = np.nonzero(image)
        across, down = columns + 0.5 - 16 - 32 * 15 / 31, rows + 0.5 - 16 - 32 * 15 / 31
        angle = 2 * math.pi * orientation / 39
        # Most of a heart lies above its middle, and its tip reaches farthest below.
        along = math.sin(angle) * across + math.cos(angle) * down
        assert along.mean() < -1
        assert abs((math.cos(angle) * across - math.sin(angle) * down)[along.argmax()]) < 1.5


def test_the_first_and_the_last_angle_are_one():
    factors = random_factors(100, orientation=0)
    turned = [(shape, scale, 39, x, y) for shape, scale, _, x, y in factors]
    same = (sprites(factors) == sprites(turned)).mean((1, 2))
    assert same.min() > 0.999


def test_locations_mean_what_their_classes_say(location):
    for part in parts(location):
        left = middle(pixels(part)[..., 0])[:, 0]
        found = (left - 16) * 31 / 32 / 2  # two places to a class; hearts lie up to 2 pixels beside their middle
        assert (np.abs(found - part.labels.numpy() - 0.25) < 1.7).all()
        assert np.corrcoef(left, part.labels.numpy())[0, 1] > 0.98


# ── counting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def objects(image):
    """What is not ground: the ground is grey and darker than any grey object."""
    return (image.max(2) != image.min(2)) | (image.max(2) > 163)


def pieces(mask, *, diagonal):
    """Number of connected pieces, by flooding."""
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)] + ([(1, 1), (1, -1), (-1, 1), (-1, -1)] if diagonal else [])
    left, count = set(zip(*np.nonzero(mask), strict=True)), 0
    while left:
        count += 1
        edge = [left.pop()]
        while edge:
            row, column = edge.pop()
            near = {(row + down, column + across) for down, across in steps} & left
            left -= near
            edge.extend(near)
    return count


def test_the_label_is_the_number_of_objects(counting):
    images, labels = pixels(counting.val), counting.val.labels.tolist()
    counts = [int(counting.classes[label].split()[0]) for label in labels]
    assert sorted(set(counts)) == list(range(3, 11))
    apart = [pieces(objects(image), diagonal=False) for image in images]
    joined = [pieces(objects(image), diagonal=True) for image in images]
    # Objects never share an edge; a thin tip may come apart from its own object, or touch another by a corner.
    assert all(number >= count for number, count in zip(apart, counts, strict=True))
    assert sum(number != count for number, count in zip(joined, counts, strict=True)) <= 2


def test_nothing_simple_tells_the_count(counting):
    labels = torch.cat([part.labels for part in parts(counting)]).numpy()
    images = np.concatenate([pixels(part) for part in parts(counting)])
    area = np.array([objects(image).mean() for image in images])
    for measure in (area, images.mean((1, 2, 3)), *images.mean((1, 2)).T):
        assert abs(np.corrcoef(measure, labels)[0, 1]) < 0.07  # 4 standard errors of 3000 independent draws
