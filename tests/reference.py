"""A slow, independent implementation of visual prompt tuning, in float64, to test vprompt against.

It reads the parameters of a plain timm `VisionTransformer` and nothing else: neither vprompt nor any timm forward is
called (but for the resampling of position embeddings at a foreign image size, which has nothing to do with prompts).
Prompts are inserted as tokens between the prefix tokens and the patches, as published.
"""

import math

import torch
from timm.layers import GluMlp, LayerScale, Mlp, RmsNorm, SwiGLU, resample_abs_pos_embed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, ResPostBlock
from torch import nn

# ── the plain transformer, by hand ───────────────────────────────────────────────────────────────────────────────────


def wide(tensor):
    return tensor.double()


def constant(parameter):
    return parameter.detach().double()


def linear(x, module):
    y = x @ constant(module.weight).T
    return y if module.bias is None else y + constant(module.bias)


def norm(x, module):
    if isinstance(module, nn.Identity):
        return x
    if isinstance(module, RmsNorm):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + module.eps) * constant(module.weight)
    assert isinstance(module, nn.LayerNorm), type(module)
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + module.eps) * constant(module.weight) + constant(module.bias)


def activation(x, module):
    if isinstance(module, nn.SiLU):
        return x / (1 + torch.exp(-x))
    assert isinstance(module, nn.GELU), type(module)
    assert module.approximate == "none"
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def mlp(x, module):
    if isinstance(module, SwiGLU):
        hidden = activation(linear(x, module.fc1_g), module.act) * linear(x, module.fc1_x)
    elif isinstance(module, GluMlp):
        left, right = linear(x, module.fc1).chunk(2, dim=-1)
        hidden = left * activation(right, module.act) if module.gate_last else activation(left, module.act) * right
    else:
        assert isinstance(module, Mlp), type(module)
        hidden = activation(linear(x, module.fc1), module.act)
    return linear(norm(hidden, module.norm), module.fc2)


def scale(x, module):
    if isinstance(module, nn.Identity):
        return x
    assert isinstance(module, LayerScale), type(module)
    return x * constant(module.gamma)


def softmax_rows(logits):
    weights = torch.exp(logits - logits.amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True)


def attention(x, module):
    """Output (B, N, D) and weights (B, H, N, N), one head after the other."""
    heads, d = module.num_heads, module.head_dim
    width = heads * d
    qkv = linear(x, module.qkv)
    outputs, maps = [], []
    for head in range(heads):
        q, k, v = (qkv[..., part * width + head * d : part * width + (head + 1) * d] for part in range(3))
        q, k = norm(q, module.q_norm), norm(k, module.k_norm)
        weights = softmax_rows(torch.einsum("bnd,bmd->bnm", q, k) / math.sqrt(d))
        maps.append(weights)
        outputs.append(torch.einsum("bnm,bmd->bnd", weights, v))
    out = norm(torch.cat(outputs, dim=-1), module.norm)
    if module.gate is not None:
        out = out / (1 + torch.exp(-linear(x, module.gate)))
    return linear(out, module.proj), torch.stack(maps, dim=1)


def run_block(x, block):
    """The tokens after a block, and its attention weights."""
    if isinstance(block, ResPostBlock):
        mixed, weights = attention(x, block.attn)
        x = x + norm(mixed, block.norm1)
        return x + norm(mlp(x, block.mlp), block.norm2), weights
    assert isinstance(block, Block), type(block)
    mixed, weights = attention(norm(x, block.norm1), block.attn)
    x = x + scale(mixed, block.ls1)
    return x + scale(mlp(norm(x, block.norm2), block.mlp), block.ls2), weights


def embed(vit, images):
    """Tokens (B, N, D) that enter the first block."""
    ph, pw = vit.patch_embed.patch_size
    conv = vit.patch_embed.proj
    batch, _, height, width = images.shape
    rows = []
    for top in range(0, height, ph):
        for left in range(0, width, pw):
            patch = wide(images[:, :, top : top + ph, left : left + pw]).reshape(batch, -1)
            rows.append(patch @ constant(conv.weight).flatten(1).T)
    x = torch.stack(rows, dim=1)
    if conv.bias is not None:
        x = x + constant(conv.bias)
    x = norm(x, vit.patch_embed.norm)
    leading = [vit.cls_token, getattr(vit, "dist_token", None), vit.reg_token]
    leading = [constant(t).expand(batch, -1, -1) for t in leading if t is not None]
    position = None if vit.pos_embed is None else constant(vit.pos_embed)
    grid = (height // ph, width // pw)
    if position is not None and grid != tuple(vit.patch_embed.grid_size):
        kept = 0 if vit.no_embed_class else vit.num_prefix_tokens
        position = resample_abs_pos_embed(
            vit.pos_embed.detach(), new_size=grid, old_size=vit.patch_embed.grid_size, num_prefix_tokens=kept
        ).double()
    if position is not None and vit.no_embed_class:
        x = x + position
    x = torch.cat([*leading, x], dim=1)
    if position is not None and not vit.no_embed_class:
        x = x + position
    return norm(x, vit.norm_pre)


def attention_pool(x, pool):
    """timm's latent-query pooling, by hand."""
    batch, heads, d = len(x), pool.num_heads, pool.head_dim
    q = linear(constant(pool.latent).expand(batch, -1, -1), pool.q)
    kv = linear(x, pool.kv)
    outputs = []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        k, v = kv[..., : heads * d][..., part], kv[..., heads * d :][..., part]
        weights = softmax_rows(norm(q[..., part], pool.q_norm) @ norm(k, pool.k_norm).transpose(1, 2) / math.sqrt(d))
        outputs.append(weights @ v)
    out = linear(torch.cat(outputs, dim=-1), pool.proj)
    return (out + mlp(norm(out, pool.norm), pool.mlp))[:, 0]


def pooled(vit, x):
    """Pooled features (B, D) of the tokens that leave the last block (no prompts among them)."""
    x = norm(x, vit.norm)
    if isinstance(vit, VisionTransformerDistilled):
        return (x[:, 0] + x[:, 1]) / 2
    patches = x if vit.pool_include_prefix else x[:, vit.num_prefix_tokens :]
    pooling = {
        "token": lambda: x[:, 0],
        "avg": lambda: patches.mean(1),
        "max": lambda: patches.amax(1),
        "avgmax": lambda: 0.5 * (patches.mean(1) + patches.amax(1)),
        "map": lambda: attention_pool(patches, vit.attn_pool),
    }
    return norm(pooling[vit.global_pool](), vit.fc_norm)


# ── visual prompt tuning, as published ───────────────────────────────────────────────────────────────────────────────


def prompted(vit, prompts, images, *, shallow=False):
    """Pooled features (B, D) and the attention weights of every block.

    `prompts`: one tensor (P_l, D), or (B, P_l, D) with a copy of its own for every image, per block; for shallow
    prompts the first is inserted once and stays.
    """
    x = embed(vit, images)
    at, batch, maps = vit.num_prefix_tokens, len(images), []
    blocks = list(vit.blocks)
    assert len(prompts) == len(blocks)
    for number, block in enumerate(blocks):
        own = wide(prompts[number])
        own = own.expand(batch, -1, -1) if own.ndim == 2 else own
        if not shallow or number == 0:
            x = torch.cat([x[:, :at], own, x[:, at:]], dim=1)
        x, weights = run_block(x, block)
        maps.append(weights)
        if not shallow or number == len(blocks) - 1:
            count = len(prompts[0]) if shallow else own.shape[1]
            x = torch.cat([x[:, :at], x[:, at + count :]], dim=1)
    return pooled(vit, x), maps


def logits(vit, prompts, weight, bias, images, *, shallow=False):
    features, _ = prompted(vit, prompts, images, shallow=shallow)
    return features @ wide(weight).T + wide(bias)


def cross_entropy(scores, labels):
    """Per-sample loss (B,)."""
    top = scores.amax(-1)
    total = top + torch.log(torch.exp(scores - top[:, None]).sum(-1))
    return total - scores[torch.arange(len(labels)), labels]


# ── scores of prompts ────────────────────────────────────────────────────────────────────────────────────────────────


def taylor(vit, prompts, weight, bias, images, labels, *, shallow=False):
    """s_l[p] = mean over images of |<dL_i/dp, p>|, image by image (float64)."""
    leaves = [p.detach().double().requires_grad_() for p in prompts]
    scores = [torch.zeros(len(p), dtype=torch.float64) for p in leaves]
    for image, label in zip(images, labels, strict=True):
        found = logits(vit, leaves, weight.detach(), bias.detach(), image[None], shallow=shallow)
        loss = cross_entropy(found, label[None]).sum()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        for score, gradient, leaf in zip(scores, gradients, leaves, strict=True):
            for p in range(len(leaf)):
                score[p] += abs(float(gradient[p] @ leaf[p].detach()))
    return [score / len(images) for score in scores]


def ablation(vit, prompts, weight, bias, images, labels, block, prompt, *, shallow=False):
    """Per-image change of the loss (B,) when one prompt is set to zero, exactly."""
    zeroed = [p.detach().clone() for p in prompts]
    zeroed[block][prompt] = 0
    with torch.no_grad():
        before = cross_entropy(logits(vit, prompts, weight, bias, images, shallow=shallow), labels)
        after = cross_entropy(logits(vit, zeroed, weight, bias, images, shallow=shallow), labels)
    return after - before


def class_similarity(vit, prompts, images, *, shallow=False):
    """Mean over images and heads of the attention weight from the class token to each prompt; shallow: and blocks."""
    with torch.no_grad():
        _, maps = prompted(vit, prompts, images, shallow=shallow)
    at = vit.num_prefix_tokens
    if shallow:
        count = len(prompts[0])
        per_block = [m[:, :, 0, at : at + count].mean((0, 1)) for m in maps]
        return [torch.stack(per_block).mean(0)] + [torch.zeros(0, dtype=torch.float64)] * (len(prompts) - 1)
    return [m[:, :, 0, at : at + len(p)].mean((0, 1)) for m, p in zip(maps, prompts, strict=True)]


# ── small models ─────────────────────────────────────────────────────────────────────────────────────────────────────


def randomise(model, seed=0):
    """Weights at which everything matters: timm's own are so small that an error would hide in rounding."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like, mean, std):
        return mean + std * torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, p in model.named_parameters():
            is_gain = p.ndim == 1 and name.endswith((".weight", ".gamma"))
            std = 0.3 if p.ndim == 1 else (0.5 if p.ndim == 3 else 1.3 / math.sqrt(p[0].numel()))
            p.copy_(draw(p, 1.0 if is_gain else 0.0, std).to(p.dtype))
    return model


def close(found, wanted, tolerance):
    """||a - b|| <= tolerance * ||b||, with the same shape."""
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    found, wanted = found.detach().double(), wanted.detach().double()
    assert torch.isfinite(found).all()
    error, size = float((found - wanted).norm()), float(wanted.norm())
    assert error <= tolerance * size, f"relative error {error / max(size, 1e-300):.3g} > {tolerance:g}"


def small_vit(**options):
    """A ViT with 16 patches, 3 blocks and weights at which everything matters."""
    from timm.models.vision_transformer import VisionTransformer

    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 7}
    return randomise(VisionTransformer(**{**settings, **options})).eval()


def with_attention(**options):
    """A ViT whose attention modules have options that `VisionTransformer` does not pass on."""
    from timm.layers import Attention, LayerNorm

    vit = small_vit()
    for block in vit.blocks:
        block.attn = Attention(32, num_heads=2, qkv_bias=True, norm_layer=LayerNorm, **options)
    return randomise(vit).eval()


def distilled_vit():
    vit = VisionTransformerDistilled(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=7, global_pool="token"
    )
    return randomise(vit).eval()


BACKBONES = {
    "class-token": small_vit,
    "class-token-avg": lambda: small_vit(global_pool="avg"),
    "no-class-token-avg": lambda: small_vit(class_token=False, global_pool="avg"),
    "max": lambda: small_vit(global_pool="max"),
    "avgmax": lambda: small_vit(class_token=False, global_pool="avgmax"),
    "avg-over-all-tokens": lambda: small_vit(global_pool="avg", pool_include_prefix=True, reg_tokens=1),
    "avg-without-fc-norm": lambda: small_vit(global_pool="avg", fc_norm=False),
    "token-with-fc-norm": lambda: small_vit(fc_norm=True),
    "no-final-norm": lambda: small_vit(final_norm=False),
    "registers": lambda: small_vit(reg_tokens=4),
    "registers-avg": lambda: small_vit(reg_tokens=3, global_pool="avg"),
    "registers-without-position": lambda: small_vit(reg_tokens=4, no_embed_class=True, init_values=1e-5),
    "no-position": lambda: small_vit(pos_embed="none"),
    "qk-norm": lambda: small_vit(qk_norm=True),
    "layer-scale": lambda: small_vit(init_values=1e-5),
    "pre-norm": lambda: small_vit(pre_norm=True),
    "scale-norms": lambda: small_vit(scale_attn_norm=True, scale_mlp_norm=True),
    "gated": lambda: with_attention(gated=True),
    "gated-qk-scale-norm": lambda: with_attention(gated=True, qk_norm=True, scale_norm=True),
    "wide-heads": lambda: with_attention(attn_head_dim=24),
    "no-qkv-bias": lambda: small_vit(qkv_bias=False),
    "no-proj-bias": lambda: small_vit(proj_bias=False),
    "one-head": lambda: small_vit(num_heads=1),
    "eight-heads": lambda: small_vit(num_heads=8),
    "one-block": lambda: small_vit(depth=1),
    "rms-norm": lambda: small_vit(norm_layer=RmsNorm, qk_norm=True),
    "swiglu": lambda: small_vit(mlp_layer=SwiGLU, act_layer=nn.SiLU),
    "distilled": distilled_vit,
    "post-norm": lambda: small_vit(block_fn=ResPostBlock),
    "post-norm-layer-scale-avg": lambda: small_vit(block_fn=ResPostBlock, global_pool="avg", init_values=1e-5),
    "attention-pooling": lambda: small_vit(class_token=False, global_pool="map"),
    "attention-pooling-class-token": lambda: small_vit(global_pool="map"),
    "non-square-image": lambda: small_vit(img_size=(32, 48)),
    "non-square-patch": lambda: small_vit(patch_size=(8, 16)),
    "dynamic-image-size": lambda: small_vit(dynamic_img_size=True),
    "dropout-everywhere": lambda: small_vit(
        drop_rate=0.5, pos_drop_rate=0.5, proj_drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5
    ),
    "patch-dropout": lambda: small_vit(patch_drop_rate=0.5),
}
"""Name -> function that makes a small backbone with random weights, for images of 32 pixels or `IMAGE_SIZES`."""

IMAGE_SIZES = {"non-square-image": (32, 48), "dynamic-image-size": (40, 24)}


def some_images(name, batch, *, seed=1, dtype=torch.float32):
    height, width = IMAGE_SIZES.get(name, (32, 32))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64).to(dtype)


def is_shallow(model):
    return model.method.name == "vpt-shallow"


def loss_weights(logits):
    """A loss that no symmetry of the logits hides from."""
    return torch.linspace(-1, 1.3, logits.numel(), dtype=logits.dtype).reshape(logits.shape).cos() * logits


def learned(model):
    return [p for p in [*model.prompts, model.head.weight, model.head.bias] if p.numel()]


def attached(name, method, *, execution="prefix", counts=None, dtype=torch.float32, num_classes=5, seed=3):
    """A prompted small model in eval mode: prompts and head are random and large; `counts` keeps P_l per block."""
    import vprompt

    model = vprompt.attach(BACKBONES[name](), method, num_classes=num_classes, execution=execution)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in [*model.prompts, model.head.weight, model.head.bias]:
            p.copy_(0.7 * torch.randn(p.shape, generator=generator))
    if counts is not None:
        wanted = [counts[block % len(counts)] for block in range(len(model.prompts))]
        model = model.keep([torch.arange(count) for count in wanted])
    return model.to(dtype).eval()
