"""Images in rows: Parquet, WebDataset, data sets of the library `datasets`, and torch data sets."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import vprompt
from vprompt.data import load_labelled, open_task
from vprompt.data.pipeline import load
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.tasks import find_listing
from vprompt.tasks.columns import Columns
from vprompt.utils.errors import DataError

datasets = pytest.importorskip("datasets")

PLAIN = Preprocessing(size=(6, 6), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLASSES = ["bee", "ant"]  # not sorted
ARRAYS = np.random.default_rng(0).integers(256, size=(40, 6, 6, 3), dtype=np.uint8)


def png(number):
    buffer = io.BytesIO()
    Image.fromarray(ARRAYS[number]).save(buffer, "PNG")
    return buffer.getvalue()


PNGS = [png(number) for number in range(40)]
LABELS = [number % 2 for number in range(40)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def dataset(rows=range(40), **columns):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    images = [{"bytes": PNGS[n], "path": f"{n}.png"} for n in rows]
    whole = {"image": images, "label": [LABELS[n] for n in rows]}
    made = datasets.Dataset.from_dict(whole, features=features)
    for name, cells in columns.items():
        made = made.add_column(name, cells)
    return made


def contents(task):
    """(pixels, name of the class) of all images, whatever their order."""
    parts = [part for part in (task.train, task.val, task.test) if part is not None]
    return {
        (part.pixels(torch.tensor([row]))[0].numpy().transpose(1, 2, 0).tobytes(), task.classes[part.labels[row]])
        for part in parts
        for row in range(len(part))
    }


ALL = {(ARRAYS[n].tobytes(), CLASSES[LABELS[n]]) for n in range(40)}


def saved(folder):
    dataset().save_to_disk(str(folder / "saved"))
    return folder / "saved"


def parquet_of_the_hub(folder):
    dataset().to_parquet(str(folder / "birds.parquet"))
    return folder / "birds.parquet"


def parquet_shards(folder):
    inner = folder / "repository" / "data"
    inner.mkdir(parents=True)
    for number in range(2):
        rows = range(20 * number, 20 * number + 20)
        dataset(rows).to_parquet(str(inner / f"train-0000{number}-of-00002.parquet"))
    return folder / "repository"


def parquet_of_bytes(folder):
    rows = {"photo": PNGS, "species": [CLASSES[label] for label in LABELS], "size": [0.5] * 40}
    datasets.Dataset.from_dict(rows).to_parquet(str(folder / "birds.parquet"))
    return folder / "birds.parquet"


def parquet_of_paths(folder):
    (folder / "photos").mkdir()
    for number, data in enumerate(PNGS):
        (folder / "photos" / f"{number}.png").write_bytes(data)
    rows = {"file": [f"{n}.png" for n in range(40)], "label": [CLASSES[label] for label in LABELS]}
    datasets.Dataset.from_dict(rows).to_parquet(str(folder / "birds.parquet"))
    return folder


def parquet_of_structs_of_paths(folder):
    parquet_of_paths(folder)
    rows = {
        "image": [{"bytes": None, "path": f"photos/{n}.png"} for n in range(40)],
        "label": [CLASSES[label] for label in LABELS],
    }
    features = datasets.Features(
        {
            "image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": datasets.Value("string"),
        }
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "birds.parquet"))
    return folder / "birds.parquet"


def web_dataset(folder):
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for number in range(20 * shard, 20 * shard + 20):
                label = json.dumps({"label": CLASSES[LABELS[number]], "width": 6}).encode()
                for ending, data in (("png", PNGS[number]), ("json", label)):
                    about = tarfile.TarInfo(f"{number:04d}.{ending}")
                    about.size = len(data)
                    tar.addfile(about, io.BytesIO(data))
    return folder / "shard-*.tar"


SOURCES = [
    *(saved, parquet_of_the_hub, parquet_shards, parquet_of_bytes, parquet_of_paths, parquet_of_structs_of_paths),
    web_dataset,
]


@pytest.mark.parametrize("make", SOURCES)
def test_images_in_rows_take_the_same_way(make, tmp_path, capfd):
    spec = str(make(tmp_path))
    capfd.readouterr()
    listing = find_listing(spec)
    held, lazy = load(listing, PLAIN), load(listing, PLAIN, memory_limit=0)
    assert contents(held) == contents(lazy) == ALL
    assert (held.train.in_memory, lazy.train.in_memory) == (True, False)
    assert held.classes == ("ant", "bee")
    again = pickle.loads(pickle.dumps(lazy.train))
    assert torch.equal(again.pixels(torch.arange(3)), lazy.train.pixels(torch.arange(3)))
    assert load(listing, PLAIN, memory_limit=0).fingerprint() == lazy.fingerprint()
    images, split, _ = load_labelled(spec, PLAIN, ("bee", "ant"))
    assert split == "test"
    assert images.labels.tolist() == [1 - label for label in held.test.labels.tolist()]
    assert capfd.readouterr().err == ""  # no bars


def test_splits_of_a_saved_dictionary(tmp_path):
    parts = {"train": range(24), "validation": range(24, 30), "test": range(30, 40)}
    whole = datasets.DatasetDict({name: dataset(rows) for name, rows in parts.items()})
    whole["unsupervised"] = dataset(range(2))
    whole.save_to_disk(str(tmp_path / "saved"))
    task = open_task(tmp_path / "saved", PLAIN)
    assert [len(part) for part in (task.train, task.val, task.test)] == [24, 6, 10]
    assert task.skipped == ("Part unsupervised is not used.",)
    assert task.fingerprint() == vprompt.data.open_task(whole, PLAIN).fingerprint()


def test_a_bad_row_is_named(tmp_path):
    labels = [*(CLASSES[label] for label in LABELS), "ant", "bee", ""]
    rows = {"photo": [*PNGS, b"oops", None, PNGS[0]], "label": labels}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "birds.parquet"))
    with pytest.raises(DataError, match=r"^birds\.parquet, row 43: the cell of label is empty; fix it"):
        open_task(tmp_path / "birds.parquet", PLAIN)
    task = open_task(tmp_path / "birds.parquet", PLAIN, skip_bad=True)
    assert contents(task) == ALL
    assert [sentence.partition(":")[0] for sentence in task.skipped] == [
        f"birds.parquet, row {number}" for number in (43, 41, 42)
    ]


@pytest.mark.parametrize("name", ["birds.parquet", "shard.tar"])
def test_a_damaged_file_is_one_sentence(name, tmp_path):
    (tmp_path / name).write_bytes(b"oops" * 100)
    with pytest.raises(DataError, match=rf"^{name} cannot be read by the library datasets \(.*\)\.$"):
        find_listing(tmp_path / name)


def test_a_file_that_changes_is_read_anew(tmp_path):
    dataset(range(20)).to_parquet(str(tmp_path / "birds.parquet"))
    assert len(find_listing(tmp_path).splits["all"]) == 20
    dataset(range(30)).to_parquet(str(tmp_path / "birds.parquet"))
    assert len(find_listing(tmp_path).splits["all"]) == 30


def test_a_name_that_the_hub_does_not_know_is_one_sentence(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"^hf:nobody/nothing cannot be read by the library datasets"):
        find_listing("hf:nobody/nothing")


def test_columns_of_classes_count_first_and_can_be_named(tmp_path):
    fine = dataset(coarse=["x", "y"] * 20, site=[f"s{n // 4}" for n in range(40)])
    fine.to_parquet(str(tmp_path / "birds.parquet"))
    assert contents(open_task(tmp_path, PLAIN)) == ALL
    assert open_task(tmp_path, PLAIN, columns=Columns(label_column="coarse")).classes == ("x", "y")
    for name in ("label_column", "group", "split_column"):
        with pytest.raises(DataError, match=r"has no column image .*; there is label, coarse and site"):
            open_task(tmp_path, PLAIN, columns=Columns(**{name: "image"}))
    task = open_task(tmp_path, PLAIN, columns=Columns(group="site"))
    parts = (task.train, task.val, task.test)
    sites = [{(int(path.partition("#")[2]) - 1) // 4 for path in part.paths} for part in parts]
    assert sum(map(len, sites)) == 10


class Birds(torch.utils.data.Dataset):
    """Pairs of an image and a label."""

    def __init__(self, image, label=lambda n: LABELS[n], rows=range(40)):
        self.image, self.label, self.rows = image, label, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.image(self.rows[index]), self.label(self.rows[index])


class Named(Birds):
    classes = CLASSES


IMAGES = {
    "PIL": lambda n: Image.fromarray(ARRAYS[n]),
    "array": lambda n: ARRAYS[n],
    "tensor": lambda n: torch.from_numpy(ARRAYS[n]).permute(2, 0, 1),
    "bytes": lambda n: PNGS[n],
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_any_torch_data_set(image):
    task = vprompt.open_data(Named(image), img_size=16)
    assert task.classes == ("ant", "bee")
    assert contents(open_task(Named(image), PLAIN)) == ALL
    lazy = load(find_listing(Named(image)), PLAIN, memory_limit=0)
    assert contents(lazy) == ALL
    words = Birds(image, label=lambda n: CLASSES[LABELS[n]])
    assert open_task(words, PLAIN).fingerprint() == open_task(Named(image), PLAIN).fingerprint()


def test_torch_data_sets_for_the_splits_and_streams():
    parts = {"train": range(30), "val": None, "test": range(30, 40)}
    whole = {name: rows and Named(IMAGES["array"], rows=rows) for name, rows in parts.items()}
    task = open_task({name: part for name, part in whole.items() if part}, PLAIN)
    assert len(task.test) == 10
    assert len(task.train) + len(task.val) == 30

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(Named(IMAGES["PIL"])[n] for n in range(40))

    assert {pixels for pixels, _ in contents(open_task(Stream(), PLAIN))} == {pixels for pixels, _ in ALL}
    assert contents(open_task(dataset().to_iterable_dataset(), PLAIN)) == ALL
    subset = torch.utils.data.Subset(Named(IMAGES["PIL"]), range(40))
    assert contents(open_task(subset, PLAIN)) == ALL


@pytest.mark.parametrize("has", [torch.tensor, np.array, list])
def test_vectors_of_0_and_1_are_tags(has):
    rows = [[n % 2, n % 3 == 0, n % 5 == 0] for n in range(40)]
    named = Named(IMAGES["array"], label=lambda n: has([int(cell) for cell in rows[n]]))
    task = open_task(named, PLAIN)
    assert (task.target.name, task.classes) == ("multi-label", ("2", "ant", "bee"))
    numbers = [int(path.partition("#")[2]) - 1 for path in task.train.paths]
    wanted = [[rows[n][2], rows[n][1], rows[n][0]] for n in numbers]
    assert torch.equal(task.train.labels, torch.tensor(wanted).float())


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (Birds(lambda n: torch.zeros(3, 6, 6)), r"all#1 is Tensor of float32 \(3, 6, 6\); an image is a path"),
        ([1, 2], "pairs of an image and a label, not int"),
        ({"train": [(PNGS[0], 1)], "holdout": []}, "called train, val and test, not train, holdout"),
        ({}, "called train, val and test, not nothing"),
    ],
)
def test_other_objects_are_refused_in_a_sentence(data, problem):
    with pytest.raises(DataError, match=problem):
        open_task(data, PLAIN)
