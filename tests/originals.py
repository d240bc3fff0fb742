"""Small stand-ins for the original archives, in their documented formats: tiny images, true names and layouts."""

import gzip
import io
import json
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image


def picture(seed, form="PNG", size=(2, 3)):
    """The bytes of an image that no other seed gives."""
    pixels = np.frombuffer(struct.pack(">I", seed) * 8, np.uint8)[: size[0] * size[1] * 3].reshape(*size, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def jpeg(seed):
    # The comment tells images apart whose pixels compression made alike.
    data = picture(0, "JPEG")
    return data[:2] + b"\xff\xfe\x00\x0a" + f"{seed:08d}".encode() + data[2:]


def tar(path, members):
    """A tar archive with folders as members of their own, as the real ones have."""
    mode = "w:gz" if path.name.endswith(("gz", "tgz")) else "w"
    options = {"compresslevel": 1} if mode == "w:gz" else {}
    with tarfile.open(path, mode, **options) as archive:
        folders = set()
        for name, data in members.items():
            folder = name.rsplit("/", 1)[0]
            if "/" in name and folder not in folders:
                folders.add(folder)
                entry = tarfile.TarInfo(folder)
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def unpacked(folder, members):
    for name, data in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def lines(*rows):
    return "".join(f"{row}\n" for row in rows).encode()


# Each function below writes one data set into a folder and returns {(part, label): set of image bytes or pixels},
# for test images at least, where the original says which they are.


def cifar(folder, train=1100, test=30, classes=100):
    rng = np.random.default_rng(0)
    members = {"cifar-100-binary/fine_label_names.txt": lines(*(f"thing_{n}" for n in range(classes)))}
    truth = {}
    for name, count in (("train", train), ("test", test)):
        pixels = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
        records = []
        for row in range(count):
            records.append(bytes([row % 20, row % classes]) + pixels[row].tobytes())
            truth.setdefault((name, row % classes), set()).add(pixels[row].transpose(1, 2, 0).tobytes())
        members[f"cifar-100-binary/{name}.bin"] = b"".join(records)
    tar(folder / "cifar-100-binary.tar.gz", members)
    return truth


def dtd_members(per_class=150, classes=("zigzagged", "banded")):
    members, lists, truth = {}, {"train": [], "val": [], "test": []}, {}
    order = ("train",) * 5 + ("val", "test")
    for label, name in enumerate(sorted(classes)):
        for number in range(per_class * 7):
            part = order[number % 7]
            data = members[f"dtd/images/{name}/{name}_{number:04d}.jpg"] = jpeg(label * 10**6 + number)
            lists[part].append(f"{name}/{name}_{number:04d}.jpg")
            truth.setdefault((part, label), set()).add(data)
    for part, names in lists.items():
        members[f"dtd/labels/{part}1.txt"] = lines(*names)
        members[f"dtd/labels/{part}2.txt"] = lines("other/other_0001.jpg")
    return members, truth


def dtd(folder, **sizes):
    members, truth = dtd_members(**sizes)
    tar(folder / "dtd-r1.0.1.tar.gz", members)
    return truth


def by_folder(prefix, classes, count, name, data=jpeg):
    return {
        f"{prefix}{label_name}/{name(label_name, number)}": data(label * 10**5 + number)
        for label, label_name in enumerate(classes)
        for number in range(1, count + 1)
    }


def eurosat(folder, count=450):
    classes = ("AnnualCrop", "Forest", "SeaLake")
    zipped(folder / "EuroSAT.zip", by_folder("2750/", classes, count, lambda c, n: f"{c}_{n}.jpg"))


def resisc45(folder, count=450):
    classes = ("airplane", "sea_ice", "wetland")
    unpacked(folder / "there", by_folder("NWPU-RESISC45/", classes, count, lambda c, n: f"{c}_{n:03d}.jpg"))


def caltech_members(classes=40, count=34):
    # Upper and lower case do not sort the classes.
    names = ["accordion", "BACKGROUND_Google", "Motorbikes", *(f"thing{n:02d}" for n in range(classes - 3))]
    return by_folder("101_ObjectCategories/", names, count, lambda _, n: f"image_{n:04d}.jpg")


def caltech101(folder):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz", compresslevel=1) as archive:
        for name, data in caltech_members().items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    zipped(
        folder / "caltech-101.zip",
        {"caltech-101/101_ObjectCategories.tar.gz": inner.getvalue(), "caltech-101/Annotations.tar": b"not read"},
    )


def pets(folder, train=1010, test=20):
    images, lists = {}, {"trainval": ["#Image CLASS-ID SPECIES BREED ID"], "test": []}
    breeds = ("Abyssinian", "great_pyrenees", "yorkshire_terrier")
    truth = {}
    number = 0
    for part, count in (("trainval", train), ("test", test)):
        for _ in range(count):
            number += 1
            label = (number - 1) % 3
            name = f"{breeds[label]}_{(number + 2) // 3}"
            data = images[f"images/{name}.jpg"] = jpeg(number)
            lists[part].append(f"{name} {label + 1} 1 {label + 1}")
            truth.setdefault(("test" if part == "test" else "train", label), set()).add(data)
    images["images/Abyssinian_1.mat"] = b"odd files are there too"
    tar(folder / "images.tar.gz", images)
    tar(folder / "annotations.tar.gz", {f"annotations/{part}.txt": lines(*rows) for part, rows in lists.items()})
    return truth


def sun397(folder, count=450):
    classes = ("a/abbey", "c/church/outdoor", "z/zoo")
    members = by_folder("SUN397/", classes, count, lambda _, n: f"sun_a{n:05d}.jpg")
    members["SUN397/c/church/outdoor/sun_bhenjvsvrtumjuri.jpg"] = b"damaged"
    # Some of the real images are no JPEG although they are called so.
    members["SUN397/a/abbey/sun_a00001.jpg"] = picture(1, "GIF")
    members["SUN397/ClassName.txt"] = lines(*(f"/{name}" for name in classes))
    members["SUN397/README.txt"] = b"hello"
    tar(folder / "SUN397.tar.gz", members)


def clevr(folder, train=1010, val=30):
    members, truth = {}, {"count": {}, "dist": {}}
    rng = np.random.default_rng(1)
    for part, count in (("train", train), ("val", val)):
        scenes = []
        for number in range(count):
            name = f"CLEVR_{part}_{number:06d}.png"
            depths = rng.uniform(7.5, 12.0, 3 + number % 8).round(6).tolist()
            members[f"CLEVR_v1.0/images/{part}/{name}"] = picture(number + (part == "val") * 10**6)
            scenes.append({"image_filename": name, "objects": [{"pixel_coords": [1, 2, d]} for d in depths]})
            if part == "val":
                nearest = min(depths)
                dist = 0 if nearest <= 8 else 1 + sum(nearest > edge for edge in (8.5, 9.0, 9.5, 10.0))
                for kind, label in (("count", number % 8), ("dist", dist)):
                    truth[kind].setdefault(("test", label), set()).add(members[f"CLEVR_v1.0/images/{part}/{name}"])
        members[f"CLEVR_v1.0/scenes/CLEVR_{part}_scenes.json"] = json.dumps({"scenes": scenes}).encode()
    members["CLEVR_v1.0/images/test/CLEVR_test_000000.png"] = picture(5)
    zipped(folder / "CLEVR_v1.0.zip", members)
    return truth


def kitti(folder, count=2100, drives=30):
    images, labels, truth, rows = {}, {}, {}, []
    order = np.random.default_rng(2).permutation(count)
    for number in range(count):
        images[f"training/image_2/{number:06d}.png"] = picture(number)
        things = [("Car", 30.0 - number % 30), ("Pedestrian", 1.0), ("DontCare", -1000.0)]
        things = things[1:] if number % 5 == 0 else things
        labels[f"training/label_2/{number:06d}.txt"] = lines(
            *(f"{kind} 0.00 0 1.0 0 0 9 9 1.5 1.6 3.6 0.5 1.7 {z:.2f} 0.1" for kind, z in things)
        )
        z = 30.0 - number % 30
        label = 3 if number % 5 == 0 else 0 if z <= 8 else 1 if z <= 20 else 2
        truth[images[f"training/image_2/{number:06d}.png"]] = (label, int(order[number]) % drives)
    for line in range(count):
        rows.append(f"2011_09_26 2011_09_26_drive_{line % drives:04d}_sync {line:010d}")
    images["testing/image_2/000000.png"] = picture(7)
    zipped(folder / "data_object_image_2.zip", images)
    zipped(folder / "data_object_label_2.zip", labels)
    mapping = {
        "mapping/train_rand.txt": ",".join(str(n + 1) for n in order).encode(),
        "mapping/train_mapping.txt": lines(*rows),
    }
    zipped(folder / "devkit_object.zip", mapping)
    return truth


def dsprites(folder, step=1):
    """All 1280 pairs of orientation and place, at 4 x 4 pixels."""
    grid = [(0, 0, 0, o, x, 0) for o in range(40) for x in range(0, 32, step)]
    latents = np.array(grid, np.int64)
    images = np.zeros((len(grid), 4, 4), np.uint8)
    for row in range(len(grid)):
        images[row].flat[:] = [row >> bit & 1 for bit in range(16)]
    np.savez_compressed(
        folder / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        metadata=np.array({"pickled": True}, dtype=object),
        imgs=images,
        latents_classes=latents,
        latents_values=latents.astype(float),
    )
    return grid, images


def norb_matrix(array):
    kinds = {np.dtype(np.uint8): 0x1E3D4C55, np.dtype(np.int32): 0x1E3D4C54}
    shape = [*array.shape, *[1] * (3 - array.ndim)]
    header = struct.pack(f"<ii{len(shape)}i", kinds[array.dtype], array.ndim, *shape)
    return header + array.astype(array.dtype.newbyteorder("<")).tobytes()


def smallnorb(folder, count=1010, packed=True):
    truth = {}
    rng = np.random.default_rng(3)
    for part, prefix in (("train", "46789x9x18x6x2x96x96-training"), ("test", "01235x9x18x6x2x96x96-testing")):
        rows = np.arange(count)
        info = np.stack([rows % 10, rows % 9, rows % 18 * 2, rows % 6], 1).astype(np.int32)
        pixels = rng.integers(0, 256, (count, 2, 4, 4), np.uint8)
        for kind, array in (("dat", pixels), ("info", info)):
            data = norb_matrix(array)
            name = f"smallnorb-5x{prefix}-{kind}.mat"
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data, 1))
            else:
                (folder / name).write_bytes(data)
        for row in range(count):
            truth[pixels[row, 0].tobytes()] = (part, row % 18, row % 9)
    return truth


def birds(folder, archive, top, ids, per_class=30):
    """CUB_200_2011 and NABirds: the same four lists; class numbers of the latter have gaps."""
    members, rows, truth = {}, {"images": [], "labels": [], "split": []}, {}
    number = 0
    for label, identity in enumerate(ids):
        for each in range(per_class):
            number += 1
            name, data = f"{int(identity):03d}.Bird {label}/b_{number}.jpg", jpeg(number)
            members[f"{top}/images/{name}"] = data
            key = str(number) if top == "CUB_200_2011" else f"{number:08x}-11"
            training = each % 3 != 0
            rows["images"].append(f"{key} {name}")
            rows["labels"].append(f"{key} {identity}")
            rows["split"].append(f"{key} {int(training)}")
            truth[name] = (label, training, data)
    listed = {
        "images.txt": lines(*rows["images"]),
        "image_class_labels.txt": lines(*rows["labels"]),
        "train_test_split.txt": lines(*rows["split"]),
        # NABirds also names groups that no image has.
        "classes.txt": lines(*(f"{identity} Bird {n} (Male)" for n, identity in enumerate(ids)), "9999 Ducks"),
    }
    # What the unpacked copies are told apart by.
    first = "images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg"
    listed |= {first: jpeg(0)} if top == "CUB_200_2011" else {"hierarchy.txt": b"1 0"}
    tar(folder / archive, members | {f"{top}/{name}": data for name, data in listed.items()})
    return truth
