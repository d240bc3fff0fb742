"""Starts of prompts from training images, against loops over timm's own blocks, in float64."""

import functools

import pytest
import timm
import torch
from PIL import Image

import families
import vprompt
from families import some_images
from vprompt.backbones.info import describe, patch_embed_path
from vprompt.experiments.bench.jobs import Job
from vprompt.experiments.settings import settings_from
from vprompt.methods.layers import starts
from vprompt.methods.layers.prompts import Prompts
from vprompt.utils.clustering import k_means
from vprompt.utils.errors import VPromptError

BACKBONES = {
    "vit": families.vit,
    "registers": functools.partial(families.vit, reg_tokens=3, init_values=1e-5, global_pool="avg"),
    **{name: families.BACKBONES[name] for name in ("beit", "eva", "swin", "swin2", "swin-cr", "cait", "sam", "dinov3")},
    **{name: families.BACKBONES[name] for name in ("diff", "parallel", "relpos-bias-token")},
}
SEQUENCES = [name for name in BACKBONES if "swin" not in name and name != "sam"]


def entering(backbone, info, images):
    """The tokens of patches on their way into each block, (B, N, D); in the first without positions."""
    seen = {}

    def keep(path):
        return lambda module, inputs, out=None: seen.__setitem__(path, (inputs[0] if out is None else out).detach())

    embed = patch_embed_path(backbone)
    hooks = [backbone.get_submodule(site.path).register_forward_pre_hook(keep(site.path)) for site in info.blocks]
    hooks.append(backbone.get_submodule(embed).register_forward_hook(keep(embed)))
    with torch.no_grad():
        backbone.forward_features(images)
    for hook in hooks:
        hook.remove()
    out = []
    for block, site in enumerate(info.blocks):
        x = seen[site.path if block else embed]
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2) if block == 0 and x.shape[-1] != site.width else x.flatten(1, 2)
            out.append(x)
        else:
            out.append(x[:, info.num_prefix_tokens if block else 0 :])
    return out


def random_prompts(info, counts):
    torch.manual_seed(3)
    return Prompts.initial(counts, info.widths, bound=0.3).double()


@pytest.mark.parametrize("name", BACKBONES)
def test_tokens_are_those_on_their_way_into_each_block_each_once(name):
    backbone = BACKBONES[name]().double().eval()
    info, images = describe(backbone), some_images(backbone, 3).double()
    known = entering(backbone, info, images)
    counts = [4 + block % 3 for block in range(len(info.blocks))]
    counts[1] = 0
    prompts = random_prompts(info, counts)
    starts.tokens(prompts, backbone, info, images.split([2, 1]))
    for block, tokens in enumerate(known):
        rows = [
            [n for n, token in enumerate(tokens.flatten(0, 1)) if torch.allclose(prompt, token, rtol=1e-9, atol=1e-12)]
            for prompt in prompts[block]
        ]
        assert len(rows) == counts[block]
        assert all(rows)
        different = {tuple(row) for row in rows}
        assert len(different) == len(rows)


def test_every_token_is_as_likely_whatever_the_batches():
    backbone = families.vit().double().eval()
    info, images = describe(backbone), some_images(backbone, 3).double()
    tokens = entering(backbone, info, images)[1].flatten(0, 1)
    draws, count = 300, 5
    for parts in ([3], [1, 2]):
        taken = torch.zeros(len(tokens))
        for seed in range(draws):
            prompts = random_prompts(info, [0, count] + [0] * (len(info.blocks) - 2))
            torch.manual_seed(seed)
            starts.tokens(prompts, backbone, info, images.split(parts))
            taken[torch.cdist(prompts[1].detach(), tokens).argmin(1)] += 1
        share = count / len(tokens)
        limit = 5 * (draws * share * (1 - share)) ** 0.5  # a token in 3.5 million draws is farther out
        assert (taken - draws * share).abs().max() < limit


def test_more_prompts_than_tokens_repeat_them():
    backbone = families.vit().double().eval()
    info, images = describe(backbone), some_images(backbone, 1).double()
    tokens = entering(backbone, info, images)[1][0]
    prompts = random_prompts(info, [0, 3 * len(tokens)] + [0] * (len(info.blocks) - 2))
    starts.tokens(prompts, backbone, info, [images])
    nearest = torch.cdist(prompts[1].detach(), tokens).argmin(1)
    assert nearest.bincount().tolist() == [3] * len(tokens)


def test_clusters_are_means_of_the_tokens_nearest_to_them():
    backbone = families.vit().double().eval()
    info = describe(backbone)
    images = some_images(backbone, starts.PER_CLUSTER).double()
    tokens = entering(backbone, info, images)[2].flatten(0, 1)
    count = len(tokens) // starts.PER_CLUSTER  # all tokens take part
    prompts = random_prompts(info, [0, 0, count] + [0] * (len(info.blocks) - 3))
    starts.tokens(prompts, backbone, info, images.split(5), clusters=True)
    nearest = torch.cdist(tokens, prompts[2].detach()).argmin(1)
    moved = [(tokens[nearest == n].mean(0) - prompts[2][n]).abs().max() for n in range(count) if (nearest == n).any()]
    spread = tokens.std()
    assert len(moved) == count
    assert max(moved) < 0.3 * spread  # twenty rounds may end before the last token has moved
    assert sum(float(m < 1e-5 * spread) for m in moved) > count / 2
    before = (tokens - tokens[torch.cdist(tokens, tokens[:count]).argmin(1)]).square().sum()
    assert (tokens - prompts[2].detach()[nearest]).square().sum() < before


@pytest.mark.parametrize("seed", range(4))
def test_k_means_against_loops(seed):
    torch.manual_seed(seed)
    points, number = torch.randn(12, 3, dtype=torch.float64), torch.randint(1, 4, (12,))
    start = torch.tensor([1, 5, 7])
    centres = points[start].clone()
    member = [min(range(3), key=lambda k, n=n: float((points[n] - centres[k]).norm())) for n in range(12)]
    for _ in range(20):
        for k in range(3):
            own = [n for n in range(12) if member[n] == k]
            weight = sum(int(number[n]) for n in own)
            centres[k] = sum(points[n] * int(number[n]) for n in own) / weight
        member = [min(range(3), key=lambda k, n=n: float((points[n] - centres[k]).norm())) for n in range(12)]
    assert k_means(points, number, start).tolist() == member


def slow_vipamin(backbone, prompts, images, neighbours, share):
    """Image by image, block by block, head by head; prompts are tokens that ask no queries."""
    heads = backbone.blocks[0].attn.num_heads
    lead, blocks = backbone.num_prefix_tokens, len(backbone.blocks)
    sums = [{} for _ in range(blocks)]
    for image in images:
        x = backbone._pos_embed(backbone.patch_embed(image[None]))
        x = backbone.norm_pre(x)[0]
        for block, module in enumerate(backbone.blocks):
            attn, p = module.attn, prompts[block].detach()
            d = x.shape[1] // heads
            qkv = attn.qkv(module.norm1(torch.cat([p, x])))
            q, k, v = (qkv[:, n * len(x[0]) : (n + 1) * len(x[0])] for n in range(3))
            outs, keys = [], []
            for head in range(heads):
                part = slice(head * d, (head + 1) * d)
                weights = torch.softmax(q[len(p) :, part] @ k[:, part].T / d**0.5, dim=1)
                outs.append(weights @ v[:, part])
                keys.append(k[:, part])
            out, key = torch.cat(outs, dim=1), sum(keys) / heads
            for name, value in (("x", x[lead:]), ("o", out), ("p", key[: len(p)]), ("k", key[len(p) + lead :])):
                sums[block][name] = sums[block].get(name, 0) + value / len(images)
            x = x + module.ls1(attn.proj(out))
            x = x + module.ls2(module.mlp(module.norm2(x)))
    made = []
    for block, module in enumerate(backbone.blocks):
        of, p = sums[block], prompts[block].detach()
        width = p.shape[1]
        weight, bias = module.attn.qkv.weight[2 * width :], module.attn.qkv.bias[2 * width :]
        q, _ = torch.linalg.qr(of["o"].T)
        rows = []
        for i, prompt in enumerate(p):
            cosines = [float(torch.cosine_similarity(of["p"][i], key, dim=0)) for key in of["k"]]
            best = sorted(range(len(cosines)), key=lambda j: -cosines[j])[:neighbours]
            average = sum(of["x"][j] for j in best) / len(best)
            value = weight @ prompt + bias
            new = value - q @ (q.T @ value)
            rows.append(
                (1 - share) * average + share * torch.linalg.lstsq(weight, (new - bias)[:, None]).solution[:, 0]
            )
        made.append(torch.stack(rows) if rows else p)
    return made


@pytest.mark.parametrize(
    ("registers", "share", "neighbours"), [(0, 0.5, 8), (2, 0.0, 2), (0, 1.0, 1), (1, 0.25, 10**6)]
)
def test_vipamin_against_loops(registers, share, neighbours):
    backbone = families.vit(reg_tokens=registers, init_values=0.5 if registers else None).double().eval()
    info, images = describe(backbone), some_images(backbone, 4).double()
    counts = [3, 0, 5, 2, *[1] * (len(info.blocks) - 4)][: len(info.blocks)]
    prompts, wanted = random_prompts(info, counts), random_prompts(info, counts)
    with torch.no_grad():
        reference = slow_vipamin(backbone, wanted, images, neighbours, share)
    starts.vipamin(prompts, backbone, info, images.split(3), neighbours=neighbours, share=share)
    assert [len(p) for p in prompts] == counts
    for ours, theirs in zip(prompts, reference, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SEQUENCES)
def test_vipamin_on_every_kind_of_sequence(name):
    """Whatever computes keys and values: prompts become others, and stay numbers."""
    backbone = BACKBONES[name]().double().eval()
    info, images = describe(backbone), some_images(backbone, 3).double()
    counts = [2] * len(info.blocks)
    near, new = random_prompts(info, counts), random_prompts(info, counts)
    starts.vipamin(near, backbone, info, [images], neighbours=1, share=0.0)
    starts.vipamin(new, backbone, info, images.split(1), neighbours=1, share=1.0)
    for prompts in (near, new):
        assert all(bool(p.isfinite().all()) for p in prompts)
        assert not torch.equal(prompts[1], random_prompts(info, counts)[1])


@pytest.mark.parametrize("kind", ["vipamin", "tokens"])
def test_a_start_does_not_depend_on_prompt_dropout(kind):
    backbone = families.vit().double().eval()
    info, images = describe(backbone), some_images(backbone, 4).double()
    found = []
    for dropout in (0.0, 0.5):
        prompts = random_prompts(info, [3] * len(info.blocks))
        prompts.dropout = dropout
        torch.manual_seed(1)
        getattr(starts, kind)(prompts.train(), backbone, info, [images])
        assert prompts.training
        found.append([p.detach().clone() for p in prompts])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_vipamin_needs_fewer_tokens_than_dimensions():
    backbone = families.vit(img_size=64, patch_size=4, embed_dim=24, num_heads=2).double().eval()
    info = describe(backbone)
    with pytest.raises(VPromptError, match=r"257 span all its 24 dimensions; take 'tokens'"):
        starts.vipamin(
            random_prompts(info, [2] * len(info.blocks)), backbone, info, [torch.randn(2, 3, 64, 64).double()]
        )


def test_windows_have_no_one_sequence():
    backbone = BACKBONES["swin"]().eval()
    info = describe(backbone)
    with pytest.raises(VPromptError, match="one sequence"):
        starts.vipamin(random_prompts(info, [1] * len(info.blocks)), backbone, info, [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for number in range(24):
        file = root / ("red" if number % 2 else "blue") / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        shade = 5 * number
        Image.new("RGB", (40, 40), (200, shade, 9) if number % 2 else (9, shade, 200)).save(file)
    return root


@pytest.mark.parametrize("init", ["tokens", "clusters", "vipamin"])
@pytest.mark.parametrize(
    "make", [vprompt.VPT, functools.partial(vprompt.VPT, depth="shallow"), vprompt.E2VPT], ids=["deep", "shallow", "e2"]
)
def test_attached_with_data_and_saved(folder, tmp_path, init, make):
    backbone = timm.create_model("test_vit", img_size=32).eval()
    task = vprompt.open_data(folder, backbone)
    weights = {name: value.clone() for name, value in backbone.state_dict().items()}

    def attached(method, seed):
        torch.manual_seed(seed)
        return vprompt.attach(backbone, method, data=task)

    plain, one, two, other = (
        attached(make(4, init=kind), seed) for kind, seed in (("random", 1), (init, 1), (init, 1), (init, 2))
    )
    for p, q, r, s in zip(one.prompts, two.prompts, other.prompts, plain.prompts, strict=True):
        assert torch.equal(p, q)
        assert not len(p) or (not torch.equal(p, r) and not torch.equal(p, s))
    assert all(torch.equal(value, weights[name]) for name, value in backbone.state_dict().items())
    vprompt.fit(one, task, recipe=vprompt.Recipe(epochs=1, batch_size=8))
    one.save_pretrained(tmp_path)
    loaded = vprompt.load(tmp_path, backbone)
    assert loaded.method == one.method
    assert all(torch.equal(p, q) for p, q in zip(loaded.prompts, one.prompts, strict=True))


def test_without_images_there_is_a_sentence():
    with pytest.raises(VPromptError, match="attach with data="):
        vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2, init="tokens"), num_classes=2)
    with pytest.raises(VPromptError, match="init"):
        vprompt.VPT(2, init="zeros")


def test_a_start_is_part_of_a_run_and_runs_from_before_keep_their_names():
    values = {"backbone": "test_vit", "method": "vpt-deep"}
    plain, other = (Job(settings=settings_from(v)) for v in (values, {**values, "init": "tokens"}))
    assert "init" not in plain.identity
    assert other.identity["init"] == "tokens"
    assert plain.key != other.key
    assert "p20-tokens" in other.name


def test_where_patches_come_with_the_leading_tokens_these_are_none_of_the_start():
    options = {"class_token": True, "reg_tokens": 2, "embed_dim": 32, "num_heads": 2, "depth": 2, "img_size": 32}
    backbone = timm.create_model("naflexvit_base_patch16_gap", **options).double().eval()
    info, images, rows = describe(backbone), some_images(backbone, 3).double(), []
    hook = backbone.embeds.register_forward_hook(lambda module, inputs, out: rows.append(out))
    with torch.no_grad():
        backbone.forward_features(images)
    hook.remove()
    embedded = rows[0][0]
    count = 3 * (embedded.shape[1] - 3)
    prompts = random_prompts(info, [count, 0])
    starts.tokens(prompts, backbone, info, [images])  # all there are
    assert torch.equal(prompts[0].sort(0).values, embedded[:, 3:].flatten(0, 1).sort(0).values)
