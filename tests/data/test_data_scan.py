import pytest
from PIL import Image

from vprompt.data.scan import in_words, list_images
from vprompt.utils.errors import DataError


@pytest.fixture
def pictures(tmp_path):
    for name in ("b.png", "a.JPG", "deep/c.webp", "deep/.hidden.png", "deep/notes.txt", "photo.raw"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix in (".txt", ".raw"):
            path.write_text("x")
        else:
            Image.new("L", (2, 2)).save(path)
    return tmp_path


def test_files_stay_in_order_and_folders_are_sorted(pictures):
    found = list_images([pictures / "b.png", pictures])
    names = [path.relative_to(pictures).as_posix() for path in found]
    assert names == ["b.png", "a.JPG", "b.png", "deep/c.webp"]


def test_a_file_is_taken_by_any_name(pictures):
    assert list_images([str(pictures / "photo.raw")]) == [pictures / "photo.raw"]


def test_missing_path_and_folder_without_images(pictures):
    with pytest.raises(DataError, match=r"nothing\.png does not exist"):
        list_images([pictures / "b.png", pictures / "nothing.png"])
    (pictures / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no image"):
        list_images([pictures / "empty"])


def test_link_loops_end(pictures):
    (pictures / "deep" / "up").symlink_to(pictures)
    (pictures / "deep" / "again").symlink_to(pictures / "deep")
    assert len(list_images([pictures])) == 3


def test_what_lies_beside_images_is_taken_up(pictures):
    (pictures / "deep" / "@eaDir" / "c.webp").mkdir(parents=True)
    (pictures / "IMG_1.HEIC").write_bytes(b"x")
    (pictures / "README").write_text("x")
    passed_over = {}
    assert len(list_images([pictures], passed_over)) == 3
    assert {reason: len(paths) for reason, paths in passed_over.items()} == {
        ".heic": 1,
        ".raw": 1,
        ".txt": 1,
        "without an ending": 1,
        "hidden": 1,
        "made by a system": 1,
    }
    words = in_words(passed_over)
    assert words.startswith("1 .heic file (convert them to JPEG), 1 .")
    assert words.endswith(("1 hidden", "1 without an ending", "(@eaDir)"))
    (pictures / "alone").mkdir()
    (pictures / "IMG_1.HEIC").rename(pictures / "alone" / "IMG_1.HEIC")
    with pytest.raises(DataError, match=r"alone has no image \(there are 1 \.heic file"):
        list_images([pictures / "alone"])
