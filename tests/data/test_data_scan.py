import pytest
from PIL import Image

from vprompt.data.scan import list_images
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
