import hashlib
import importlib
import io
import json
import math
import os
import shutil
import signal
import struct
import sys
import tarfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import originals
from processes import Command
from vprompt.data.prepare.contents import Item, draw
from vprompt.data.prepare.prepare import prepare
from vprompt.data.prepare.registry import RECIPES, recipe_of
from vprompt.utils.errors import DataError, VPromptError


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def made(spec, source, root, **options):
    done = prepare(spec, source=source, root=root, **{"accept_changed": True, **options})
    return Path(done.folder), done


def vtab_list(folder, name):
    rows = [line.rsplit(" ", 1) for line in (folder / name).read_text().splitlines()]
    return [((folder / path).read_bytes(), int(label), path) for path, label in rows]


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def check_layout(folder):
    """What holds for every prepared task of VTAB; returns its images by part."""
    train, val = vtab_list(folder, "train800.txt"), vtab_list(folder, "val200.txt")
    test = vtab_list(folder, "test.txt")
    assert (len(train), len(val)) == (800, 200)
    assert vtab_list(folder, "train800val200.txt") == train + val
    for part, rows in (("train", train), ("val", val), ("test", test)):
        stems = [path.rsplit(".", 1)[0] for _, _, path in rows]
        assert stems == [f"images/{part}/{n:06d}" for n in range(len(rows))]
    classes = (folder / "classes.txt").read_text().splitlines()
    assert {label for _, label, _ in train + val + test} <= set(range(len(classes)))
    check_hashes(folder)
    return {"train": train, "val": val, "test": test}


def check_hashes(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(manifest) == there - {"manifest.json", "source.json"}
    for name, digest in manifest.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def by_label(rows, key=lambda data: data):
    found = {}
    for data, label, _ in rows:
        found.setdefault(label, []).append(key(data))
    return found


def of(truth, part):
    return {label: images for (where, label), images in truth.items() if where == part}


# ── what comes out is what went in ───────────────────────────────────────────────────────────────────────────────────


def test_cifar_pixels_and_labels(source, tmp_path):
    truth = originals.cifar(source)
    parts = check_layout(made("vtab:cifar", source, tmp_path / "root")[0])

    def raw(data):
        return pixels(data).tobytes()

    test = by_label(parts["test"], raw)
    assert {label: set(images) for label, images in test.items()} == of(truth, "test")
    seen = by_label(parts["train"] + parts["val"], raw)
    assert all(set(images) <= of(truth, "train")[label] for label, images in seen.items())
    assert sum(len(set(images)) for images in seen.values()) == 1000


@pytest.mark.parametrize("copy", ["archive", "torchvision"])
def test_dtd_keeps_bytes_and_the_official_parts(copy, source, tmp_path):
    if copy == "archive":
        truth = originals.dtd(source)
    else:
        members, truth = originals.dtd_members()
        originals.unpacked(source / "dtd", members)
    folder, done = made("vtab:dtd", source, tmp_path / "root")
    parts = check_layout(folder)
    for part in ("train", "val"):
        found = by_label(parts[part])
        assert all(set(images) <= of(truth, part)[label] for label, images in found.items())
        # Both classes have equally many images, so they must be drawn equally often.
        assert len({len(set(images)) for images in found.values()}) == 1
    assert {label: set(images) for label, images in by_label(parts["test"]).items()} == of(truth, "test")
    assert (folder / "classes.txt").read_text() == "banded\nzigzagged\n"
    assert "not comparable" in done.note


def test_the_same_images_from_the_archive_and_from_an_unpacked_copy(source, tmp_path):
    members, _ = originals.dtd_members()
    (tmp_path / "plain").mkdir()
    originals.tar(source / "dtd-r1.0.1.tar.gz", dict(reversed(members.items())))
    originals.unpacked(tmp_path / "plain", members)
    one = made("vtab:dtd", source, tmp_path / "one")[0]
    two = made("vtab:dtd", tmp_path / "plain", tmp_path / "two")[0]
    assert (one / "manifest.json").read_text() == (two / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("spec", "build"), [("vtab:eurosat", originals.eurosat), ("vtab:resisc45", originals.resisc45)]
)
def test_a_fifth_for_testing(spec, build, source, tmp_path):
    build(source)
    parts = check_layout(made(spec, source, tmp_path / "root")[0])
    assert len(parts["test"]) == 3 * 450 // 5
    assert Counter(label for _, label, _ in parts["test"]) == {0: 90, 1: 90, 2: 90}
    used = [data for rows in parts.values() for data, _, _ in rows]
    assert len(set(used)) == len(used)
    for data, label, _ in parts["train"] + parts["test"]:
        assert label * 10**5 < int(data[6:14]) <= label * 10**5 + 450


def test_caltech_within_its_outer_archive(source, tmp_path):
    originals.caltech101(source)
    folder = made("vtab:caltech101", source, tmp_path / "root")[0]
    parts = check_layout(folder)
    assert Counter(label for _, label, _ in parts["test"]) == dict.fromkeys(range(40), 4)
    assert (folder / "classes.txt").read_text().splitlines()[:3] == ["accordion", "BACKGROUND_Google", "Motorbikes"]
    for data, label, _ in parts["train"]:
        assert int(data[6:14]) // 10**5 == label


def test_pets(source, tmp_path):
    truth = originals.pets(source)
    folder = made("vtab:oxford_iiit_pet", source, tmp_path / "root")[0]
    parts = check_layout(folder)
    assert {label: set(images) for label, images in by_label(parts["test"]).items()} == of(truth, "test")
    assert (folder / "classes.txt").read_text().split() == ["Abyssinian", "great_pyrenees", "yorkshire_terrier"]


def test_sun_other_formats_stay_and_the_damaged_image_stays_out(source, tmp_path):
    originals.sun397(source)
    folder = made("vtab:sun397", source, tmp_path / "root")[0]
    parts = check_layout(folder)
    assert len(parts["test"]) == 270
    everything = [row for rows in parts.values() for row in rows]
    assert all(data != b"damaged" for data, _, _ in everything)
    assert (folder / "classes.txt").read_text().split() == ["abbey", "church/outdoor", "zoo"]
    assert all(path.endswith(".jpg") for _, _, path in everything)
    gifs = [data for data, _, _ in everything if data.startswith(b"GIF")]
    assert gifs in ([], [originals.picture(1, "GIF")])


@pytest.mark.parametrize("kind", ["count", "dist"])
def test_clevr(kind, source, tmp_path):
    truth = originals.clevr(source)[kind]
    parts = check_layout(made(f"vtab:clevr_{kind}", source, tmp_path / "root")[0])
    assert {label: set(images) for label, images in by_label(parts["test"]).items()} == of(truth, "test")


def test_kitti_cuts_drives_as_published(source, tmp_path):
    truth = originals.kitti(source)
    parts = check_layout(made("vtab:kitti", source, tmp_path / "root")[0])
    drives = {part: {truth[data][1] for data, _, _ in rows} for part, rows in parts.items()}
    for rows in parts.values():
        assert all(truth[data][0] == label for data, label, _ in rows)
    assert {len(drives["test"]), len(drives["val"])} == {3}
    assert not drives["test"] & drives["val"]
    assert not drives["train"] & (drives["test"] | drives["val"])
    # The definition: NumPy's global generator with this seed, on sorted names of drives.
    state = np.random.get_state()
    np.random.seed(123)
    names = [f"2011_09_26_drive_{n:04d}_sync" for n in range(30)]
    test = set(np.random.choice(names, 3, replace=False))
    np.random.set_state(state)
    assert {f"2011_09_26_drive_{n:04d}_sync" for n in drives["test"]} == test
    assert len(parts["test"]) == 210


@pytest.mark.parametrize(("task", "column", "values"), [("dsprites_loc", 4, 32), ("dsprites_ori", 3, 40)])
def test_dsprites(task, column, values, source, tmp_path):
    grid, images = originals.dsprites(source)
    parts = check_layout(made(f"vtab:{task}", source, tmp_path / "root")[0])
    rows = {(images[row] * 255).tobytes(): row for row in range(len(grid))}
    assert len(rows) == len(grid)
    assert len(parts["test"]) == 128
    assert Counter(label for _, label, _ in parts["test"]).keys() == set(range(16))
    for data, label, _ in [*parts["train"], *parts["val"], *parts["test"]]:
        # VTAB divides by 32 / 16 or 40 / 16 in floating point and rounds down.
        assert math.floor(grid[rows[pixels(data).tobytes()]][column] / (values / 16)) == label


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("task", "which"), [("smallnorb_azi", 1), ("smallnorb_ele", 2)])
def test_smallnorb(task, which, packed, source, tmp_path):
    truth = originals.smallnorb(source, packed=packed)
    parts = check_layout(made(f"vtab:{task}", source, tmp_path / "root")[0])
    assert len(parts["test"]) == 505
    for part, rows in parts.items():
        for data, label, _ in rows:
            found = truth[pixels(data).tobytes()]
            assert found[which] == label
            assert found[0] == ("train" if part == "train" else "test")
    assert not {d for d, _, _ in parts["val"]} & {d for d, _, _ in parts["test"]}


@pytest.mark.parametrize(
    ("spec", "archive", "top", "ids"),
    [
        ("fgvc:cub", "CUB_200_2011.tgz", "CUB_200_2011", [1, 2, 3]),
        ("fgvc:nabirds", "nabirds.tar.gz", "nabirds", ["0817", "0295", "1003"]),
    ],
)
def test_birds(spec, archive, top, ids, source, tmp_path):
    truth = originals.birds(source, archive, top, ids)
    folder, done = made(spec, source, tmp_path / "root")
    check_hashes(folder)
    assert folder.name == top
    order = sorted(range(3), key=lambda n: int(ids[n]))
    listed = {part: json.loads((folder / f"{part}.json").read_text()) for part in ("train", "val", "test")}
    assert {part: len(names) for part, names in listed.items()} == {"train": 54, "val": 6, "test": 30} == done.images
    for part, names in listed.items():
        for name, label in names.items():
            old, training, data = truth[name]
            assert order[label] == old
            assert training == (part != "test")
            assert (folder / "images" / name).read_bytes() == data
    assert (folder / "classes.txt").read_text().splitlines() == [f"Bird {n} (Male)" for n in order]


# ── those that need SciPy or h5py ────────────────────────────────────────────────────────────────────────────────────


def test_svhn(source, tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    rng = np.random.default_rng(4)
    truth = {}
    for part, count in (("train", 1010), ("test", 25)):
        images = rng.integers(0, 256, (4, 4, 3, count), np.uint8)
        labels = np.arange(count) % 10 + 1
        savemat(source / f"{part}_32x32.mat", {"X": images, "y": labels[:, None].astype(np.uint8)})
        truth.update({images[..., n].tobytes(): (part, labels[n] % 10) for n in range(count)})
    parts = check_layout(made("vtab:svhn", source, tmp_path / "root")[0])
    assert len(parts["test"]) == 25
    for part, rows in parts.items():
        for data, label, _ in rows:
            assert truth[pixels(data).tobytes()] == ("test" if part == "test" else "train", label)


def flowers(source):
    savemat = pytest.importorskip("scipy.io").savemat
    count = 2140
    numbers = np.random.default_rng(5).permutation(count) + 1
    labels = np.arange(count) % 102 + 1
    savemat(source / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    parts = {"trnid": numbers[:1020], "valid": numbers[1020:2040], "tstid": numbers[2040:]}
    savemat(source / "setid.mat", {name: chosen[None].astype(np.uint16) for name, chosen in parts.items()})
    images = {f"jpg/image_{n:05d}.jpg": originals.jpeg(n) for n in range(1, count + 1)}
    originals.tar(source / "102flowers.tgz", images)
    return {
        part: {int(n): int(labels[n - 1]) - 1 for n in parts[key]}
        for part, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
    }


def test_flowers_in_both_layouts(source, tmp_path):
    truth = flowers(source)
    folder = made("vtab:oxford_flowers102", source, tmp_path / "vtab")[0]
    for part, rows in check_layout(folder).items():
        for data, label, _ in rows:
            assert truth[part][int(data[6:14])] == label
    assert (folder / "classes.txt").read_text().splitlines()[72] == "water lily"
    folder, done = made("fgvc:flowers", source, tmp_path / "fgvc")
    assert done.note == ""
    for part, wanted in truth.items():
        names = {f"jpg/image_{n:05d}.jpg": label for n, label in wanted.items()}
        assert json.loads((folder / f"{part}.json").read_text()) == names
        assert all((folder / name).read_bytes() == originals.jpeg(int(name[10:15])) for name in names)


def test_patch_camelyon(source, tmp_path):
    h5py = pytest.importorskip("h5py")
    truth = {}
    rng = np.random.default_rng(6)
    for part, name, count in (("train", "train", 900), ("val", "valid", 300), ("test", "test", 300)):
        images = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
        labels = rng.integers(0, 2, count).astype(np.uint8)
        for kind, array in (("x", images), ("y", labels.reshape(-1, 1, 1, 1))):
            with h5py.File(source / f"camelyonpatch_level_2_split_{name}_{kind}.h5", "w") as file:
                file[kind] = array
        truth.update({images[n].tobytes(): (part, labels[n]) for n in range(count)})
    for part, rows in check_layout(made("vtab:patch_camelyon", source, tmp_path / "root")[0]).items():
        assert all(truth[pixels(data).tobytes()] == (part, label) for data, label, _ in rows)


def test_dogs(source, tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    breeds = ("n02085620-Chihuahua", "n02113978-Mexican_hairless")
    images, lists = {}, {}
    for part, start in (("train", 10074), ("test", 20000)):
        names = [f"{breed}/{breed[:9]}_{start + n}.jpg" for breed in breeds for n in range(20)]
        images |= {f"Images/{name}": originals.jpeg(n) for n, name in enumerate(names)}
        cells = np.empty((len(names), 1), dtype=object)
        cells[:, 0] = names
        buffer = io.BytesIO()
        savemat(buffer, {"file_list": cells, "labels": np.repeat([1, 2], 20)[:, None].astype(float)})
        lists[f"{part}_list.mat"] = buffer.getvalue()
    originals.tar(source / "images.tar", images)
    originals.tar(source / "lists.tar", lists)
    folder, done = made("fgvc:dogs", source, tmp_path / "root")
    assert done.images == {"train": 36, "val": 4, "test": 40}
    assert (folder / "classes.txt").read_text().split() == ["Chihuahua", "Mexican_hairless"]
    for part in ("train", "val", "test"):
        for name, label in json.loads((folder / f"{part}.json").read_text()).items():
            assert name.startswith(breeds[label])
            assert (folder / "Images" / name).read_bytes() == images[f"Images/{name}"]


def test_cars(source, tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat

    def annotations(count, step):
        rows = np.zeros((1, count), dtype=[("class", object), ("fname", object)])
        for n in range(count):
            rows[0, n] = (np.uint8(n // step + 1), f"{n + 1:05d}.jpg")
        return {"annotations": rows}

    names = np.empty((1, 2), dtype=object)
    names[0, :] = ["AM General Hummer SUV 2000", "smart fortwo Convertible 2012"]
    members = {}
    for name, content in (("cars_meta", {"class_names": names}), ("cars_train_annos", annotations(20, 10))):
        buffer = io.BytesIO()
        savemat(buffer, content)
        members[f"devkit/{name}.mat"] = buffer.getvalue()
    originals.tar(source / "car_devkit.tgz", members)
    savemat(source / "cars_test_annos_withlabels.mat", annotations(8, 4))
    for part, count, start in (("train", 20, 0), ("test", 8, 1000)):
        images = {f"cars_{part}/{n + 1:05d}.jpg": originals.jpeg(start + n) for n in range(count)}
        originals.tar(source / f"cars_{part}.tgz", images)
    folder, done = made("fgvc:cars", source, tmp_path / "root")
    assert done.images == {"train": 18, "val": 2, "test": 8}
    listed = {part: json.loads((folder / f"{part}.json").read_text()) for part in ("train", "val", "test")}
    assert listed["test"] == {f"cars_test/{n + 1:05d}.jpg": n // 4 for n in range(8)}
    assert listed["train"] | listed["val"] == {f"cars_train/{n + 1:05d}.jpg": n // 10 for n in range(20)}
    assert (folder / "cars_test/00003.jpg").read_bytes() == originals.jpeg(1002)


def test_a_missing_package_is_named(source, tmp_path, monkeypatch):
    for name in ("train_32x32.mat", "test_32x32.mat"):
        (source / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    refuse("vtab:svhn", source, tmp_path / "root", "pip install scipy")


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────────


def refuse(spec, source, root, *words, **options):
    with pytest.raises(VPromptError) as caught:
        made(spec, source, root, **options)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not root.exists() or list(root.iterdir()) == []
    return str(caught.value)


def test_hash(source, tmp_path):
    originals.eurosat(source, 10)
    archive = source / "EuroSAT.zip"
    actual = hashlib.md5(archive.read_bytes()).hexdigest()
    known = recipe_of("vtab:eurosat").pieces["images"].names["EuroSAT.zip"]
    refuse("vtab:eurosat", source, tmp_path / "root", "EuroSAT.zip", actual, known, accept_changed=False)


def test_number_of_images(source, tmp_path):
    members = originals.by_folder("", ("AnnualCrop", "Forest"), 700, lambda c, n: f"{c}_{n}.jpg")
    originals.unpacked(source, members)
    refuse("vtab:eurosat", source, tmp_path / "root", "27000", "1400", accept_changed=False)
    folder = made("vtab:eurosat", source, tmp_path / "root")[0]
    about = json.loads((folder / "source.json").read_text())
    assert about["original_images"] == 1400
    assert about["pieces"] == [{"name": "EuroSAT.zip", "unpacked": "source"}]
    assert about["split_seed"] == 0
    assert about["note"]
    assert "draws 800 images" in about["parts"]


def test_changed_archives_are_recorded(source, tmp_path):
    originals.eurosat(source)
    archive = source / "EuroSAT.zip"
    (piece,) = json.loads((made("vtab:eurosat", source, tmp_path / "root")[0] / "source.json").read_text())["pieces"]
    assert piece["md5"] == hashlib.md5(archive.read_bytes()).hexdigest()
    assert piece["hash"].startswith("changed from ")


@pytest.mark.parametrize("spec", [recipe.spec for recipe in RECIPES if recipe.read])
def test_missing_files(spec, source, tmp_path):
    (source / "other.txt").write_text("x")
    first = next(iter(next(iter(recipe_of(spec).pieces.values())).names))
    refuse(spec, source, tmp_path / "root", str(source), first)


@pytest.mark.parametrize("spec", [recipe.spec for recipe in RECIPES if not recipe.read])
def test_what_cannot_be_prepared_says_why(spec, source, tmp_path):
    assert "copy of VTAB-1k" in refuse(spec, source, tmp_path / "root", spec)


def test_unknown_tasks_and_sources(source, tmp_path):
    refuse("vtab:cifra", source, tmp_path / "root", "vtab:cifar")
    refuse("nothing", source, tmp_path / "root", "vprompt tasks")
    refuse("vtab:dtd", source / "not", tmp_path / "root", "does not exist")
    (source / "file").write_text("x")
    refuse("vtab:dtd", source / "file", tmp_path / "root", "folder")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.98])
@pytest.mark.parametrize(
    ("spec", "build", "archive"),
    [
        ("vtab:cifar", originals.cifar, "cifar-100-binary.tar.gz"),
        ("vtab:dtd", originals.dtd, "dtd-r1.0.1.tar.gz"),
        ("vtab:eurosat", originals.eurosat, "EuroSAT.zip"),
        ("vtab:dsprites_loc", originals.dsprites, "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"),
        ("vtab:smallnorb_azi", originals.smallnorb, "smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat.gz"),
        ("vtab:smallnorb_azi", originals.smallnorb, "smallnorb-5x46789x9x18x6x2x96x96-training-info.mat.gz"),
    ],
)
def test_cut_archives(spec, build, archive, share, source, tmp_path):
    build(source)
    path = source / archive
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refuse(spec, source, tmp_path / "root", archive)


def test_a_damaged_byte_in_a_zip(source, tmp_path):
    originals.eurosat(source)
    path = source / "EuroSAT.zip"
    data = path.read_bytes()
    middle = len(data) // 3
    # A whole member's data: some image that is used is hit.
    path.write_bytes(data[:middle] + bytes(20_000) + data[middle + 20_000 :])
    refuse("vtab:eurosat", source, tmp_path / "root", "EuroSAT.zip")


@pytest.mark.parametrize("name", ["../evil.jpg", "/evil.jpg", "dtd/../../evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_that_leave_the_archive(name, kind, source, tmp_path):
    if kind == "tar":
        members, _ = originals.dtd_members(per_class=2)
        originals.tar(source / "dtd-r1.0.1.tar.gz", members | {name: b"evil"})
        refuse("vtab:dtd", source, tmp_path / "root", "leaves its folder")
    else:
        originals.zipped(source / "EuroSAT.zip", {"2750/AnnualCrop/AnnualCrop_1.jpg": b"x", name: b"evil"})
        refuse("vtab:eurosat", source, tmp_path / "root", "leaves its folder", "evil.jpg")
    assert not list(tmp_path.rglob("*evil*"))


def test_links_in_a_tar_are_not_followed(source, tmp_path):
    (tmp_path / "secret").write_bytes(originals.jpeg(1))
    members, _ = originals.dtd_members()
    path = source / "dtd-r1.0.1.tar.gz"
    gone = next(name for name in members if name.endswith(".jpg"))
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            if name == gone:
                entry.type, entry.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
                archive.addfile(entry)
            else:
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    refuse("vtab:dtd", source, tmp_path / "root", Path(gone).name)


def test_lists_cannot_name_files_outside(source, tmp_path):
    originals.birds(source, "CUB_200_2011.tgz", "CUB_200_2011", [1, 2])
    with tarfile.open(source / "CUB_200_2011.tgz") as opened:
        opened.extractall(source, filter="data")
    (source / "CUB_200_2011.tgz").unlink()
    (source / "secret.jpg").write_bytes(originals.jpeg(7))
    lists = source / "CUB_200_2011/images.txt"
    lists.write_text(lists.read_text().replace("001.Bird 0/b_1.jpg", "../../secret.jpg"))
    refuse("fgvc:cub", source, tmp_path / "root", "../../secret.jpg")
    lists.write_text(lists.read_text().replace("../../secret.jpg", str(source / "secret.jpg")))
    refuse("fgvc:cub", source, tmp_path / "root", "secret.jpg")


def test_pickled_arrays_are_not_loaded(source, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    np.savez(
        source / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        imgs=np.array([Evil()], dtype=object),
        latents_classes=np.array([[Evil()] * 6], dtype=object),
    )
    refuse("vtab:dsprites_loc", source, tmp_path / "root", "latents_classes")
    assert not (tmp_path / "evil").exists()


def test_too_few_images(source, tmp_path):
    originals.cifar(source, train=999)
    refuse("vtab:cifar", source, tmp_path / "root", "199", "200")


def test_headers_that_promise_too_much(source, tmp_path):
    originals.smallnorb(source, packed=False)
    for kind in ("dat", "info"):
        path = source / f"smallnorb-5x46789x9x18x6x2x96x96-training-{kind}.mat"
        whole = path.read_bytes()
        for header in (b"MATLAB 5.0 MAT-file", struct.pack("<10i", 0x1E3D4C55, 8, 1010, *[2**31 - 1] * 7), bytes(40)):
            path.write_bytes(header)
            refuse("vtab:smallnorb_azi", source, tmp_path / "root", path.name)
        path.write_bytes(whole)
    # Fewer images than labels.
    path.with_name(path.name.replace("info", "dat")).write_bytes(
        originals.norb_matrix(np.zeros((9, 2, 4, 4), np.uint8))
    )
    refuse("vtab:smallnorb_azi", source, tmp_path / "root", "number of images")


def test_unpacked_collections_beside_each_other(source, tmp_path):
    for top, archive, ids in (
        ("CUB_200_2011", "CUB_200_2011.tgz", [1, 2]),
        ("nabirds", "nabirds.tar.gz", [295, 817, 9]),
    ):
        originals.birds(source, archive, top, ids)
        with tarfile.open(source / archive) as opened:
            opened.extractall(source, filter="data")
        (source / archive).unlink()
    assert made("fgvc:nabirds", source, tmp_path / "root")[1].classes == 3
    assert made("fgvc:cub", source, tmp_path / "root")[1].classes == 2


def test_an_image_that_lists_name_is_missing(source, tmp_path):
    members, _ = originals.dtd_members()
    del members["dtd/images/banded/banded_0003.jpg"]
    originals.tar(source / "dtd-r1.0.1.tar.gz", members)
    refuse("vtab:dtd", source, tmp_path / "root", "banded_0003.jpg")


def test_lists_that_are_not_as_documented(source, tmp_path):
    truth = originals.pets(source)
    assert truth
    originals.tar(source / "annotations.tar.gz", {"annotations/trainval.txt": b"Abyssinian_1 one 1 1\n"})
    refuse("vtab:oxford_iiit_pet", source, tmp_path / "root", "trainval.txt")
    originals.tar(source / "annotations.tar.gz", {"annotations/trainval.txt": b"\xff\xfe\n"})
    refuse("vtab:oxford_iiit_pet", source, tmp_path / "root", "trainval.txt")
    originals.zipped(source / "CLEVR_v1.0.zip", {"CLEVR_v1.0/scenes/CLEVR_train_scenes.json": b"{}"})
    refuse("vtab:clevr_count", source, tmp_path / "root", "CLEVR_train_scenes.json")


def test_labels_without_a_class(source, tmp_path):
    originals.clevr(source)
    members = {"fine_label_names.txt": b"a\nb\n", "train.bin": bytes([0, 2]) + bytes(3072), "test.bin": b""}
    originals.tar(source / "cifar-100-binary.tar.gz", members)
    refuse("vtab:cifar", source, tmp_path / "root", "label 2", "2 classes")


# ── nothing half-done ────────────────────────────────────────────────────────────────────────────────────────────────


def test_folders_that_are_there_are_never_replaced(source, tmp_path):
    originals.eurosat(source)
    root = tmp_path / "root"
    folder = made("vtab:eurosat", source, root)[0]
    (folder / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="exists; remove it"):
        made("vtab:eurosat", source, root)
    assert (folder / "mine.txt").exists()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_killed_in_the_middle(name, source, tmp_path):
    originals.cifar(source, test=3_000)
    root = tmp_path / "root"
    images = root / ".cifar.part/images/test"
    command = ["prepare", "vtab:cifar", "--source", source, "--root", root, "--accept-changed"]
    child = Command(*command, folder=tmp_path)
    status, _, err = child.when(lambda: images.is_dir() and len(os.listdir(images)) > 50, getattr(signal, name))
    assert status != 0
    assert "Traceback" not in err
    assert not (root / "cifar").exists()
    left = [path.name for path in root.iterdir()]
    assert left == ([".cifar.part"] if name == "SIGKILL" else [])
    for path in source.iterdir():
        path.unlink()
    originals.cifar(source)
    check_layout(made("vtab:cifar", source, root)[0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sets a limit on the size of files")
def test_a_disk_without_room(source, tmp_path, monkeypatch):
    # A full disk of its own needs privileges; /dev/full gives the same error to a real write.
    originals.eurosat(source)
    root = tmp_path / "root"
    (root / ".eurosat.part").mkdir(parents=True)
    job = importlib.import_module("vprompt.data.prepare.prepare")

    def fill(*given):
        Path("/dev/full").write_bytes(b"x")

    monkeypatch.setattr(job, "write_task", fill)
    refuse("vtab:eurosat", source, root, "no space is left", str(root))


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_draws_keep_shares_and_do_not_depend_on_order():
    rng = np.random.default_rng(0)
    items = [Item(f"i{n}", int(label), "train") for n, label in enumerate(rng.geometric(0.2, 5000))]
    totals = Counter(item.label for item in items)
    for count in (0, 1, 200, 800, 5000):
        drawn = draw(items, count)
        assert len(set(drawn)) == len(drawn) == count
        found = Counter(item.label for item in drawn)
        assert all(abs(found[label] - total * count / 5000) < 1 for label, total in totals.items())
        assert draw(items[::-1], count) == drawn


def test_the_draw_is_pinned():
    # A task's name stands for the same images in every release.
    items = [Item(f"{n}", n % 2, "train") for n in range(20)]
    assert [item.name for item in draw(items, 4)] == PINNED


PINNED = ["14", "8", "1", "13"]


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_command(source, tmp_path, capsys):
    from vprompt.cli.main import main

    originals.eurosat(source)
    arguments = ["prepare", "vtab:eurosat", "--source", str(source), "--root", str(tmp_path / "root")]
    assert main(arguments) == 1
    assert "--accept-changed" in capsys.readouterr().err
    assert main([*arguments, "--accept-changed", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["images"] == {"train": 800, "val": 200, "test": 270}
    shutil.rmtree(tmp_path / "root")
    assert main([*arguments, "--accept-changed"]) == 0
    said = capsys.readouterr()
    assert "270" in said.out
    assert "not comparable" in said.err
    assert main(["prepare"]) == 2
    assert "--list" in capsys.readouterr().err


def test_list(capsys):
    from vprompt.cli.main import main

    assert main(["prepare", "--list"]) == 0
    text = capsys.readouterr().out
    for recipe in RECIPES:
        assert recipe.spec in text
        assert all(name in text for piece in recipe.pieces.values() for name in piece.names)
    assert main(["prepare", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["task"] for row in listed] == [recipe.spec for recipe in RECIPES]
    assert sum(row["supported"] for row in listed) == 22
    assert asdict(RECIPES[0])
