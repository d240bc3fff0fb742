"""Segmentation against loops over pixels: losses, figures, boundaries, intervals, answers, labels, documents."""

import math
import random

import msgspec
import pytest
import torch

from vprompt.model.predict import mask_of
from vprompt.tasks.base import CELLS, TARGETS, from_document, kind_of, to_document
from vprompt.tasks.segmentation import COLOUR, IGNORED, Segmentation, histogram, resized, spelled
from vprompt.utils.errors import VPromptError

RED, BLUE = COLOUR | 0xFF0000, COLOUR | 0x0000FF
KINDS = [
    Segmentation(names=("ground", "tree", "sky")),
    Segmentation(names=("off", "on"), codes=(0, 255), ignored=()),
    Segmentation(names=("a", "b", "c"), codes=(0, RED, BLUE), ignored=(), head="conv", dice=True),
    Segmentation(names=("a", "b"), codes=(300, 65535), ignored=(7, 255), head="multi"),
]
GRIDS = [
    # images, classes, height, width, share of void, classes that are never true
    (1, 2, 1, 1, 0.0, ()),
    (2, 2, 5, 7, 0.2, ()),
    (3, 3, 8, 6, 0.5, (1,)),
    (2, 5, 9, 4, 0.1, (0, 4)),
    (4, 1, 3, 3, 0.3, ()),
    (2, 3, 6, 6, 1.0, ()),  # nothing counts
]


def drawn(images, classes, height, width, void, absent, seed=0):
    """Logits, and masks in patches, as masks are."""
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, height, width, generator=chance, dtype=torch.float64)
    there = [number for number in range(classes) if number not in absent]
    coarse = torch.randint(len(there), (images, (height + 1) // 2, (width + 1) // 2), generator=chance)
    masks = torch.tensor(there)[coarse].repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width].clone()
    masks[torch.rand(masks.shape, generator=chance) < void] = IGNORED
    return logits, masks


def pixels_of(mask):
    height, width = mask.shape
    return [(y, x) for y in range(height) for x in range(width)]


def slow_loss(logits, mask, *, dice, smoothing=0.0):
    """Of one image: (K, H, W) and (H, W)."""
    classes = len(logits)
    counted = [(y, x) for y, x in pixels_of(mask) if int(mask[y, x]) != -1]
    entropy, shares = 0.0, {}
    for y, x in counted:
        exps = [math.exp(float(logits[k, y, x])) for k in range(classes)]
        shares[y, x] = [value / sum(exps) for value in exps]
        for k in range(classes):
            wanted = (1 - smoothing) * (k == int(mask[y, x])) + smoothing / classes
            entropy -= wanted * math.log(shares[y, x][k]) / len(counted)
    if not dice or not counted:
        return entropy
    each = []
    for k in {int(mask[y, x]) for y, x in counted}:
        true = sum(int(mask[y, x]) == k for y, x in counted)
        both = sum(shares[y, x][k] for y, x in counted if int(mask[y, x]) == k)
        each.append(2 * both / max(1, sum(shares[y, x][k] for y, x in counted) + true))
    return entropy + 1 - sum(each) / len(each)


def edge_of(mask, label):
    """Pixels of a class with a neighbour of another one."""
    found = []
    for y, x in pixels_of(mask):
        beside = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
        inside = [(v, u) for v, u in beside if 0 <= v < mask.shape[0] and 0 <= u < mask.shape[1]]
        if int(mask[y, x]) == label and any(int(mask[place]) not in (label, -1) for place in inside):
            found.append((y, x))
    return found


def near(places, others, reach):
    return sum(any(max(abs(y - v), abs(x - u)) <= reach for v, u in others) for y, x in places)


def slow_figures(logits, masks, classes):
    """Counts of all images together, and what is made of them."""
    table = [[0] * 7 for _ in range(classes)]
    reach = max(1, round(0.0075 * math.sqrt(masks.shape[1] ** 2 + masks.shape[2] ** 2)))
    for scores, true in zip(logits, masks, strict=True):
        said = true.clone()
        for y, x in pixels_of(true):
            if int(true[y, x]) != -1:
                said[y, x] = max(range(classes), key=lambda k, y=y, x=x: float(scores[k, y, x]))
        for k in range(classes):
            ours, theirs = edge_of(said, k), edge_of(true, k)
            own = [(int(said[p]) == k, int(true[p]) == k) for p in pixels_of(true)]
            row = (sum(s and t for s, t in own), sum(s for s, _ in own), sum(t for _, t in own))
            row += (near(ours, theirs, reach), len(ours), near(theirs, ours, reach), len(theirs))
            table[k] = [old + new for old, new in zip(table[k], row, strict=True)]
    per_class = []
    for both, said, true, near_said, said_edge, near_true, true_edge in table:
        f1 = None
        if said_edge or true_edge:
            precision, recall = near_said / max(1, said_edge), near_true / max(1, true_edge)
            f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        row = {"pixels": true, "iou": both / (said + true - both) if said + true else None}
        per_class.append({**row, "accuracy": both / true if true else None, "boundary_f1": f1})
    return table, per_class


def mean_of(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def same(found, expected):
    assert (found is None) == (expected is None)
    assert found is None or found == pytest.approx(expected, abs=1e-12)


# ── losses ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dice", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_losses_are_those_of_a_loop_over_pixels(grid, dice):
    logits, masks = drawn(*grid)
    target = Segmentation(names=tuple("abcdefgh"[: grid[1]]), dice=dice)
    for smoothing in (0.0, 0.25):
        found = target.loss(logits, masks, smoothing=smoothing)
        assert found.shape == (len(masks),)
        for one, scores, mask in zip(found.tolist(), logits, masks, strict=True):
            same(one, slow_loss(scores, mask, dice=dice, smoothing=smoothing))


@pytest.mark.parametrize("dice", [False, True])
def test_gradients_of_losses_are_finite_differences(dice):
    logits, masks = drawn(3, 3, 4, 3, 0.3, (2,))
    masks[2] = IGNORED  # an image in which nothing counts
    target = Segmentation(names=("a", "b", "c"), dice=dice)
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda values: target.loss(values, masks), logits)
    (gradient,) = torch.autograd.grad(target.loss(logits, masks).sum(), logits)
    assert not gradient[2].any()
    assert not gradient.movedim(1, 3)[masks == IGNORED].any()


def test_logits_of_another_size_are_stretched_over_the_mask():
    logits, masks = drawn(2, 3, 4, 6, 0.2, ())
    target, whole = Segmentation(names=("a", "b", "c")), resized(logits, (9, 7))
    _, large = drawn(2, 3, 9, 7, 0.2, ())
    torch.testing.assert_close(target.loss(logits, large), target.loss(whole, large), rtol=0, atol=0)
    for one, other in zip(target.reduced(logits, large), target.reduced(whole, large), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(target.hits(logits, large), target.hits(whole, large))
    assert resized(logits, masks.shape[1:]) is logits
    for y, x in pixels_of(large[0]):  # the place between the centres of four logits, by hand
        v, u = ((y + 0.5) * 4 / 9 - 0.5, (x + 0.5) * 6 / 7 - 0.5)
        v, u = max(0.0, v), max(0.0, u)
        top, left = min(int(v), 3), min(int(u), 5)
        low, right = min(top + 1, 3), min(left + 1, 5)
        mixed = (1 - (v - top)) * ((1 - (u - left)) * logits[0, 1, top, left] + (u - left) * logits[0, 1, top, right])
        mixed += (v - top) * ((1 - (u - left)) * logits[0, 1, low, left] + (u - left) * logits[0, 1, low, right])
        same(float(whole[0, 1, y, x]), float(mixed))


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("grid", GRIDS)
def test_figures_are_those_of_a_loop_over_pixels(grid):
    logits, masks = drawn(*grid)
    names = tuple("abcdefgh"[: grid[1]])
    target = Segmentation(names=names)
    table, per_class = slow_figures(logits, masks, len(names))
    counts, pixels = target.reduced(logits, masks)
    assert counts.shape == (len(masks), len(names), 7)
    assert counts.sum(0).tolist() == table
    assert torch.equal(pixels, counts[:, :, 2])
    figures = target.figures(counts, pixels)
    for name, row in zip(names, per_class, strict=True):
        assert figures["per_class"][name].keys() == row.keys()
        for key, value in row.items():
            same(figures["per_class"][name][key], value)
    true = sum(row[2] for row in table)
    same(figures["pixel_accuracy"], sum(row[0] for row in table) / true if true else None)
    for key, of in (("mean_iou", "iou"), ("mean_accuracy", "accuracy"), ("boundary_f1", "boundary_f1")):
        same(figures[key], mean_of([row[of] for row in per_class]))
    for mask, hit, scores in zip(masks, target.hits(logits, masks).tolist(), logits, strict=True):
        counted = [place for place in pixels_of(mask) if int(mask[place]) != -1]
        right = sum(int(scores[:, y, x].argmax()) == int(mask[y, x]) for y, x in counted)
        assert hit == pytest.approx(right / max(1, len(counted)), abs=1e-6)  # in single precision, as on any device
    msgspec.json.encode(figures)  # plain data, without NaN
    assert target.cells(figures)["pixels"] in ("-", *[f"{100 * (figures['pixel_accuracy'] or 0):.1f} %"])


def test_boundaries_of_large_images_may_be_off_by_more_pixels():
    height, width = 240, 320  # its diagonal is 400, so that 3 pixels are near
    target, true = Segmentation(names=("a", "b")), torch.zeros(1, height, width, dtype=torch.int64)
    true[:, :, 160:] = 1
    for off in range(7):
        said = torch.zeros_like(true)
        said[:, :, 160 + off :] = 1
        logits = torch.nn.functional.one_hot(said, 2).movedim(3, 1).float()
        counts, pixels = target.reduced(logits, true)
        # Of two columns of boundary, one class's are `off` away.
        expected = 1.0 if off <= 3 else 0.0
        figures = target.figures(counts, pixels)
        same(figures["boundary_f1"], expected)
        same(figures["per_class"]["b"]["iou"], (160 - off) / 160)


def test_areas_of_very_large_images_are_exact():
    target, mask = Segmentation(names=("a", "b")), torch.zeros(1, 4100, 4100, dtype=torch.int64)
    counts, _ = target.reduced(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), mask)
    figures = target.figures(counts, counts[:, :, 2])
    assert figures["per_class"]["a"]["pixels"] == 4100**2
    assert figures["per_class"]["a"]["iou"] == 1


def test_intervals_hold_the_figure_and_narrow_with_images():
    target, widths = Segmentation(names=("a", "b")), []
    for images in (8, 128):
        logits, masks = drawn(images, 2, 6, 6, 0.1, ())
        counts, pixels = target.reduced(logits, masks)
        figures = target.figures(counts, pixels)
        for figure, ends in (
            (figures["mean_iou"], figures["interval"]),
            (figures["pixel_accuracy"], figures["intervals"]["pixel_accuracy"]),
        ):
            assert 0 <= ends[0] <= figure <= ends[1] <= 1
        widths.append(figures["interval"][1] - figures["interval"][0])
    assert 0 < widths[1] < widths[0]
    one = target.reduced(*drawn(1, 2, 6, 6, 0.0, ()))
    figures = target.figures(*one)
    assert figures["interval"] == pytest.approx([figures["mean_iou"]] * 2)


def test_differences_are_antisymmetric_and_those_of_the_figures():
    target = Segmentation(names=("a", "b", "c"))
    logits, masks = drawn(30, 3, 6, 5, 0.1, ())
    before, pixels = target.reduced(logits, masks)
    after, _ = target.reduced(logits + 2 * torch.nn.functional.one_hot(masks.clamp(min=0), 3).movedim(3, 1), masks)
    more, ends = target.difference(before, after, pixels)
    less, back = target.difference(after, before, pixels)
    assert more == pytest.approx(target.score(after, pixels) - target.score(before, pixels))
    assert more > 0
    assert less == pytest.approx(-more)
    assert back == pytest.approx((-ends[1], -ends[0]))
    assert target.difference(before, before, pixels) == (0.0, (0.0, 0.0))


def test_classes_never_found_are_named():
    target = Segmentation(names=("a", "b", "c"))
    logits, masks = drawn(2, 3, 4, 4, 0.0, (2,))
    logits[:, 1] = -100.0
    figures = target.figures(*target.reduced(logits, masks))
    assert target.remarks(figures, masks, "test") == ["Of b no pixel is found on the test images."]
    assert TARGETS.get("segmentation") is Segmentation


def test_agreement_is_the_share_of_pixels():
    before, _ = drawn(2, 3, 4, 5, 0.0, ())
    after, _ = drawn(2, 3, 4, 5, 0.0, (), seed=1)
    expected = sum(
        int(before[n, :, y, x].argmax()) == int(after[n, :, y, x].argmax())
        for n in range(2)
        for y in range(4)
        for x in range(5)
    )
    target = Segmentation(names=("a", "b", "c"))
    same(target.agreement(before, after), expected / 40)
    assert target.agreement(before, before) == 1


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (6, 5)])
@pytest.mark.parametrize("target", KINDS)
def test_runs_give_the_mask_back_and_shares_are_of_pixels(target, size):
    logits, _ = drawn(2, len(target.names), *size, 0.0, ())
    outputs = target.activate(logits)
    torch.testing.assert_close(outputs.sum(1), torch.ones(2, *size).double())
    torch.testing.assert_close(target.activate(target.inverse(outputs)), outputs)
    assert target.inverse(torch.zeros(1, 2, 1, 1)).isfinite().all()
    for answer, scores in zip(target.answers(outputs, 2), logits, strict=True):
        mask = scores.argmax(0)
        assert torch.equal(mask_of(answer), mask)
        assert torch.equal(mask_of(msgspec.json.decode(msgspec.json.encode(answer))), mask)
        shares = sorted(((mask == k).double().mean().item() for k in range(len(target.names))), reverse=True)
        assert [share for _, share in answer["top"]] == pytest.approx([share for share in shares[:2] if share])
        for name, share in answer["top"]:
            assert share == pytest.approx((mask == target.names.index(name)).double().mean().item())
        assert all(name in target.row(answer)["pixels"] for name, _ in answer["top"])


# ── labels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def label(**counts):
    return f"m.png{CELLS}" + " ".join(f"{code[1:]}:{pixels}" for code, pixels in counts.items())


@pytest.mark.parametrize(
    ("labels", "columns", "names", "codes", "ignored"),
    [
        ([label(_0=4, _1=2)], [], ("0", "1"), (), (255,)),
        ([label(_0=4, _2=2, _255=1)], [], ("0", "2"), (0, 2), (255,)),
        ([label(_0=4), label(_255=3)], [], ("0", "255"), (0, 255), ()),
        ([label(_1=4, _70=3, _3000=1)], [], ("1", "70", "3000"), (1, 70, 3000), (255,)),
        ([label(_0=9)], [f"0{CELLS}sky", f"1{CELLS}tree"], ("sky", "tree"), (), (255,)),
        ([label(_0=9)], [f"1{CELLS}tree", f"0{CELLS}sky"], ("tree", "sky"), (1, 0), (255,)),
        ([label(_0=9)], [f"0{CELLS}", f"1{CELLS}a", f"2{CELLS}b"], ("a", "b"), (1, 2), (0, 255)),
        ([label(_0=9)], [f"0{CELLS}off", f"255{CELLS}on"], ("off", "on"), (0, 255), ()),
        ([f"m.png{CELLS}0:3 {RED}:5"], [], ("0", "#ff0000"), (0, RED), (255,)),
    ],
)
def test_fit_finds_classes(labels, columns, names, codes, ignored):
    target = Segmentation.fit(labels, ["mask", *columns])
    assert (target.names, target.codes, target.ignored) == (names, codes, ignored)
    assert target.code_of == (codes or tuple(range(len(names))))
    for each in labels:
        assert target.problem(each) is None


@pytest.mark.parametrize(("labels", "shown"), [([label(_0=4)], "0"), ([label(_5=1, _255=4)], "5")])
def test_fit_refuses_one_class(labels, shown):
    with pytest.raises(ValueError, match=rf"only \({shown}\)"):
        Segmentation.fit(labels, ["mask"])
    with pytest.raises(ValueError, match="no image to learn from"):
        Segmentation.fit([], ["mask"])


@pytest.mark.parametrize("target", KINDS)
def test_labels_are_counted_and_foreign_codes_named(target):
    chance = random.Random(0)
    rows = [{code: chance.randrange(5) for code in (*target.code_of, *target.ignored)} for _ in range(4)]
    labels = [f"m.png{CELLS}" + " ".join(f"{code}:{n}" for code, n in row.items() if n) for row in rows]
    for text, row in zip(labels, rows, strict=True):
        assert histogram(text) == {code: n for code, n in row.items() if n}
        assert target.problem(text) is None
    counts = target.encode(labels)
    assert counts.tolist() == [[float(row[code]) for code in target.code_of] for row in rows]
    assert target.encode([]).shape == (0, len(target.names))
    assert target.counts(counts) == {
        name: sum(row[code] > 0 for row in rows) for name, code in zip(target.names, target.code_of, strict=True)
    }
    for foreign in (9, COLOUR | 0x123456):
        problem = target.problem(f"m.png{CELLS}{target.code_of[0]}:2 {foreign}:1")
        assert f"has pixels of {spelled(foreign)}, and the classes are {spelled(target.code_of[0])}" in problem
    assert target.strata(labels) == [""] * 4


def test_dice_is_for_rare_classes():
    target = Segmentation(names=("a", "b"))
    assert not target.settled([label(_0=90, _1=10)]).dice
    assert target.settled([label(_0=99, _1=1), label(_0=50)]).dice
    assert not target.settled([label(_0=99)]).dice  # b is nowhere


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (torch.zeros(2, 3), "must be masks"),
        (torch.zeros(2, 3, 4), "must be masks"),
        (torch.full((1, 2, 2), 3), "from 0 to 2, or -1; one is 3"),
        (torch.full((1, 2, 2), -2), "from 0 to 2, or -1; one is -2"),
        (torch.full((1, 2, 2), -1), None),
        (torch.tensor([[[0, 2], [-1, 1]]]), None),
    ],
)
def test_tensors_that_are_no_masks_are_refused(masks, said):
    problem = KINDS[0].check(masks)
    assert (problem is None) == (said is None)
    assert said is None or said in problem


@pytest.mark.parametrize(
    ("labels", "columns", "kind"),
    [
        (["a.png", "b.TIF"], ["mask"], "segmentation"),
        ([f"a.png{CELLS}0:4"], ["mask"], "segmentation"),
        (["a.jpg", "b.png"], ["mask"], "segmentation"),  # which refuses JPEG in a sentence
        (["yes", "no"], ["mask"], "single-label"),
        (["a.png", "b.png"], [], "single-label"),
    ],
)
def test_names_of_masks_are_labels_of_pixels(labels, columns, kind):
    assert kind_of(labels, columns).name == kind


@pytest.mark.parametrize("target", KINDS)
def test_documents_give_the_target_back(target):
    document = msgspec.json.decode(msgspec.json.encode(to_document(target)))
    assert from_document(document, target.names) == target
    assert from_document(document, target.names).with_head("multi").map_head == "multi"


@pytest.mark.parametrize(
    "document",
    [
        {"name": "segmentation", "codes": [0, 1, 2]},
        {"name": "segmentation", "codes": ["a", "b"]},
        {"name": "segmentation", "head": "huge"},
        {"name": "segmentation", "dice": "yes"},
        {"name": "segmentation", "codes": [4, 4]},
    ],
)
def test_documents_that_cannot_be_are_refused(document):
    with pytest.raises(VPromptError):
        from_document(document, ("a", "b"))
