"""One product behind one name: what Python does by default is what the command does."""

import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vprompt
from conftest import run_command, write_classes
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.data.images import decode
from vprompt.utils.errors import DataError, TrainingError, VPromptError

METHODS = {"vpt-deep": vprompt.VPT, "e2vpt": vprompt.E2VPT, "linear": vprompt.Linear}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    write_classes(root, 8)
    return root


@pytest.mark.parametrize(("method", "seed"), [("vpt-deep", 3), ("e2vpt", 1), ("linear", 0)])
def test_python_and_the_command_give_the_same_numbers(photos, tmp_path, method, seed):
    out = tmp_path / "run"
    done = run_command("fit", photos, "--method", method, "--epochs", 2, "--seed", seed, "--out", out, "--json")
    assert done.status == 0, done.err

    data = vprompt.open_data(photos)
    torch.manual_seed(seed)
    model = vprompt.attach(BUNDLED_BACKBONE, METHODS[method](), data=data)
    history = vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=2, seed=seed))

    assert history.rows == done.document["epochs"]
    assert vprompt.evaluate(model, data.test).accuracy == done.document["test_accuracy"]
    theirs = vprompt.load(out)
    assert all(torch.equal(p, model.learned[name]) for name, p in theirs.learned.items())
    assert (theirs.classes, theirs.preprocessing, theirs.method) == (model.classes, model.preprocessing, model.method)


def test_a_kind_of_target_takes_its_names_from_the_data(photos):
    data = vprompt.open_data(photos)
    named = vprompt.attach(BUNDLED_BACKBONE, vprompt.Linear(), data=data, target="single-label")
    assert named.target == data.target
    other = vprompt.attach(BUNDLED_BACKBONE, vprompt.Linear(), data=data, target="regression", num_classes=1)
    assert other.target.names == ("0",)


def test_a_start_that_is_known_to_train_badly_is_said(photos):
    data = vprompt.open_data(photos)

    def trained(head_init, **recipe):
        model = vprompt.attach(BUNDLED_BACKBONE, vprompt.Linear(), data=data, head_init=head_init)
        vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=1, **recipe))
        return model

    with pytest.warns(UserWarning, match="AdamW does not forget them.*head_init='zero'"):
        model = trained("paper")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained("zero")
        trained("paper", optimizer="sgd", lr=0.1)
        vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=1))  # it has left that start


# ── values that fit their type and nothing else ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "make",
    [
        lambda: vprompt.Recipe(epochs=2.5),
        lambda: vprompt.Recipe(batch_size=2.5),
        lambda: vprompt.Recipe(batch_size=10**30),
        lambda: vprompt.Recipe(epochs="3"),
        lambda: vprompt.Recipe(epochs=True),
        lambda: vprompt.Recipe(seed=0.5),
        lambda: vprompt.Recipe(lr=1e38),
        lambda: vprompt.Recipe(lr="fast"),
        lambda: vprompt.Recipe(weight_decay=1e38),
        lambda: vprompt.Recipe(weight_decay=float("inf")),
        lambda: vprompt.Recipe(workers=10**6),
        lambda: vprompt.Recipe(grad_checkpointing="no"),
        lambda: vprompt.VPT(2.5),
        lambda: vprompt.VPT("5"),
        lambda: vprompt.VPT(10**12),
        lambda: vprompt.VPT(5, depth="shadow"),
        lambda: vprompt.VPT(5, dropout="much"),
        lambda: vprompt.E2VPT(5, 2.5),
        lambda: vprompt.E2VPT(5, 10**12),
        lambda: vprompt.LoRA(rank=2.5),
        lambda: vprompt.LoRA(alpha=float("nan")),
        lambda: vprompt.Adapter(reduction="8"),
        lambda: vprompt.Partial(blocks=1.5),
        lambda: vprompt.MLP(layers=2.5),
        lambda: vprompt.Side(width=None),
        lambda: vprompt.attach("test_vit", num_classes=2.5, pretrained=False),
        lambda: vprompt.attach("test_vit", num_classes=10**12, pretrained=False),
        lambda: vprompt.attach("test_vit", num_classes="3", pretrained=False),
        lambda: vprompt.attach("test_vit", classes="ant", pretrained=False),
        lambda: vprompt.attach("test_vit", pretrained=False),
        lambda: vprompt.attach("test_vit", num_classes=3, classes=["a", "b"], pretrained=False),
    ],
)
def test_values_that_cannot_be_are_one_sentence(make):
    with pytest.raises(VPromptError) as error:
        make()
    assert str(error.value).endswith(".")


def test_numbers_of_numpy_are_numbers():
    assert vprompt.VPT(np.int64(5)) == vprompt.VPT(5)
    assert type(vprompt.Recipe(epochs=np.int32(3), lr=np.float32(0.5)).epochs) is int
    assert type(vprompt.Recipe(lr=1).lr) is float


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_takes_ordinary_images(dtype):
    model = vprompt.attach(timm.create_model("test_vit", img_size=32).to(dtype), vprompt.VPT(2), num_classes=2)
    data = torch.utils.data.TensorDataset(torch.randn(6, 3, 32, 32), torch.arange(6) % 2)
    assert vprompt.evaluate(model, data).images == 6
    assert len(vprompt.score(model, data)) == 6
    if dtype == torch.float16:
        with pytest.raises(TrainingError, match="float16, too coarse"):
            vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=1))
    else:
        assert len(vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=1, cache_gb=0)).rows) == 1
        assert len(vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=1)).rows) == 1


# ── predictions ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def model(photos):
    torch.manual_seed(0)
    data = vprompt.open_data(photos)
    model = vprompt.attach(BUNDLED_BACKBONE, vprompt.VPT(2), data=data, head_init="paper")
    return model.train()


def wanted(model, *paths):
    """By hand: decoded, normalised, run."""
    pixels = torch.stack([decode(path, model.preprocessing) for path in paths])
    with torch.no_grad():
        return model.copy().eval()(model.preprocessing.normalise(pixels)).softmax(1)


def test_every_form_of_an_image_gives_the_same(photos, model):
    path = sorted(photos.glob("red/*"))[0]
    image = Image.open(path)
    array = np.asarray(image.convert("RGB"))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = wanted(model, path)
    for form in (path, str(path), image, array, tensor, [path], array[None], tensor[None], (image,)):
        found = model.predict(form)
        torch.testing.assert_close(found.probabilities, expected)
        assert found.labels == tuple(expected.argmax(1).tolist())
        assert found.class_names == (model.classes[found.labels[0]],)
    assert model.training  # as it was


def test_many_images_in_order_and_in_batches(photos, model):
    paths = sorted(photos.rglob("*.png"))
    mixed = [paths[0], Image.open(paths[1]), [str(paths[2]), np.asarray(Image.open(paths[3]))], paths[4]]
    torch.testing.assert_close(model.predict(mixed, batch_size=2).probabilities, wanted(model, *paths[:5]))
    assert len(model.predict(photos)) == len(paths)
    torch.testing.assert_close(model.fold().predict(paths[:3]).probabilities, wanted(model, *paths[:3]))


def test_an_upright_image(model, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    found = model.predict([tmp_path / "turned.png", Image.open(tmp_path / "turned.png")]).probabilities
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    "images",
    [
        [],
        3,
        None,
        {"a": 1},
        b"bytes",
        "no/such.png",
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((1, 1, 8, 8, 3), np.uint8),
        torch.zeros(3, 8, 8),
        [np.zeros((8, 8), np.uint8), "no/such.png"],
    ],
)
def test_what_is_no_image_is_one_sentence(model, images):
    with pytest.raises(DataError) as error:
        model.predict(images)
    assert str(error.value).endswith(".")


def test_a_damaged_pil_image(photos, model, tmp_path):
    data = sorted(photos.rglob("*.png"))[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cannot be read"):
        model.predict(Image.open(tmp_path / "cut.png"))
    with pytest.raises(DataError, match=r"cut.png"):
        model.predict(tmp_path / "cut.png")


def test_a_model_says_in_five_lines_what_it_is():
    names = ["ant", "b\nee", "c" * 300, "dog", "eel", "fox"]
    model = vprompt.attach("bundled", vprompt.VPT(3), classes=names)
    lines = repr(model).splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) < 120
    assert "vpt-deep on vprompt_vit_tiny_patch8_64" in lines[0]
    assert "36 prompts in 12 blocks (3 in each)" in lines[1]
    assert f"{model.num_learned:,} numbers" in lines[2]
    assert "6 classes (ant, b ee" in lines[3]
    assert "64×64 pixels" in lines[4]
    fewer = model.keep([torch.arange(block % 2) for block in range(12)])
    assert "6 prompts in 12 blocks (0 1 0 1 0 1 0 1 0 1 0 1)" in repr(fewer)
    assert "learned" not in repr(model.fold())
