"""Cost: counts against closed formulas and the published numbers."""

import pytest
import timm
import torch

import vprompt
from reference import small_vit
from vprompt.analysis.cost import Cost
from vprompt.backbones.info import num_parameters
from vprompt.backbones.meta import on_meta
from vprompt.model.cost import gmacs_and_biases, model_cost
from vprompt.utils.errors import BackboneError, VPromptError

VIT_B = "vit_base_patch16_224"
PROMPTS = [0, 50, 100, 150, 200]

# METHODS.md, section 1: ViT-B/16 at 224; the published column is Prompt Condensation's Table 1.
PUBLISHED = {0: 17.56, 50: 22.22, 100: 26.97, 150: 31.81, 200: 36.74}
FOLDED = {0: 16.35, 50: 16.51, 100: 16.68, 150: 16.85, 200: 17.01}


def cost(name, prompts, **options):
    """Costs of a backbone by numbers of prompts."""
    return Cost(backbone=name, prompts=tuple(prompts), originals=(), **options).run().prompts


def block(tokens, width, keys=None):
    """Multiply-accumulates of one block: projections and MLP for `tokens`, attention over `keys`."""
    return 12 * tokens * width**2 + 2 * tokens * (keys or tokens) * width


def patches(count, width, patch):
    return count * 3 * patch * patch * width


def last_block(tokens, width, prompts):
    """Where pooling reads the class token only: keys and values of all, the rest for one token."""
    return 2 * tokens * width**2 + width**2 + 2 * (tokens + prompts) * width + width**2 + 8 * width**2


def folded(depth, tokens, width, counts, patch):
    through = sum(block(tokens, width, tokens + count) for count in counts[: depth - 1])
    return through + last_block(tokens, width, counts[-1]) + patches(tokens - 1, width, patch)


@pytest.fixture(scope="module")
def vit_b():
    return cost(VIT_B, PROMPTS)


def test_published_costs_are_those_of_the_formula_and_of_the_paper(vit_b):
    for row in vit_b:
        n = 197 + row.prompts
        # 197 tokens of which the class token is one: 196 patches of 3 * 16 * 16 = 768 values.
        assert row.published_gmacs == pytest.approx((12 * block(n, 768) + 196 * 768 * 768) / 1e9, rel=1e-12)
        assert row.published_gmacs == pytest.approx(PUBLISHED[row.prompts], abs=0.01)


def test_folded_costs_are_those_of_the_formula_and_of_the_table(vit_b):
    for row in vit_b:
        wanted = folded(12, 197, 768, [row.prompts] * 12, 16) / 1e9
        assert row.folded_gmacs == pytest.approx(wanted, rel=1e-12)
        assert row.folded_gmacs == pytest.approx(FOLDED[row.prompts], abs=0.0051)


def test_prefix_costs_are_folded_ones_and_the_keys_and_values_of_the_prompts(vit_b):
    for row in vit_b:
        of_prompts = 12 * row.prompts * 2 * 768**2 / 1e9
        assert row.prefix_gmacs == pytest.approx(row.folded_gmacs + of_prompts, rel=1e-9)


def test_two_hundred_folded_prompts_cost_less_than_the_bare_backbone_as_published(vit_b):
    assert vit_b[-1].folded_gmacs < vit_b[0].published_gmacs
    assert [row.prompt_params for row in vit_b] == [12 * prompts * 768 for prompts in PROMPTS]
    assert [row.prompts for row in vit_b] == PROMPTS


@pytest.mark.parametrize(
    ("name", "depth", "width", "patch", "side"),
    [
        ("vit_tiny_patch16_224", 12, 192, 16, 224),
        ("vit_small_patch32_224", 12, 384, 32, 224),
        ("deit_small_patch16_224", 12, 384, 16, 224),
        ("vprompt_vit_tiny_patch8_64", 12, 192, 8, 64),
    ],
)
def test_other_transformers_follow_the_same_formulas(name, depth, width, patch, side):
    count = (side // patch) ** 2
    for row in cost(name, [0, 7]):
        n = 1 + count + row.prompts
        published = depth * block(n, width) + patches(count, width, patch)
        assert row.published_gmacs == pytest.approx(published / 1e9, rel=1e-12)
        wanted = folded(depth, 1 + count, width, [row.prompts] * depth, patch)
        assert row.folded_gmacs == pytest.approx(wanted / 1e9, rel=1e-12)


def test_average_pooling_reads_every_token_so_the_last_block_is_whole():
    name = "vit_base_patch16_siglip_224"
    width, count = 768, 196
    model = timm.create_model(name, num_classes=0, global_pool="avg", img_size=224)
    row = model_cost(vprompt.attach(model, vprompt.VPT(5), num_classes=1))
    wanted = 12 * block(count, width, count + 5) + patches(count, width, 16)
    assert row.folded_gmacs == pytest.approx(wanted / 1e9, rel=1e-3)  # nothing is cut from the last block


def test_the_input_size_counts():
    small, large = (cost("vit_tiny_patch16_224", [3], img_size=side)[0] for side in (112, 224))
    for row, count in ((small, 49), (large, 196)):
        wanted = 12 * block(1 + count + 3, 192) + patches(count, 192, 16)
        assert row.published_gmacs == pytest.approx(wanted / 1e9, rel=1e-12)


def test_shallow_prompts_travel_through_every_block_under_every_execution():
    bare, ten = cost("vit_tiny_patch16_224", [0, 10], shallow=True)
    n = 197 + 10
    assert ten.published_gmacs == pytest.approx((12 * block(n, 192) + patches(196, 192, 16)) / 1e9, rel=1e-12)
    cut = 11 * block(n, 192) + last_block(n, 192, 0) + patches(196, 192, 16)
    assert ten.folded_gmacs == pytest.approx(cut / 1e9, rel=1e-12)
    assert ten.prompt_params == 10 * 192
    assert bare.prompt_params == 0
    assert bare.published_gmacs == pytest.approx((12 * block(197, 192) + patches(196, 192, 16)) / 1e9, rel=1e-12)


def test_a_model_costs_what_its_own_count_in_every_block_costs():
    model = vprompt.attach(small_vit(depth=3), vprompt.VPT(6), num_classes=2)
    info = model.info
    tokens = (info.preprocessing.size[0] // info.patch_size[0]) ** 2 + info.num_prefix_tokens
    kept = [torch.tensor([0, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([1, 2, 4, 5])]
    smaller = model.keep(kept)
    many, few = model_cost(model), model_cost(smaller)
    assert few.prompts == 3  # six prompts in the two blocks that have any
    width = info.widths[0]
    assert few.prompt_params == 6 * width
    # Each kept prompt saves or costs exactly its keys: 2 D for every query that sees it.
    lost = 2 * width * (tokens * (4 + 6) + 1 * 2)  # the last block asks one query
    assert (many.folded_gmacs - few.folded_gmacs) * 1e9 == pytest.approx(lost)
    projected = 2 * width**2 * (18 - 6)
    assert (many.prefix_gmacs - few.prefix_gmacs) * 1e9 == pytest.approx(lost + projected)


SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 4, "img_size": 64}
STAGES = {"embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2), "img_size": 112}
FAMILIES = {
    "vit_tiny_patch16_224": SMALL,
    "vit_base_patch16_siglip_224": SMALL,
    "beit_base_patch16_224": SMALL,
    "eva02_tiny_patch14_224": {**SMALL, "img_size": 56},
    "vit_relpos_base_patch16_224": SMALL,
    "swin_tiny_patch4_window7_224": STAGES,
    "swinv2_tiny_window8_256": {**STAGES, "img_size": 128},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_alone_are_made_and_counted_as_numbers_are(name):
    backbone = timm.create_model(name, **FAMILIES[name])
    with torch.device("meta"):
        alike = timm.create_model(name, **FAMILIES[name])
    for made in (alike, on_meta(backbone)):
        assert {key: (value.shape, value.dtype) for key, value in made.state_dict().items()} == {
            key: (value.shape, value.dtype) for key, value in backbone.state_dict().items()
        }
        assert {value.device.type for value in made.state_dict().values()} == {"meta"}
    model, empty = (vprompt.attach(made, vprompt.VPT(3), num_classes=2).eval() for made in (backbone, alike))
    for run, counted in ((model, empty), (model.fold(), empty.fold())):
        assert gmacs_and_biases(run) == gmacs_and_biases(counted)
    published = [made.copy(execution="published").eval() for made in (model, empty)]
    assert gmacs_and_biases(published[0]) == gmacs_and_biases(published[1])


def test_counting_leaves_the_model_alone():
    model = vprompt.attach(small_vit(depth=2), vprompt.VPT(2), num_classes=2)
    images = torch.randn(2, 3, *model.preprocessing.size)
    before, learned = model.eval()(images), model.num_learned
    model_cost(model)
    assert torch.equal(model(images), before)
    assert model.num_learned == learned
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_counting_needs_no_weights_and_no_memory():
    row = cost("vit_giant_patch14_clip_224", [100])[0]  # more than a thousand million parameters
    assert row.published_gmacs > 250


@pytest.mark.parametrize("counts", [[-1], [5, -2]])
def test_a_negative_number_of_prompts_is_refused(counts):
    with pytest.raises(VPromptError, match="at least 0, not -"):
        cost("vit_tiny_patch16_224", counts)


def test_a_backbone_that_is_none_is_refused_by_name():
    with pytest.raises(BackboneError, match="'vit_nope'"):
        cost("vit_nope", [0])
    with pytest.raises(BackboneError, match="ResNet"):
        cost("resnet18", [0])


def test_the_command_prints_the_same_numbers(vprompt_command, vit_b):
    found = vprompt_command("cost", VIT_B, "--json")
    assert found.status == 0
    assert found.err == ""
    rows = found.document
    assert [set(row) for row in rows] == [
        {
            *("prompts", "published_gmacs", "prefix_gmacs", "folded_gmacs", "prompt_params"),
            *("kv_prompts", "overhead", "learned_share"),
        }
    ] * 5
    for row, wanted in zip(rows, vit_b, strict=True):
        assert {name: value for name, value in row.items() if name in vars(wanted)} | {
            "kv_prompts": 0,
            "overhead": wanted.published_gmacs / vit_b[0].published_gmacs - 1,
            "learned_share": wanted.prompt_params / 85_798_656,
        } == row
        assert type(row["prompts"]) is int
        assert type(row["prompt_params"]) is int


def test_the_table_shows_every_number_and_what_prompts_add(vprompt_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    found = vprompt_command("cost", "vit_tiny_patch16_224", "--prompts", "0,10")
    assert found.status == 0
    bare, ten = cost("vit_tiny_patch16_224", [0, 10])
    line = next(line for line in found.out.splitlines() if line.split()[:1] == ["10"])
    added = f"{100 * (ten.published_gmacs / bare.published_gmacs - 1):+.1f}"
    numbers = [f"{ten.published_gmacs:.2f}", added, "%", f"{ten.prefix_gmacs:.2f}", f"{ten.folded_gmacs:.2f}"]
    share = 100 * 12 * 10 * 192 / num_parameters(timm.create_model("vit_tiny_patch16_224"))
    folded = f"{100 * (ten.folded_gmacs / bare.published_gmacs - 1):+.0f}"
    assert line.split() == ["10", *numbers, folded, "%", f"{12 * 10 * 192:,}", f"{share:.2f}", "%"]


@pytest.mark.parametrize(("name", "prompts"), [(VIT_B, "50,150,200"), ("swin_base_patch4_window7_224", "5,50")])
def test_overheads_stand_beside_those_that_the_paper_prints(vprompt_command, monkeypatch, name, prompts):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [line.split() for line in vprompt_command("cost", name, "--prompts", prompts).out.splitlines()]
    rows = [row for row in rows if row[:1] and row[0] in prompts.split(",")]
    printed = {
        VIT_B: ["+26.1", "+80.6", "+108.5"],
        "swin_base_patch4_window7_224": ["+5.8", "+57.8"],
    }
    assert [row[4] for row in rows] == printed[name]
    assert all("…" not in "".join(row) for row in rows)
    for row in rows:  # which it makes of figures with one digit behind the point
        assert float(row[2]) == pytest.approx(float(row[4]), abs=1.0)


@pytest.mark.parametrize("prompts", [0, 4])
def test_key_value_prompts_are_more_keys_in_every_attention_and_more_to_learn(vprompt_command, prompts):
    command = ["cost", "vit_tiny_patch16_224", "--prompts", str(prompts), "--kv-prompts", "3", "--json"]
    [row] = vprompt_command(*command).document
    n = 197 + prompts
    gmacs = (12 * block(n, 192, n + 3) + 196 * 768 * 192) / 1e9
    assert row["published_gmacs"] == pytest.approx(gmacs, rel=1e-12)
    assert row["folded_gmacs"] == pytest.approx(folded(12, 197, 192, [prompts + 3] * 12, 16) / 1e9, rel=1e-12)
    assert row["prompt_params"] == 12 * (prompts + 3) * 192
    bare = (12 * block(197, 192) + 196 * 768 * 192) / 1e9
    assert row["overhead"] == pytest.approx(gmacs / bare - 1, rel=1e-9)


def test_the_lengths_of_the_papers_share_are_said(vprompt_command):
    found = vprompt_command("cost", VIT_B, "--prompts", "25,31", "--kv-prompts", "5")
    rows = [line.split() for line in found.out.splitlines()]
    assert [row[-2] for row in rows if row[1:2] == ["+"]] == ["0.32", "0.39"]
    each = 12 * 768 / 85_798_656
    assert f"{0.0032 / each:.0f} and {0.0039 / each:.0f} prompts per block" in " ".join(found.err.split())
    found = vprompt_command("cost", VIT_B, "--prompts", "5", "--kv-prompts", "5", "--shallow")
    assert (found.status, found.err.count("\n")) == (1, 1)
    assert "leave out --kv-prompts" in found.err
    assert "at least 0" in vprompt_command("cost", VIT_B, "--prompts", "5", "--kv-prompts", "-1").err


def test_shallow_on_the_command_line(vprompt_command):
    rows = vprompt_command("cost", "vit_tiny_patch16_224", "--prompts", "10", "--shallow", "--json").document
    assert [row["prompt_params"] for row in rows] == [10 * 192]
    assert rows[0]["folded_gmacs"] > cost("vit_tiny_patch16_224", [10])[0].folded_gmacs
