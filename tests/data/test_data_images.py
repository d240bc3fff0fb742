import io
import os
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vprompt.data.images import MAX_PIXELS, bits_used, decode, quiet_pillow, try_decode
from vprompt.data.preprocessing import Preprocessing
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

HEIGHT, WIDTH = 6, 9


def plain(size=(HEIGHT, WIDTH), **options):
    return Preprocessing(size=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), **options)


def noise(*shape, high=256, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data, **options):
    """Decoded at the size the image has, so that nothing is resized: (H, W, 3)."""
    decoded = decode(data, plain(**options))
    assert decoded.dtype == torch.uint8
    assert decoded.is_contiguous()
    return decoded.permute(1, 2, 0).numpy()


def grey(values):
    return np.repeat(np.asarray(values)[..., None], 3, axis=2)


RGB = noise(HEIGHT, WIDTH, 3)
GREY = noise(HEIGHT, WIDTH)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_lossless_rgb_comes_back_exactly(format):
    options = {"lossless": True} if format == "WEBP" else {}
    assert np.array_equal(pixels(saved(Image.fromarray(RGB), format, **options)), RGB)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_grey_becomes_three_equal_channels(format):
    assert np.array_equal(pixels(saved(Image.fromarray(GREY), format)), grey(GREY))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM"])
def test_one_bit_becomes_black_and_white(format):
    bits = GREY > 127
    assert np.array_equal(pixels(saved(Image.fromarray(bits), format)), grey(bits * np.uint8(255)))


def palette_image(entries=4):
    index = noise(HEIGHT, WIDTH, high=entries)
    colours = noise(entries, 3, seed=1)
    image = Image.frombytes("P", (WIDTH, HEIGHT), index.tobytes())
    image.putpalette(colours.ravel().tolist())
    return image, index, colours


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF"])
def test_palette_without_transparency(format):
    image, index, colours = palette_image()
    assert np.array_equal(pixels(saved(image, format)), colours[index])


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palette_with_one_transparent_entry_shows_white_there(format):
    image, index, colours = palette_image()
    expected = colours[index]
    expected[index == 2] = 255
    assert np.array_equal(pixels(saved(image, format, transparency=2)), expected)


def over_white(colours, alpha):
    share = alpha.astype(float)[..., None] / 255
    return colours * share + 255 * (1 - share)


def test_palette_with_alpha_per_entry_is_blended():
    image, index, colours = palette_image()
    alpha = np.array([0, 80, 160, 255], np.uint8)
    found = pixels(saved(image, "PNG", transparency=alpha.tobytes()))
    assert np.abs(found - over_white(colours[index], alpha[index])).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_rgba_is_blended_with_white(format):
    alpha = noise(HEIGHT, WIDTH, seed=2)
    alpha[0, 0], alpha[0, 1] = 0, 255
    image = Image.fromarray(np.dstack([RGB, alpha]))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    found = pixels(saved(image, format, **options))
    assert np.abs(found - over_white(RGB, alpha)).max() <= 1
    assert found[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(found[0, 1], RGB[0, 1])


def test_grey_with_alpha_is_blended_with_white():
    alpha = noise(HEIGHT, WIDTH, seed=2)
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    assert np.abs(pixels(saved(image, "PNG")) - over_white(grey(GREY), alpha)).max() <= 1


KEYED = {
    "1": (GREY > 127, grey((GREY > 127) * np.uint8(255)), 0),
    "L": (GREY, grey(GREY), int(GREY[2, 3])),
    "RGB": (RGB, RGB, tuple(RGB[2, 3].tolist())),
    "I;16": (GREY.astype(np.uint16) * 257, grey(GREY), int(GREY[2, 3]) * 257),
}


@pytest.mark.parametrize("mode", KEYED)
def test_colour_key_becomes_white(mode):
    stored, expected, key = KEYED[mode]
    image = Image.fromarray(stored)
    assert image.mode == mode
    keyed = (stored.reshape(HEIGHT, WIDTH, -1) == np.asarray(key)).all(2)
    assert keyed.any()
    expected = np.where(keyed[..., None], 255, expected)
    assert np.array_equal(pixels(saved(image, "PNG", transparency=key)), expected)


def test_cmyk():
    inks = noise(HEIGHT, WIDTH, 4)
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    found = pixels(saved(Image.fromarray(inks, "CMYK"), "TIFF"))
    assert np.abs(found - expected).max() <= 1
    flat = Image.new("CMYK", (16, 16), (200, 100, 0, 50))
    found = pixels(saved(flat, "JPEG", quality=95), size=(16, 16))
    assert np.abs(found - np.array([44, 124.6, 205])).max() <= 3


def sixteen_bit_files(values):
    big = b"P5\n%d %d\n65535\n" % (WIDTH, HEIGHT) + values.astype(">u2").tobytes()
    yield "PGM", big
    yield "PNG", saved(Image.fromarray(values), "PNG")
    yield "TIFF", saved(Image.fromarray(values), "TIFF")
    yield "TIFF, big-endian", saved(Image.frombytes("I;16B", (WIDTH, HEIGHT), values.astype(">u2").tobytes()), "TIFF")
    yield "TIFF, 32 bits", saved(Image.fromarray(values.astype(np.int32)), "TIFF")


def test_sixteen_bits_are_scaled_not_clipped():
    values = noise(HEIGHT, WIDTH, high=65536, dtype=np.uint16)
    values[0, :5] = [0, 128, 129, 65406, 65535]
    expected = np.floor(values / 257 + 0.5)
    assert expected[0, :5].tolist() == [0, 0, 1, 254, 255]
    for name, data in sixteen_bit_files(values):
        assert np.array_equal(pixels(data), grey(expected)), name


def test_widened_bytes_come_back():
    values = np.resize(np.arange(256), (HEIGHT, WIDTH)).astype(np.uint16) * 257
    assert np.array_equal(pixels(saved(Image.fromarray(values), "PNG")), grey(values // 257))


@pytest.mark.parametrize("value", [-1, 65536])
def test_wider_integers_are_refused(value):
    values = np.full((HEIGHT, WIDTH), 7, np.int32)
    values[1, 1] = value
    with pytest.raises(DataError, match="outside 0 to 65535"):
        pixels(saved(Image.fromarray(values), "TIFF"))


def test_float_pixels():
    unit = np.random.default_rng(0).random((HEIGHT, WIDTH), np.float32)
    unit[0, :2] = [0, 1]
    tiff = saved(Image.fromarray(unit), "TIFF")
    assert np.array_equal(pixels(tiff), grey(np.rint(unit * 255)))
    assert np.array_equal(pixels(saved(Image.fromarray(GREY.astype(np.float32)), "TIFF")), grey(GREY))


@pytest.mark.parametrize("value", [-0.1, 255.5, float("nan"), float("inf")])
def test_float_pixels_on_an_unknown_scale_are_refused(value):
    values = np.full((HEIGHT, WIDTH), 0.5, np.float32)
    values[2, 2] = value
    with pytest.raises(DataError, match="float pixels"):
        pixels(saved(Image.fromarray(values), "TIFF"))


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(Image.fromarray(RGB), format, exif=exif, **options)
    expected = TURNS[orientation](RGB)
    assert np.array_equal(pixels(data, size=expected.shape[:2]), expected)


def test_exif_orientation_of_a_drafted_jpeg():
    ramp = np.zeros((400, 800, 3), np.uint8)
    ramp[:, 400:] = 255  # right half white; orientation 6 turns right to bottom
    exif = Image.Exif()
    exif[0x0112] = 6
    found = pixels(saved(Image.fromarray(ramp), "JPEG", exif=exif), size=(16, 8))
    assert found[:7].max() < 20
    assert found[9:].min() > 235


def test_damaged_exif_does_not_lose_the_image():
    data = saved(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert np.array_equal(pixels(data), RGB)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame(format):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as check:
        assert check.n_frames == 3
    assert np.array_equal(pixels(data), np.array(frames[0]))


def smooth(height, width):
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x + 7 * y)], 2) * 255


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_drafted_jpeg_is_close_to_the_full_one(resize, interpolation):
    image = Image.fromarray(smooth(500, 700).astype(np.uint8))
    options = {"size": (32, 32), "resize": resize, "interpolation": interpolation}
    jpeg = pixels(saved(image, "JPEG", quality=95), **options).astype(int)
    png = pixels(saved(image, "PNG"), **options).astype(int)
    assert np.abs(jpeg - png).max() <= 4
    assert np.abs(jpeg - png).mean() < 1


def test_nearest_takes_pixels_of_the_full_jpeg():
    data = saved(Image.fromarray(noise(160, 160, 3)), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        full = np.array(image)
    assert np.array_equal(pixels(data, size=(16, 16), interpolation="nearest"), full[5::10, 5::10])


def test_squash_averages_fine_detail_away():
    board = (np.indices((64, 96)).sum(0) % 2 * 255).astype(np.uint8)
    found = pixels(saved(Image.fromarray(board), "PNG"), size=(8, 12), interpolation="bilinear")
    assert found.shape == (8, 12, 3)
    assert np.abs(found.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (64, 64), (20, 50), (37, 331)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_is_resize_of_the_short_side_then_centre_crop(shape, interpolation):
    height, width = shape
    image = Image.fromarray(smooth(height, width).astype(np.uint8))
    short = 64  # round(56 / 0.875)
    scaled = (short, short * height // width) if width < height else (short * width // height, short)
    left, top = round((scaled[0] - 56) / 2), round((scaled[1] - 56) / 2)
    method = Image.Resampling[interpolation.upper()]
    expected = np.asarray(image.resize(scaled, method).crop((left, top, left + 56, top + 56)))
    found = pixels(saved(image, "PNG"), size=(56, 56), resize="crop", interpolation=interpolation)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_crop_of_a_ribbon_needs_no_giant_image():
    # Resized whole, it would have 2.56 million x 256 pixels; its centre is an edge from black to white.
    ribbon = np.zeros((2, 20_000), np.uint8)
    ribbon[:, 10_000:] = 255
    found = pixels(saved(Image.fromarray(ribbon), "PNG"), size=(224, 224), resize="crop", interpolation="bilinear")
    assert found[:, 40].max() < 5
    assert found[:, -40].min() > 250
    assert np.abs(found[:, ::-1].astype(int) - (255 - found)).max() <= 2


def test_unknown_interpolation():
    with pytest.raises(DataError, match="'cubic' is not known"):
        decode(saved(Image.fromarray(RGB), "PNG"), plain(interpolation="cubic"))


def test_path_bytes_and_open_file_are_the_same(tmp_path):
    path = tmp_path / "a b\u00e9\u732b.png"
    Image.fromarray(RGB).save(path)
    data = path.read_bytes()
    for source in (path, str(path), data, io.BytesIO(data)):
        assert np.array_equal(pixels(source), RGB)
    with path.open("rb") as file:
        assert np.array_equal(pixels(file), RGB)


def test_the_content_decides_not_the_suffix(tmp_path):
    path = tmp_path / "really_png.jpg"
    Image.fromarray(RGB).save(path, "PNG")
    assert np.array_equal(pixels(path), RGB)


def png_header(width, height, colour=2):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 20_000, 100_000])
def test_bombs_are_refused_by_their_header(tmp_path, side):
    assert side**2 > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(DataError, match=r"bomb\.png is too large .*100 million") as raised:
        decode(path, plain())
    assert "\n" not in str(raised.value)


def test_the_largest_size_that_is_no_bomb_fails_only_for_its_missing_data():
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(png_header(10_000, 1_000), plain())


def broken_files(folder):
    jpeg = saved(Image.fromarray(noise(64, 64, 3)), "JPEG")
    png = saved(Image.fromarray(noise(64, 64, 3)), "PNG")
    yield "truncated.jpg", jpeg[: len(jpeg) // 2], "cannot be decoded: .*truncated"
    yield "truncated.png", png[: len(png) // 2], "cannot be decoded"
    yield "header.jpg", jpeg[:10], "not an image|cannot be decoded"
    yield "zero.jpg", b"", r"is empty \(0 bytes\)"
    yield "text.jpg", b"<html>not found</html>", "is not an image"
    yield "script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"


@pytest.mark.parametrize("name", ["photo.HEIC", "photo.jpg"])
def test_heic_is_called_what_it_is(tmp_path, name):
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300)
    (tmp_path / name).write_bytes(data)
    for source in (tmp_path / name, data):
        with pytest.raises(DataError, match="is a HEIC photo, which is not read here"):
            decode(source, plain())


def test_broken_files_are_named_in_one_sentence(tmp_path):
    for name, data, reason in broken_files(tmp_path):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(DataError, match=reason) as raised:
            decode(path, plain())
        message = str(raised.value)
        assert message.startswith(f"{path} ")
        assert message.endswith("; replace it or leave it out.")
        assert "\n" not in message


def test_things_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    cases = {
        "missing.png": "does not exist",
        "dangling.png": "does not exist",
        "pipe.png": "is not a regular file",
        "loop.png": "cannot be read: too many levels",
        ".": "is a folder",
    }
    for name, reason in cases.items():
        with pytest.raises(DataError, match=reason):
            decode(tmp_path / name, plain())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path):
    path = tmp_path / "secret.png"
    Image.fromarray(RGB).save(path)
    path.chmod(0)
    with pytest.raises(DataError, match=r"secret\.png cannot be read: permission denied"):
        decode(path, plain())


def test_bytes_are_named_as_asked():
    with pytest.raises(DataError, match=r"^upload 3 is empty"):
        decode(b"", plain(), name="upload 3")
    with pytest.raises(DataError, match=r"^the image is empty"):
        decode(b"", plain())


def test_file_names_that_are_no_text_are_escaped():
    assert printable("a\udcffb\n\x1b[31m \u732b\u00e9") == "a\\udcffb\\n\\x1b[31m \u732b\u00e9"
    with pytest.raises(DataError) as raised:
        decode("/nowhere/\udcff.png", plain())
    assert str(raised.value).encode()


SAMPLES = {
    format: saved(Image.fromarray(noise(24, 24, 3)), format) for format in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")
}
SAMPLES["TIFF, compressed"] = saved(Image.fromarray(noise(24, 24, 3)), "TIFF", compression="tiff_lzw")


@given(
    format=st.sampled_from(sorted(SAMPLES)),
    keep=st.floats(0, 1),
    edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_gives_pixels_or_a_reason_and_prints_nothing(capfd, format, keep, edits):
    data = bytearray(SAMPLES[format])
    for place, value in edits:
        data[int(place * len(data))] = value
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = try_decode(bytes(data[: int(keep * len(data)) + 1]), plain())
    assert isinstance(found, str) or found.shape == (3, HEIGHT, WIDTH)
    assert said == []
    printed = capfd.readouterr()
    # libtiff, for compressed files, writes to standard error by itself.
    assert printed == ("", "") or (format == "TIFF, compressed" and printed.out == "")


def test_warnings_of_pillow_are_not_heard():
    data = png_header(9_700, 9_700, colour=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(data)):
            assert [warning.category for warning in said] == [Image.DecompressionBombWarning]
        said.clear()
        assert isinstance(try_decode(data, plain()), str)
    assert said == []


def test_silence_ends_with_the_block():
    before = list(warnings.filters)
    with quiet_pillow():
        with quiet_pillow():
            pass
        assert warnings.filters != before
    assert warnings.filters == before


# ── metadata of a PNG ────────────────────────────────────────────────────────────────────────────────────────────────


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_chunks(png, *chunks, last=False):
    """A PNG file with more chunks behind its header, or before its end."""
    place = png.index(b"IEND") - 4 if last else 33
    return png[:place] + b"".join(chunk(name, body) for name, body in chunks) + png[place:]


MEGABYTES = zlib.compress(bytes(3 * 2**20))
METADATA = {
    "profile": [(b"iCCP", b"icc\0\0" + MEGABYTES)],
    "text": [(b"zTXt", b"workflow\0\0" + MEGABYTES)],
    "XMP": [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + MEGABYTES)],
    "many texts": [(b"zTXt", b"%d\0\0" % n + zlib.compress(bytes(2**20 - 9))) for n in range(70)],
    "all of it": [(b"iCCP", b"icc\0\0" + MEGABYTES), (b"zTXt", b"a\0\0" + MEGABYTES)],
}


@pytest.mark.parametrize(
    ("kind", "last"),
    [(kind, False) for kind in METADATA] + [(kind, True) for kind in ("text", "XMP", "many texts")],  # no profile
)
def test_large_metadata_do_not_cost_the_pixels(kind, last):
    data = with_chunks(saved(Image.fromarray(RGB), "PNG"), *METADATA[kind], last=last)
    assert np.array_equal(pixels(data), RGB)
    if not last:
        assert try_decode(data, None) is None
    found = try_decode(data[: data.index(b"IDAT") + 40], plain())
    assert isinstance(found, str)
    assert "MAX_TEXT" not in found


def test_small_metadata_still_turn_the_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = with_chunks(saved(Image.fromarray(RGB), "PNG", exif=exif), *METADATA["text"])
    assert np.array_equal(pixels(data, size=(WIDTH, HEIGHT)), np.rot90(RGB, -1))


# ── TIFF files that Pillow knows no mode for ─────────────────────────────────────────────────────────────────────────


def tiff(array, *, photometric=2, packed=False, predictor=False, planar=False, rows=None, order="<", tags=None):
    """A TIFF file of (H, W, bands), written from the specification; `tags` holds others, each (type, values)."""
    height, width, bands = array.shape
    rows = rows or height
    strips = []
    for plane in [array[..., band : band + 1] for band in range(bands)] if planar else [array]:
        for top in range(0, height, rows):
            part = plane[top : top + rows].copy()
            if predictor:
                part[:, 1:] = part[:, 1:] - plane[top : top + rows, :-1]
            raw = part.astype(part.dtype.newbyteorder(order)).tobytes()
            strips.append(zlib.compress(raw) if packed else raw)
    offsets = [8 + sum(map(len, strips[:number])) for number in range(len(strips))]
    short, long = 3, 4
    entries = {
        256: (short, [width]),
        257: (short, [height]),
        258: (short, [array.dtype.itemsize * 8] * bands),
        259: (short, [8 if packed else 1]),
        262: (short, [photometric]),
        273: (long, offsets),
        277: (short, [bands]),
        278: (short, [rows]),
        279: (long, list(map(len, strips))),
        284: (short, [2 if planar else 1]),
        317: (short, [2 if predictor else 1]),
        339: (short, [{"u": 1, "i": 2, "f": 3}[array.dtype.kind]] * bands),
        **(tags or {}),
    }
    start = 8 + sum(map(len, strips))
    after, directory, beyond = start + 6 + 12 * len(entries), struct.pack(order + "H", len(entries)), b""
    for number, (kind, values) in sorted(entries.items()):
        raw = struct.pack(f"{order}{len(values)}{'HI'[kind - short]}", *values)
        if len(raw) > 4:
            raw, beyond = struct.pack(order + "I", after + len(beyond)), beyond + raw
        directory += struct.pack(order + "HHI", number, kind, len(values)) + raw.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + b"".join(strips) + directory + bytes(4) + beyond


FORMS = {
    "plain": {},
    "big-endian": {"order": ">"},
    "strips": {"rows": 4},
    "packed": {"packed": True, "rows": 4},
    "differences": {"packed": True, "predictor": True, "order": ">"},
    "planes": {"planar": True, "packed": True, "rows": 4},
}
SAMPLES_OF = {
    "uint16": (noise(HEIGHT, WIDTH, 3) * np.uint16(257), RGB),
    "uint32": (RGB.astype(np.uint32) * 257, RGB),
    "float32": ((RGB / 255).astype(np.float32), RGB),
    "float64": (RGB / 255, RGB),
    "float16": (RGB.astype(np.float16), RGB),
    "float64, grey": (RGB[..., :1] / 255, np.repeat(RGB[..., :1], 3, axis=2)),
    "int32": (RGB.astype(np.int32) * 257, RGB),
}


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (kind, form)
        for kind, (samples, _) in SAMPLES_OF.items()
        for form in FORMS
        if (form, samples.dtype.kind) != ("differences", "f")  # of floats, TIFF has no such differences
    ],
)
def test_tiff_of_many_bits_a_sample(kind, form):
    samples, expected = SAMPLES_OF[kind]
    # Many writers call the three bands grey.
    for photometric in {2, 1} if samples.shape[2] == 3 else {1}:
        assert np.array_equal(pixels(tiff(samples, photometric=photometric, **FORMS[form])), expected)


def test_tiff_with_opacity_and_an_orientation():
    alpha = noise(HEIGHT, WIDTH, seed=2)
    deep = np.dstack([RGB, alpha]) * np.uint16(257)
    found = pixels(tiff(deep, tags={338: (3, [2]), 274: (3, [6])}), size=(WIDTH, HEIGHT))
    assert np.abs(found - np.rot90(over_white(RGB, alpha), -1)).max() <= 1
    unspecified = pixels(tiff(deep, tags={338: (3, [0])}))
    assert np.array_equal(unspecified, RGB)


@pytest.mark.parametrize(
    ("samples", "photometric", "words"),
    [
        (np.zeros((4, 4, 13), np.uint16), 1, "holds 13 bands of 16-bit integers"),
        (np.zeros((4, 4, 4), np.float32), 1, "holds 4 bands of 32-bit floats"),
        (np.zeros((4, 4, 7), np.uint8), 1, "holds 7 bands of 8-bit integers"),
        (np.full((4, 4, 3), np.nan, np.float32), 2, "float pixels outside"),
        (np.full((4, 4, 3), 9000, np.float32), 2, "float pixels outside"),
        (np.full((4, 4, 3), -1, np.int16), 2, "outside 0 to 65535"),
    ],
)
def test_tiff_that_is_no_picture_is_refused_by_what_it_is(samples, photometric, words):
    found = try_decode(tiff(samples, photometric=photometric), plain())
    assert isinstance(found, str)
    assert words in found
    assert "damaged" not in found


def test_damaged_and_giant_tiffs_are_refused():
    whole = tiff(np.zeros((40, 40, 3), np.float32), packed=True)
    count = struct.pack("<HHII", 279, 4, 1, len(zlib.compress(bytes(19200))))
    cut = whole.replace(count, struct.pack("<HHII", 279, 4, 1, 9))
    assert cut != whole
    assert isinstance(try_decode(cut, plain()), str)
    assert isinstance(try_decode(whole[:40], plain()), str)
    for place in (20_000, 200):  # in the pixels, where they come last, and of one byte alone
        late = tiff(np.ones((40, 40, 3), np.float32), tags={273: (4, [place])})
        assert "cut off" in try_decode(late, plain())
    giant = tiff(np.zeros((4, 4, 3), np.float32), tags={256: (3, [60_000]), 257: (3, [60_000])})
    assert "too large" in try_decode(giant, plain())
    greedy = tiff(np.ones((4, 4, 3), np.float32), tags={279: (4, [2**31])})
    assert "packed in a way" in try_decode(greedy, plain())
    tiles = {322: (3, [60_000]), 323: (3, [60_000]), 324: (4, [8]), 325: (4, [192])}
    beyond = tiff(np.ones((4, 4, 3), np.float32), tags=tiles)
    assert "packed in a way" in try_decode(beyond, plain())
    inside = tiff(np.ones((4, 4, 3), np.float32), tags={259: (3, [7])})
    assert "packed in a way" in try_decode(inside, plain())


def test_without_tifffile_a_file_is_named_by_what_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    found = try_decode(tiff(np.zeros((4, 4, 3), np.float32)), plain())
    assert "3 bands of 32-bit floats" in found
    assert "pip install 'vprompt[tiff]'" in found
    assert "holds 13 bands of 16-bit integers" in try_decode(
        tiff(np.zeros((4, 4, 13), np.uint16), photometric=1), plain()
    )


# ── white of images of fewer bits than 16 ────────────────────────────────────────────────────────────────────────────


def twelve_bits(bands=1):
    values = noise(HEIGHT, WIDTH, bands, high=4096, dtype=np.uint16)
    values[0, 0], values[0, 1] = 4095, 0
    return values


def deep_png(values):
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("write", [deep_png, lambda values: tiff(values, photometric=2 if values.shape[2] == 3 else 1)])
def test_white_is_what_the_preprocessing_says(write, bands):
    values = twelve_bits(bands)
    data = write(values)
    assert bits_used(data) == 12
    expected = np.floor(values / 4095 * 255 + 0.5)
    assert np.array_equal(pixels(data, white=4095), np.broadcast_to(expected, (HEIGHT, WIDTH, 3)))
    assert pixels(data).max() <= 16
    brighter = write(np.full_like(values, 5000))
    assert (pixels(brighter, white=4095) == 255).all()


def npy(values):
    np.save(buffer := io.BytesIO(), values)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_arrays_say_what_is_white_as_other_files_do(dtype):
    values = twelve_bits(3)
    data = npy(values.astype(dtype))
    assert bits_used(data) == 12
    assert np.array_equal(pixels(data, white=4095), pixels(deep_png(values), white=4095))
    assert [bits_used(npy(values.astype(other))) for other in (np.uint8, np.float32)] == [0, 0]


def test_alpha_is_no_question_of_white():
    values = twelve_bits(3)
    clear = np.concatenate([values, np.full((HEIGHT, WIDTH, 1), 65535, np.uint16)], 2)
    assert bits_used(deep_png(clear)) == 12
    grey = np.concatenate([values[:, :, :1], clear[:, :, 3:]], 2)
    data = deep_png(grey)
    assert pixels(data, white=4095).shape == (HEIGHT, WIDTH, 3)
    assert bits_used(data) == 0


def test_white_is_what_the_file_says():
    values = twelve_bits()
    expected = np.broadcast_to(np.floor(values / 4095 * 255 + 0.5), (HEIGHT, WIDTH, 3))
    packed = np.unpackbits(values[..., 0].astype(">u2").view(np.uint8).reshape(HEIGHT, WIDTH, 2), axis=2)[..., 4:]
    twelve = np.packbits(packed.reshape(HEIGHT, -1), axis=1)  # 12 bits each, rows of whole bytes
    plain12 = tiff(twelve[..., None], photometric=1, tags={256: (3, [WIDTH]), 258: (3, [12])})
    for data in (
        tiff(values, photometric=1, tags={281: (3, [4095])}),
        tiff(values, photometric=1, tags={341: (3, [4000])}),
        plain12,
    ):
        assert bits_used(data) == 0
        for white in (65535, 255):
            assert np.array_equal(pixels(data, white=white), expected)


def test_bits_are_no_question_for_other_images():
    others = [saved(Image.fromarray(RGB), "PNG"), saved(Image.fromarray(RGB), "JPEG"), b"", b"nothing"]
    others += [tiff(np.zeros((4, 4, 13), np.uint16), photometric=1), tiff(np.zeros((4, 4, 3), np.float32))]
    assert [bits_used(data) for data in others] == [0] * len(others)
    assert bits_used(deep_png(np.full((HEIGHT, WIDTH, 3), 65535, np.uint16))) == 16
