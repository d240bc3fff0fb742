"""Tables of images and labels: which columns are meant, which files, and what is said of rows that cannot be used."""

import csv
import io
import json
import os
import time
import unicodedata

import pytest
import torch
from PIL import Image

from vprompt.data import load_labelled, open_task
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.sources.sheet import columns_of, text_of
from vprompt.data.split import joined
from vprompt.data.tasks import find_listing
from vprompt.tasks.base import CELLS
from vprompt.tasks.columns import Columns
from vprompt.utils.errors import DataError

PLAIN = Preprocessing(size=(4, 4), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLASSES = ("ant", "bee")


def png(number):
    """A small picture of noise, so that no two are alike."""
    buffer = io.BytesIO()
    Image.frombytes(
        "RGB", (6, 6), bytes(torch.randint(256, (108,), generator=torch.manual_seed(number)).tolist())
    ).save(buffer, "PNG")
    return buffer.getvalue()


PNGS = [png(number) for number in range(40)]


def put(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNGS[number])


@pytest.fixture
def photos(tmp_path):
    """Forty images in a folder beside where the table goes."""
    put(tmp_path, *(f"images/{number}.png" for number in range(40)))
    return tmp_path


def label(number):
    return CLASSES[number % 2]


def rows_of(listing):
    return {item.name: (item.label, split) for split, items in listing.splits.items() for item in items}


ALL = {f"images/{number}.png": (label(number), "all") for number in range(40)}


def lines(header, row, *, end="\n"):
    return end.join([header, *(row(number) for number in range(40))]) + end


GOOD = {
    "paths": lines("image,label", lambda n: f"images/{n}.png,{label(n)}"),
    "names alone": lines("filename,species", lambda n: f"{n}.png,{label(n)}"),
    "without endings": lines("id,breed", lambda n: f"{n},{label(n)}"),
    "semicolons": lines("Datei;Art", lambda n: f"images/{n}.png;{label(n)}"),
    "tabs": lines("file\tclass", lambda n: f"images/{n}.png\t{label(n)}"),
    "bars": lines("img_path|category", lambda n: f"images/{n}.png|{label(n)}"),
    "CRLF": lines("image,label", lambda n: f"images/{n}.png,{label(n)}", end="\r\n"),
    "CR": lines("image,label", lambda n: f"images/{n}.png,{label(n)}", end="\r"),
    "BOM": "\ufeff" + lines("image,label", lambda n: f"images/{n}.png,{label(n)}"),
    "quotes": lines('"image","label"', lambda n: f'"images/{n}.png", "{label(n)}"'),
    "an index of pandas": lines(",image,label", lambda n: f"{n},images/{n}.png,{label(n)}"),
    "other columns": lines("date,width,image,label,note", lambda n: f"1.1.,{n},images/{n}.png,{label(n)},a{n}"),
    "blanks and empty lines": "\n\n" + lines("image , label", lambda n: f" images/{n}.png , {label(n)} \n\n"),
    "rows of commas": lines("image,label", lambda n: f"images/{n}.png,{label(n)}") + ",\n,\n",
    "backslashes": lines("image,label", lambda n: f"images\\{n}.png,{label(n)}"),
    "dots": lines("image,label", lambda n: f"./images/../images//{n}.png,{label(n)}"),
    "other case": lines("Image Path,Class Name", lambda n: f"Images/{n}.PNG,{label(n)}"),
    "no header": "".join(f"images/{n}.png,{label(n)}\n" for n in range(40)),
    "numbers and names of classes": lines("image,class_id,class_name", lambda n: f"{n}.png,{n % 2},{label(n)}"),
    "a mask beside": lines("mask_path,image,label", lambda n: f"images/{39 - n}.png,images/{n}.png,{label(n)}"),
    "a huge cell": lines(
        "image,polygon,label", lambda n: f"images/{n}.png,{'1 ' * 70_000 if n == 3 else 1},{label(n)}"
    ),
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_tables_as_people_have_them(photos, text):
    (photos / "birds.csv").write_bytes(text.encode())
    listing = find_listing(photos / "birds.csv")
    assert rows_of(listing) == ALL
    assert not listing.problems
    assert csv.field_size_limit() == 2**17


@pytest.mark.parametrize("name", ["birds.tsv", "birds.CSV"])
def test_endings_and_encodings(photos, name):
    (photos / name).write_bytes(GOOD["tabs"].encode("utf-16"))
    assert rows_of(find_listing(photos / name)) == ALL


def test_json_lines(photos):
    records = [{"id": n, "file": f"{n}.png", "meta": {"label": label(n)}, "box": [1, n]} for n in range(40)]
    (photos / "birds.jsonl").write_text("\n".join(json.dumps(r) for r in records) + "\n\n", encoding="utf-8")
    assert rows_of(find_listing(photos / "birds.jsonl")) == ALL
    listing = find_listing(photos / "birds.jsonl", columns=Columns(label_column="label,box"))
    assert listing.label_names == ("label", "box")
    assert rows_of(listing)["images/3.png"] == (f"bee{CELLS}[1, 3]", "all")
    text = '{"image": "1.png", "label": "a\u2028b"}\n[1]\n{oops\n{"image": "2.png"}\n{"image": "3.png", "label": NaN}\n'
    (photos / "birds.jsonl").write_text(text, encoding="utf-8")
    listing = find_listing(photos / "birds.jsonl")
    assert [problem.partition(":")[0] for problem in listing.problems] == [
        f"birds.jsonl, line {number}" for number in (2, 3, 4, 5)
    ]
    assert len(rows_of(listing)) == 1


def test_the_folder_of_a_table_is_data(photos):
    (photos / "birds.csv").write_text(GOOD["names alone"])
    listing = find_listing(photos)
    assert (rows_of(listing), listing.name) == (ALL, photos.name)


def test_classes_beside_a_table_stay_classes(tmp_path):
    put(tmp_path, *(f"{label(number)}/{number}.png" for number in range(40)))
    (tmp_path / "notes.csv").write_text("image,label\n0.png,cat\n")
    listing = find_listing(tmp_path)
    assert {name: found[0] for name, found in rows_of(listing).items()} == {
        f"{label(number)}/{number}.png": label(number) for number in range(40)
    }
    assert not listing.label_names


def test_one_table_for_each_split(tmp_path):
    put(tmp_path, *(f"train_images/{n}.png" for n in range(20)), *(f"test_images/{n}.png" for n in range(20)))
    for split, shift in (("train", 0), ("test", 1)):
        text = "".join(f"{n},{label(n + shift)}\n" for n in range(20))
        (tmp_path / f"{split}.csv").write_text(f"id,label\n{text}")
    (tmp_path / "sample_submission.csv").write_text("id,label\n1,ant\n")
    wanted = {f"train_images/{n}.png": (label(n), "train") for n in range(20)}
    wanted |= {f"test_images/{n}.png": (label(n + 1), "test") for n in range(20)}
    assert rows_of(find_listing(tmp_path)) == wanted
    (tmp_path / "test.csv").write_text("id\n1\n2\n")  # as in a competition
    listing = find_listing(tmp_path)
    assert {split for _, split in rows_of(listing).values()} == {"all"}
    assert "test.csv" in listing.notes[0]
    (tmp_path / "train_extra.csv").write_text("id,label\n1,ant\n")
    with pytest.raises(DataError, match=r"several tables, .*train_extra\.csv.*; give one of them"):
        find_listing(tmp_path)


def test_metadata_as_the_hub_has_it(tmp_path):
    for split in ("train", "test"):
        put(tmp_path / split, *(f"{n}.png" for n in range(4)))
        text = "".join(f"{n}.png,{label(n)}\n" for n in range(4))
        (tmp_path / split / "metadata.csv").write_text(f"file_name,label\n{text}")
    wanted = {f"{split}/{n}.png": (label(n), split) for n in range(4) for split in ("train", "test")}
    assert rows_of(find_listing(tmp_path)) == wanted


@pytest.mark.parametrize(("words", "split"), [(("train", "test"), "test"), (("Training", "VALID"), "val")])
def test_a_column_of_splits_is_known_by_its_cells(photos, words, split):
    text = lines("image,label,usage", lambda n: f"images/{n}.png,{label(n)},{words[n % 3 == 0]}")
    (photos / "birds.csv").write_text(text)
    found = rows_of(find_listing(photos / "birds.csv"))
    assert found == {f"images/{n}.png": (label(n), split if n % 3 == 0 else "train") for n in range(40)}
    (photos / "birds.csv").write_text(text.replace(words[1], "holdout"))
    assert {split for _, split in rows_of(find_listing(photos / "birds.csv")).values()} == {"all"}
    listing = find_listing(photos / "birds.csv", columns=Columns(split_column="usage"))
    assert listing.problems[0] == "birds.csv, line 2: 'holdout' is no split such as train, val or test"
    assert len(listing.problems) == 14


@pytest.mark.parametrize("bad", ["", "tset"])
@pytest.mark.parametrize("name", ["split", "Subset", "partition"])
def test_a_mistake_in_a_column_of_splits_is_named(photos, name, bad):
    """It takes no image that is marked test into the training."""
    words = ["train", "train", "val", "test"]
    text = lines(f"image,label,{name}", lambda n: f"images/{n}.png,{label(n)},{bad if n == 9 else words[n % 4]}")
    (photos / "birds.csv").write_text(text)
    listing = find_listing(photos / "birds.csv")
    assert [problem.partition(":")[0] for problem in listing.problems] == ["birds.csv, line 11"]
    wanted = {f"images/{n}.png": (label(n), words[n % 4]) for n in range(40) if n != 9}
    assert rows_of(listing) == wanted


def test_a_class_may_be_called_train(photos):
    text = lines("image,label", lambda n: f"images/{n}.png,{('train', 'bus')[n % 2]}")
    (photos / "birds.csv").write_text(text)
    assert {found for found, _ in rows_of(find_listing(photos / "birds.csv")).values()} == {"bus", "train"}


BAD_ROWS = {
    "images/77.png,ant": "images/77.png does not exist",
    ",ant": "no image",
    "images/7.png,": "the cell of label is empty",
    "https://a.org/7.png,ant": "https://a.org/7.png is an address; download the images and give their paths",
    "images/7.png": "it has 1 cells, not 2",
    "images/7.png,ant,bee": "it has 3 cells, not 2",
    "/images/7.png,ant": "/images/7.png does not exist",
    "../7.png,ant": "../7.png does not exist",
    "images,ant": "images does not exist",
    "images/\0.png,ant": r"images/\x00.png does not exist",
    "images/3.png,ant": "images/3.png is ant (all) here, but bee (all) in birds.csv, line 5",
}


@pytest.mark.parametrize(("row", "problem"), BAD_ROWS.items(), ids=map(str, range(len(BAD_ROWS))))
def test_a_bad_row_is_named_by_its_line(photos, row, problem):
    (photos / "birds.csv").write_text(GOOD["paths"] + row + "\n")
    with pytest.raises(DataError) as raised:
        open_task(photos / "birds.csv", PLAIN)
    assert str(raised.value).startswith(f"birds.csv, line 42: {problem}; fix it, or go on without it by --skip-bad")
    task = open_task(photos / "birds.csv", PLAIN, skip_bad=True)
    assert task.skipped == (f"birds.csv, line 42: {problem}.",)
    assert sum(map(len, (task.train, task.val, task.test))) == (39 if "3.png" in row else 40)


def test_an_image_without_a_tag_is_one_where_that_is_a_target(photos):
    text = lines("image,tag", lambda n: f"{n}.png,{('', 'red', 'big')[n % 3]}")
    (photos / "birds.csv").write_text(text)
    with pytest.raises(DataError, match=r"^birds\.csv, line 2: the cell of tag is empty"):
        open_task(photos, PLAIN)
    task = open_task(photos, PLAIN, target="multi-label")
    parts = (task.train, task.val, task.test)
    assert sum(len(part) for part in parts) == 40
    assert sum(int((part.labels.sum(1) == 0).sum()) for part in parts) == 14
    images, _, skipped = load_labelled(photos, PLAIN, task.target, split="all")
    assert len(images) == 40
    assert not any("empty" in sentence for sentence in skipped)


def test_lines_are_those_of_an_editor(photos):
    (photos / "birds.csv").write_text('image,note,label\n1.png,"a\nb",ant\n\n2.png,"c\n\nd",\n9.png,,bee\n1.png,,ant\n')
    listing = find_listing(photos / "birds.csv", columns=Columns(label_column="label"))
    assert listing.places["images/9.png"] == "birds.csv, line 8"
    assert listing.problems == ["birds.csv, line 5: the cell of label is empty"]
    assert {*rows_of(listing)} == {"images/1.png", "images/9.png"}


def test_a_damaged_image_is_named_by_its_line(photos):
    (photos / "birds.csv").write_text(GOOD["paths"])
    (photos / "images" / "5.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^birds\.csv, line 7: file images/5\.png is not an image"):
        open_task(photos, PLAIN)
    task = open_task(photos, PLAIN, skip_bad=True)
    assert len(task.skipped) == 1
    images, _, skipped = load_labelled(photos, PLAIN, CLASSES, split="all", skip_bad=True)
    assert len(images) == 39
    assert skipped[0].startswith("birds.csv, line 7:")


BAD_TABLES = {
    "": "birds.csv is empty.",
    "image,label\n": "no image to train on",
    "a,b,c\n1,2,3\n": "which column of birds.csv has the images; there is a, b and c: give --image-column NAME",
    "image,b,c\n1.png,2,x\n2.png,2,y\n": "which column of birds.csv has the labels; there is image, b and c",
    "image,label,label\n1.png,ant,bee\n": "birds.csv has two columns called label",
    'image,label\n1.png,"ant\n2.png,bee\n': "birds.csv, line 2 cannot be read",
    "image,label\n1.png,\xe4nt\n": "birds.csv, line 2 is not UTF-8",
}


@pytest.mark.parametrize(("text", "problem"), BAD_TABLES.items(), ids=map(str, range(len(BAD_TABLES))))
def test_tables_that_cannot_be_read_are_one_sentence(photos, text, problem):
    (photos / "birds.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as raised:
        find_listing(photos / "birds.csv")
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


def test_columns_are_as_the_user_says(photos):
    (photos / "birds.csv").write_text(lines("a,b,kind", lambda n: f"{n},{39 - n},{label(n)}"))
    with pytest.raises(DataError, match=r"It cannot be told which column of birds\.csv has the images"):
        find_listing(photos / "birds.csv")
    assert rows_of(find_listing(photos, columns=Columns(image_column="A", label_column="kind"))) == ALL
    for columns, problem in (
        (Columns(label_column="kin"), r"no column kin \(--label-column\); there is kind"),
        (Columns(group="patient"), r"no column patient \(--group\); there is a, b and kind"),
    ):
        with pytest.raises(DataError, match=problem):
            find_listing(photos, columns=columns)
    with pytest.raises(DataError, match="is no table, so that it has no columns"):
        find_listing(None, columns=Columns(group="x"))


def test_files_of_one_name_are_told_apart_or_said(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png", "b/2.png", "b/2.jpg", "c/e\u0301.png", "c/X.png", "c/x.png")
    text = "image,label\n1.png,ant\nb/1.png,bee\n2,bee\n2.jpg,ant\n\u00e9.png,bee\nX.png,ant\n"
    (tmp_path / "birds.csv").write_text(text, encoding="utf-8")
    listing = find_listing(tmp_path / "birds.csv")
    assert listing.problems == [
        "birds.csv, line 2: 1.png may be a/1.png or b/1.png",
        "birds.csv, line 4: 2 may be b/2.jpg or b/2.png",
    ]
    decomposed = unicodedata.normalize("NFD", "c/\u00e9.png")
    assert {*rows_of(listing)} == {"b/1.png", "b/2.jpg", decomposed, "c/X.png"}


def test_absolute_paths_and_paths_above(tmp_path):
    put(tmp_path, "photos/1.png", "photos/2.png")
    table = tmp_path / "tables" / "birds.csv"
    table.parent.mkdir()
    table.write_text(f"image,label\n../photos/1.png,ant\n{tmp_path}/photos/2.png,bee\n{tmp_path}/photos/1.png,ant\n")
    listing = find_listing(table)
    assert [(listing.files / name).read_bytes() for name in rows_of(listing)] == PNGS[:2]


def test_a_table_is_the_same_data_as_a_folder_with_the_same_names(tmp_path):
    names = [f"{label(number)}/{number}.png" for number in range(40)]
    put(tmp_path, *names)
    (tmp_path / "birds.csv").write_text("image,label\n" + "".join(f"{n},{n.split('/')[0]}\n" for n in reversed(names)))
    by_table, by_folder = open_task(tmp_path / "birds.csv", PLAIN), open_task(tmp_path, PLAIN)
    assert by_table.fingerprint() == by_folder.fingerprint()
    assert by_table.classes == CLASSES
    images, split, _ = load_labelled(tmp_path / "birds.csv", PLAIN, CLASSES)
    assert (split, images.paths) == ("test", by_table.test.paths)


def test_no_group_is_on_both_sides(photos):
    (photos / "birds.csv").write_text(lines("image,label,patient", lambda n: f"{n}.png,{label(n)},p{n // 3}"))
    (photos / "images" / "1.png").write_bytes(PNGS[30])  # a copy ties two patients together
    patient_of = {f"images/{number}.png": number // 3 for number in range(40)}
    for seed in range(5):
        task = open_task(photos, PLAIN, columns=Columns(group="patient"), split_seed=seed)
        sides = [{patient_of[path] for path in part.paths} for part in (task.train, task.val, task.test)]
        assert sum(map(len, sides)) == 14
        assert len(set.union(*sides)) == 14
        assert any({0, 10} <= side for side in sides)
        images, _, _ = load_labelled(photos, PLAIN, CLASSES, columns=Columns(group="patient"), split_seed=seed)
        assert images.paths == task.test.paths
    plain = open_task(photos, PLAIN)
    assert {patient_of[path] for path in plain.train.paths} & {patient_of[path] for path in plain.test.paths}


def test_groups_in_given_splits_are_said(photos):
    text = lines("image,label,site,split", lambda n: f"{n}.png,{label(n)},s{n % 5},{'test' if n < 9 else 'train'}")
    (photos / "birds.csv").write_text(text)
    notes = open_task(photos, PLAIN, columns=Columns(group="site")).summary.notes
    assert "Of the groups of test, 4 are in train as well (s0, s2, s3 and 1 more)" in " ".join(notes)  # s1 is in val


def slow_groups(pairs):
    """Connected components by repeated merging."""
    groups = [{name} for name, _ in pairs]
    for _ in groups:
        for one in groups:
            for other in groups:
                keys = [{key for name, key in pairs if name in group} for group in (one, other)]
                if one is not other and keys[0] & keys[1]:
                    one.update(other)
                    other.clear()
    return {frozenset(group) for group in groups if group}


def test_copies_and_groups_are_joined():
    for seed in range(20):
        draw = torch.randint(6, (2, 12), generator=torch.manual_seed(seed)).tolist()
        copies = {str(n): f"c{key}" for n, key in enumerate(draw[0]) if key}
        groups = {str(n): f"g{key}" for n, key in enumerate(draw[1]) if key}
        found = joined(copies, groups)
        together = {frozenset(name for name in found if found[name] == key) for key in found.values()}
        assert together == slow_groups([*copies.items(), *groups.items()])
    assert joined(copies, {}) == copies


def test_a_hundred_thousand_rows_are_listed_in_seconds(tmp_path):
    put(tmp_path, "images/0.png")
    for number in range(1, 1000):
        os.link(tmp_path / "images/0.png", tmp_path / f"images/{number}.png")
    text = "".join(f"images/{n % 1000}.png,{label(n)},x{n}\n" for n in range(100_000))
    (tmp_path / "birds.csv").write_text(f"image,label,note\n{text}")
    started = time.process_time()
    assert len(rows_of(find_listing(tmp_path / "birds.csv"))) == 1000
    assert time.process_time() - started < 20


def test_cells_as_text():
    for value in (0.1, 1e300, -3.5, 2.0, 1e22, 123456789.0):
        assert float(text_of(value)) == value
    assert columns_of([{"a": {"b": 1, "c": None}}, {"a": {}}]) == {"b": ["1", ""], "c": ["", ""], "a": ["", "{}"]}


def test_images_that_are_all_alike_do_not_tie_all_groups_together(tmp_path):
    for number in range(30):
        colour = (40, 40, 220 - number) if number % 2 else (220 - number, 40, 40)
        Image.new("RGB", (16 + number, 16), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "birds.csv").write_text(
        "image,label,site\n" + "".join(f"{n}.png,{label(n)},s{n // 3}\n" for n in range(30))
    )
    columns = Columns(group="site")
    task = open_task(tmp_path, PLAIN, columns=columns)
    assert min(len(task.val), len(task.test)) >= 3
    images, _, _ = load_labelled(tmp_path, PLAIN, CLASSES, columns=columns)
    assert images.paths == task.test.paths
    (tmp_path / "birds.csv").write_text(
        "image,label,site\n" + "".join(f"{n}.png,{label(n)},s{n % 4 // 2}\n" for n in range(30))
    )
    task = open_task(tmp_path, PLAIN, columns=columns)
    assert (task.val, task.test) == (None, None)
    assert "All images are learned from: 2 groups are too few to keep one back." in task.summary.notes


@pytest.mark.parametrize(("written", "wrong"), [("blue;red", False), ("red; blue", False), ("red", True)])
def test_a_copy_with_the_same_tags_in_another_order_is_no_contradiction(photos, written, wrong):
    (photos / "images" / "1.png").write_bytes(PNGS[0])
    tags = ["red;blue", written, *(("red", "blue", "red;blue")[number % 3] for number in range(2, 40))]
    rows = [f"images/{number}.png,{cell}" for number, cell in enumerate(tags)]
    (photos / "tags.csv").write_text("\n".join(["image,tags", *rows]))
    task = open_task(photos / "tags.csv", PLAIN, target="multi-label")
    said = [note for note in task.summary.notes if "byte for byte" in note]
    assert len(said) == wrong
    assert all(
        "1 file is there with two labels, byte for byte (images/0.png and images/1.png)" in note for note in said
    )
