"""A slow, independent implementation of visual prompt tuning for the other attention families, in float64.

Swin, Swin V2, Swin V2-Cr, SAM; EVA, DINOv3 and whatever else rotates; BEiT; relative positions; differential attention;
parallel blocks; talking heads; NaFlexVit. It reads the parameters of a plain timm model, calls none of timm's forward
passes, and writes out every softmax, window, roll, rotation, bias and average. What has nothing to do with prompts is
taken from the model: tables of sines and of log coordinates, the resampling of position embeddings, SAM's neck.

Where prompts stand: sequence models, after the prefix tokens and before the patches, without position embedding,
rotation or relative bias. Windows: before the tokens of every window, without relative bias or shift mask, as queries
and as keys; what the windows of one image compute for them is averaged.
"""

import copy
import math
from functools import cache, partial

import torch
import torch.nn.functional as F
from timm.layers import (
    AttentionPoolPrr,
    AttentionRope,
    DiffAttention,
    GluMlp,
    LayerNorm,
    Mlp,
    RmsNorm,
    RmsNormFp32,
    SwiGLU,
    get_act_layer,
    resample_abs_pos_embed,
)
from timm.layers.activations import GELU
from timm.layers.pos_embed_rel import RelPosMlp
from timm.models import beit
from timm.models.beit import Beit
from timm.models.cait import Cait, LayerScaleBlock, TalkingHeadAttn
from timm.models.deepseek_vit import DeepseekVitBlock, DeepseekVitClassifier
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.qwen3_vit import Qwen3VitClassifier, resample_pos_embed_grid
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import RelPosBlock, ResPostRelPosBlock, VisionTransformerRelPos
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

import reference
from reference import constant, cross_entropy, linear, scale, softmax_rows, wide

WRAPPED = (Qwen3VitClassifier, DeepseekVitClassifier)
SWIN = (SwinTransformer, SwinTransformerV2, SwinTransformerV2Cr)

# ── parts that all families share ────────────────────────────────────────────────────────────────────────────────────


def norm(x, module):
    if getattr(module, "weight", 0) is None:  # a norm that learns nothing
        module = copy.copy(module)
        module._parameters = {"weight": torch.ones(x.shape[-1]), "bias": torch.zeros(x.shape[-1])}
    return reference.norm(x, module)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def activation(x, module):
    if isinstance(module, nn.SiLU):
        return x * sigmoid(x)
    if isinstance(module, nn.ReLU):
        return x.clamp(min=0)
    if isinstance(module, get_act_layer("gelu_tanh")) or getattr(module, "approximate", "none") == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert isinstance(module, (nn.GELU, GELU)), type(module)
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


def gain(x, gamma):
    return x if gamma is None else x * constant(gamma)


def split_heads(x, heads):
    """(B, N, H·d) -> (B, H, N, d)."""
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, heads, width // heads).transpose(1, 2)


def merge_heads(x):
    batch, heads, tokens, d = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, heads * d)


def weights_of(q, k, factor, bias=None):
    """Softmax over the keys of factor · q·k + bias, (B, H, N, M)."""
    logits = torch.einsum("bhnd,bhmd->bhnm", q, k) * factor
    return softmax_rows(logits if bias is None else logits + bias)


def apart(bias, at, count):
    """The bias (H, N, N) with `count` rows and columns of zeros for prompts, which stand from `at` on."""
    heads, tokens, _ = bias.shape
    out = torch.zeros(heads, tokens + count, tokens + count, dtype=torch.float64)
    old = torch.tensor([n if n < at else n + count for n in range(tokens)], dtype=torch.int64)
    out[:, old[:, None], old] = bias
    return out


def rotate(x, table, *, half):
    """Every pair of channels of x (B, H, N, d) turned by its angle; `table` ((H,) N, 2·d) holds sines and cosines."""
    sines, cosines = wide(table.detach()).chunk(2, dim=-1)
    d = x.shape[-1]
    first, second = (slice(0, d // 2), slice(d // 2, d)) if half else (slice(0, d, 2), slice(1, d, 2))
    assert torch.equal(sines[..., first], sines[..., second])
    turned = torch.complex(x[..., first], x[..., second]) * torch.complex(cosines[..., first], sines[..., first])
    out = torch.empty_like(x)
    out[..., first], out[..., second] = turned.real, turned.imag
    return out


# ── attention over a sequence ────────────────────────────────────────────────────────────────────────────────────────


def projections(x, attn):
    """Queries, keys, values (B, heads, N, d), normed."""
    if getattr(attn, "qkv", None) is not None:
        y = x @ constant(attn.qkv.weight).T
        if getattr(attn, "q_bias", None) is not None:
            y = y + torch.cat([constant(attn.q_bias), torch.zeros(len(attn.q_bias)).double(), constant(attn.v_bias)])
        elif attn.qkv.bias is not None:
            y = y + constant(attn.qkv.bias)
        q, k, v = y.chunk(3, dim=-1)
    else:
        q, k, v = linear(x, attn.q_proj), linear(x, attn.k_proj), linear(x, attn.v_proj)
    heads, groups = attn.num_heads, getattr(attn, "num_kv_groups", 1)
    q, k, v = split_heads(q, heads), split_heads(k, heads // groups), split_heads(v, heads // groups)
    if hasattr(attn, "q_norm"):
        q, k = norm(q, attn.q_norm), norm(k, attn.k_norm)
    return q, k, v


def attention(x, attn, at, count, *, bias=None, rope=None):
    """Output (B, N, D) and weights (B, H, N, N); `count` prompts stand from `at` on.

    `bias` (H, N - count, N - count) and `rope` (a table for the patches alone) know nothing of prompts.
    """
    q, k, v = projections(x, attn)
    if rope is not None:
        patches, half = slice(at + count, None), bool(getattr(attn, "rotate_half", False))
        q = torch.cat([q[:, :, : at + count], rotate(q[:, :, patches], rope, half=half)], dim=2)
        k = torch.cat([k[:, :, : at + count], rotate(k[:, :, patches], rope, half=half)], dim=2)
    groups = attn.num_heads // k.shape[1]
    k, v = (torch.stack([t[:, head // groups] for head in range(attn.num_heads)], dim=1) for t in (k, v))
    weights = weights_of(q, k, 1 / math.sqrt(q.shape[-1]), None if bias is None else apart(bias, at, count))
    out = norm(merge_heads(weights @ v), getattr(attn, "norm", nn.Identity()))
    if getattr(attn, "gate", None) is not None:
        out = out * sigmoid(linear(x, attn.gate))
    return linear(out, attn.proj), weights


def talking_attention(x, attn):
    """Heads are mixed before the softmax and after it."""
    q, k, v = (split_heads(part, attn.num_heads) for part in linear(x, attn.qkv).chunk(3, dim=-1))
    logits = torch.einsum("bhnd,bhmd->bnmh", q, k) / math.sqrt(q.shape[-1])
    weights = softmax_rows(linear(logits, attn.proj_l).permute(0, 3, 1, 2))
    spoken = linear(weights.permute(0, 2, 3, 1), attn.proj_w).permute(0, 3, 1, 2)
    return linear(merge_heads(spoken @ v), attn.proj), weights


def subtracted(module):
    """λ; timm computes it in float32 when it is made of vectors."""
    if module.lambda_a is not None:
        one, two = torch.exp(constant(module.lambda_a)), torch.exp(constant(module.lambda_b))
    else:
        one = torch.exp((constant(module.lambda_q1) * constant(module.lambda_k1)).sum().float())
        two = torch.exp((constant(module.lambda_q2) * constant(module.lambda_k2)).sum().float())
    return (one - two + module.lambda_init).double()


def differential(q, k, v, module):
    """Differential attention of q, k, v (B, N, D): head h has the maps 2h and 2h + 1."""
    heads = module.num_heads
    q, k = (norm(split_heads(t, 2 * heads), n) for t, n in ((q, module.q_norm), (k, module.k_norm)))
    maps = weights_of(q, k, 1 / math.sqrt(q.shape[-1]))
    weights = maps[:, 0::2] - subtracted(module) * maps[:, 1::2]
    out = norm(weights @ split_heads(v, heads), module.sub_norm) * (1 - module.lambda_init)
    return merge_heads(out), weights


def differential_attention(x, attn):
    out, weights = differential(*linear(x, attn.qkv).chunk(3, dim=-1), attn)
    return linear(norm(out, attn.norm), attn.proj), weights


def parallel_block(x, block):
    """Attention and MLP side by side, from one norm and one projection."""
    y = linear(norm(x, block.in_norm), block.in_proj)
    width = x.shape[-1]
    hidden, q, k, v = y.split([y.shape[-1] - 3 * width, width, width, width], dim=-1)
    if block.mlp_bias is not None:
        hidden = hidden + constant(block.mlp_bias)
    hidden = activation(hidden, block.mlp_act)
    if isinstance(block, DiffParallelScalingBlock):
        mixed, weights = differential(q, k, v, block)
    else:
        q, k, v = (split_heads(t, block.num_heads) for t in (q, k, v))
        q, k = norm(q, block.q_norm), norm(k, block.k_norm)
        weights = weights_of(q, k, 1 / math.sqrt(q.shape[-1]))
        mixed = merge_heads(weights @ v)
    if block.out_proj is not None:
        out = linear(torch.cat([mixed, hidden], dim=-1), block.out_proj)
    else:
        out = linear(mixed, block.attn_out_proj) + linear(hidden, block.mlp_out_proj)
    return x + scale(out, block.ls), weights


def run_block(x, block, at, count, *, bias, rope):
    """The tokens after a block, and its attention weights."""
    if isinstance(block, (ParallelScalingBlock, DiffParallelScalingBlock)):
        return parallel_block(x, block)

    def attend(y, attn):
        if isinstance(attn, DiffAttention):
            return differential_attention(y, attn)
        if isinstance(attn, TalkingHeadAttn):
            return talking_attention(y, attn)
        return attention(y, attn, at, count, bias=bias, rope=rope)

    if isinstance(block, ParallelThingsBlock):
        branches = [attend(norm(x, a.norm), a.attn) for a in block.attns]
        x = x + sum(scale(out, a.ls) for (out, _), a in zip(branches, block.attns, strict=True))
        weights = torch.stack([w for _, w in branches]).mean(0)
        return x + sum(scale(mlp(norm(x, f.norm), f.mlp), f.ls) for f in block.ffns), weights
    if isinstance(block, (ResPostBlock, ResPostRelPosBlock, EvaBlockPostNorm)):
        mixed, weights = attend(x, block.attn)
        x = x + norm(mixed, block.norm1)
        return x + norm(mlp(x, block.mlp), block.norm2), weights
    mixed, weights = attend(norm(x, block.norm1), block.attn)
    if isinstance(block, DeepseekVitBlock):
        x = x + mixed
        return x + mlp(norm(x, block.norm2), block.mlp), weights
    if isinstance(block, (EvaBlock, beit.Block, LayerScaleBlock)):
        x = x + gain(mixed, block.gamma_1)
        return x + gain(mlp(norm(x, block.norm2), block.mlp), block.gamma_2), weights
    assert isinstance(block, (Block, RelPosBlock)), type(block)
    x = x + scale(mixed, block.ls1)
    return x + scale(mlp(norm(x, block.norm2), block.mlp), block.ls2), weights


# ── relative positions ───────────────────────────────────────────────────────────────────────────────────────────────


@cache
def rows_of_offsets(height, width):
    """Which row of a table of offsets stands for each pair of the tokens of a window, (N, N)."""
    rows = torch.zeros(height * width, height * width, dtype=torch.int64)
    for n in range(height * width):
        for m in range(height * width):
            down, right = n // width - m // width, n % width - m % width
            rows[n, m] = (down + height - 1) * (2 * width - 1) + right + width - 1
    return rows


def table_bias(table, height, width, *, class_token):
    """Bias (H, N, N) from a table of offsets (rows, H); a class token has the last three rows."""
    table = constant(table)
    bias = table[rows_of_offsets(height, width)].permute(2, 0, 1)
    if not class_token:
        return bias
    out = F.pad(bias, (1, 0, 1, 0))
    out[:, 0, 1:] = table[-3][:, None]
    out[:, 1:, 0] = table[-2][:, None]
    out[:, 0, 0] = table[-1]
    return out


def relative_bias(module, *, prefix_tokens):
    """Bias of timm's `RelPosBias` or `RelPosMlp`, in which the MLP knows no class token: it gets zeros."""
    if not isinstance(module, RelPosMlp):
        return table_bias(module.relative_position_bias_table, *module.window_size, class_token=prefix_tokens > 0)
    table = mlp(wide(module.rel_coords_log), module.mlp).flatten(0, 1)
    if module.mode == "swin":
        table = 16 * sigmoid(table)
    return F.pad(table_bias(table, *module.window_size, class_token=False), (prefix_tokens, 0, prefix_tokens, 0))


def sequence_biases(model):
    """Bias (H, N, N) or None for every block."""
    count = len(blocks_of(model))
    if isinstance(model, Beit):
        found = [None] * count
        for number, block in enumerate(model.blocks):
            parts = [m for m in (model.rel_pos_bias, block.attn) if m is not None]
            parts = [m for m in parts if m.relative_position_bias_table is not None]
            biases = [table_bias(m.relative_position_bias_table, *m.window_size, class_token=True) for m in parts]
            found[number] = sum(biases) if biases else None
        return found
    if isinstance(model, VisionTransformerRelPos):
        prefix = model.num_prefix_tokens
        if model.shared_rel_pos is not None:
            return [relative_bias(model.shared_rel_pos, prefix_tokens=prefix)] * count
        return [relative_bias(block.attn.rel_pos, prefix_tokens=prefix) for block in model.blocks]
    return [None] * count


def rope_tables(model, grid):
    """Sines and cosines of the patches, or None, for every block."""
    model = model.encoder if isinstance(model, WRAPPED) else model
    rope = getattr(model, "rope", None)
    if rope is None:
        return [None] * len(model.blocks)
    fixed = isinstance(model, Eva) and not model.dynamic_img_size and hasattr(rope, "feat_shape")
    table = rope.get_embed() if fixed else rope.get_embed(shape=list(grid))
    mixed = getattr(model, "rope_mixed", False) or getattr(model, "rope_is_mixed", False)
    return list(table) if mixed else [table] * len(model.blocks)


# ── sequence models ──────────────────────────────────────────────────────────────────────────────────────────────────


def patchify(images, patch_size, *, pad=False, channels_last=False):
    """Patches (B, N, 3·ph·pw), row by row, and their grid."""
    images = wide(images)
    ph, pw = patch_size
    if pad:
        images = F.pad(images, (0, -images.shape[3] % pw, 0, -images.shape[2] % ph))
    rows = []
    for top in range(0, images.shape[2], ph):
        for left in range(0, images.shape[3], pw):
            patch = images[:, :, top : top + ph, left : left + pw]
            rows.append((patch.permute(0, 2, 3, 1) if channels_last else patch).flatten(1))
    return torch.stack(rows, dim=1), (images.shape[2] // ph, images.shape[3] // pw)


def project_patches(patches, proj):
    y = patches @ constant(proj.weight).flatten(1).T
    return y if proj.bias is None else y + constant(proj.bias)


def leading(model):
    """How many tokens stand before the patches while blocks with prompts run."""
    return 0 if isinstance(model, Cait) else model.num_prefix_tokens


def leading_tokens(owner, batch):
    names = ("cls_token", "dist_token", "reg_token")
    found = [getattr(owner, name, None) for name in names]
    return [constant(token).expand(batch, -1, -1) for token in found if token is not None]


def embed_naflex(model, images):
    embeds = model.embeds
    patches, grid = patchify(
        images, embeds.patch_size, pad=embeds.dynamic_img_pad, channels_last=embeds.is_linear and embeds.channels_last
    )
    x = norm(project_patches(patches, embeds.proj), embeds.norm)
    asked = (max(grid), max(grid)) if embeds.pos_embed_ar_preserving else grid
    if embeds.pos_embed_type == "learned":
        table = embeds.pos_embed.detach()
        if tuple(table.shape[1:3]) != tuple(grid):
            table = F.interpolate(
                table.permute(0, 3, 1, 2).float(),
                size=asked,
                mode=embeds.pos_embed_interp_mode,
                align_corners=embeds.pos_embed_align_corners,
                antialias=embeds.pos_embed_antialias,
            ).permute(0, 2, 3, 1)[:, : grid[0], : grid[1]]
        x = x + wide(table).flatten(1, 2)
    elif embeds.pos_embed_type == "factorized":
        sides = []
        for table, length, kept in ((embeds.pos_embed_y, asked[0], grid[0]), (embeds.pos_embed_x, asked[1], grid[1])):
            side = table.detach()
            if side.shape[1] != length:
                side = F.interpolate(side.mT.float(), size=length, mode="linear", align_corners=False).mT
            sides.append(wide(side)[0, :kept])
        x = x + (sides[0][:, None] + sides[1][None]).flatten(0, 1)
    return torch.cat([*leading_tokens(embeds, len(images)), x], dim=1), grid


def embed_wrapped(encoder, images):
    patches, grid = patchify(images, encoder.patch_embed.patch_size, pad=encoder.patch_embed.dynamic_img_pad)
    x = project_patches(patches, encoder.patch_embed.proj)
    if hasattr(encoder, "pos_embed"):
        x = x + wide(resample_pos_embed_grid(encoder.pos_embed.detach(), encoder.pos_embed_grid_size, grid))
    return x, grid


def embed(model, images):
    """Tokens (B, N, D) that enter the first block, and the grid of the patches among them."""
    if isinstance(model, WRAPPED):
        return embed_wrapped(model.encoder, images)
    if isinstance(model, Cait):
        patches, grid = patchify(images, model.patch_embed.patch_size)
        return project_patches(patches, model.patch_embed.proj) + constant(model.pos_embed), grid
    if isinstance(model, NaFlexVit):
        x, grid = embed_naflex(model, images)
        return norm(x, model.norm_pre), grid
    embedding = model.patch_embed
    patches, grid = patchify(images, embedding.patch_size, pad=embedding.dynamic_img_pad)
    x = norm(project_patches(patches, embedding.proj), embedding.norm)
    first = leading_tokens(model, len(images))
    position, late = getattr(model, "pos_embed", None), not getattr(model, "no_embed_class", False)
    if position is not None and grid != tuple(embedding.grid_size):
        position = resample_abs_pos_embed(
            position.detach(),
            new_size=grid,
            old_size=embedding.grid_size,
            num_prefix_tokens=model.num_prefix_tokens if late else 0,
        )
    if position is not None and not late:
        x = x + wide(position.detach())
    x = torch.cat([*first, x], dim=1)
    if position is not None and late:
        x = x + wide(position.detach())
    return norm(x, getattr(model, "norm_pre", nn.Identity())), grid


def attention_pool(x, pool):
    """timm's pooling by a learned query, or by attention of the tokens to themselves without any weights."""
    if isinstance(pool, AttentionPoolPrr):
        heads = split_heads(norm(x, pool.pre_norm), pool.num_heads)
        out = norm(merge_heads(weights_of(heads, heads, 1 / math.sqrt(heads.shape[-1])) @ heads), pool.post_norm)
        return out[:, 0] if pool.pool == "token" else out.mean(1)
    q = split_heads(linear(constant(pool.latent).expand(len(x), -1, -1), pool.q), pool.num_heads)
    k, v = (split_heads(part, pool.num_heads) for part in linear(x, pool.kv).chunk(2, dim=-1))
    weights = weights_of(norm(q, pool.q_norm), norm(k, pool.k_norm), 1 / math.sqrt(q.shape[-1]))
    out = linear(merge_heads(weights @ v), pool.proj)
    return (out + mlp(norm(out, pool.norm), pool.mlp))[:, 0]


def ask_class_token(model, x):
    """CaiT's class token, which comes after all blocks with prompts and looks at the patches."""
    token = constant(model.cls_token).expand(len(x), -1, -1)
    for block in model.blocks_token_only:
        attn, seen = block.attn, norm(torch.cat([token, x], dim=1), block.norm1)
        q, k, v = (
            split_heads(linear(y, p), attn.num_heads)
            for y, p in ((seen[:, :1], attn.q), (seen, attn.k), (seen, attn.v))
        )
        mixed = merge_heads(weights_of(q, k, 1 / math.sqrt(q.shape[-1])) @ v)
        token = token + gain(linear(mixed, attn.proj), block.gamma_1)
        token = token + gain(mlp(norm(token, block.norm2), block.mlp), block.gamma_2)
    return torch.cat([token, x], dim=1)


def pool_wrapped(model, x, grid):
    """Mean over what the encoder hands on: its tokens, or these projected block by block of the grid."""
    encoder = model.encoder
    x = norm(x, getattr(encoder, "norm", nn.Identity()))
    merger, aligner = getattr(encoder, "merger", None), getattr(encoder, "aligner", None)
    if merger is not None:
        side, x = merger.merge_size, norm(x, merger.norm).unflatten(1, grid)
        corners = [x[:, down::side, right::side] for down in range(side) for right in range(side)]
        x = activation(linear(torch.cat(corners, dim=-1).flatten(1, 2), merger.fc1), merger.act)
        x = linear(x, merger.fc2) if isinstance(merger.fc2, nn.Linear) else x
    if aligner is not None:
        side, x = aligner.downsample_ratio, x.unflatten(1, grid)
        x = F.pad(x, (0, 0, 0, -grid[1] % side, 0, -grid[0] % side))
        corners = [x[:, down::side, right::side] for down in range(side) for right in range(side)]
        x = torch.stack(corners, dim=-1).flatten(3).flatten(1, 2)
        x = linear(activation(linear(x, aligner.fc1), aligner.act), aligner.fc2)
    return norm(x.mean(1), model.norm)


def pool_sequence(model, x, grid):
    if isinstance(model, WRAPPED):
        return pool_wrapped(model, x, grid)
    if isinstance(model, Cait):
        x = norm(ask_class_token(model, x), model.norm)
        return x[:, 0] if model.global_pool == "token" else x[:, 1:].mean(1)
    x = norm(x, model.norm)
    # An EVA pools by attention over all tokens, the others leave the prefix tokens out unless told not to.
    everything = getattr(model, "pool_include_prefix", False) or (isinstance(model, Eva) and model.global_pool == "map")
    tokens = x if everything else x[:, model.num_prefix_tokens :]
    pooling = {
        "token": lambda: x[:, 0],
        "avg": lambda: tokens.mean(1),
        "max": lambda: tokens.amax(1),
        "avgmax": lambda: 0.5 * (tokens.mean(1) + tokens.amax(1)),
        "map": lambda: attention_pool(tokens, model.attn_pool),
        "prr": lambda: attention_pool(tokens, model.attn_pool),
    }
    return norm(pooling[model.global_pool](), model.fc_norm)


def run_sequence(model, prompts, images, *, shallow):
    x, grid = embed(model, images)
    at, maps, blocks = leading(model), [], blocks_of(model)
    biases, ropes = sequence_biases(model), rope_tables(model, grid)
    for number, block in enumerate(blocks):
        own = per_image(prompts[0 if shallow else number], len(images))
        if number == 0 or not shallow:
            x = torch.cat([x[:, :at], own, x[:, at:]], dim=1)
        x, weights = run_block(x, block, at, own.shape[1], bias=biases[number], rope=ropes[number])
        maps.append(weights)
        if number == len(blocks) - 1 or not shallow:
            x = torch.cat([x[:, :at], x[:, at + own.shape[1] :]], dim=1)
    return pool_sequence(model, x, grid), maps


# ── Swin ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def unit(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True)).clamp(min=1e-12)


def window_bias(attn):
    """Relative bias (H, A, A) of the tokens of a window."""
    height, width = attn.window_size
    if hasattr(attn, "relative_position_bias_table"):
        return table_bias(attn.relative_position_bias_table, height, width, class_token=False)
    if hasattr(attn, "cpb_mlp"):
        hidden = linear(wide(attn.relative_coords_table).flatten(0, 2), attn.cpb_mlp[0]).clamp(min=0)
        table = 16 * sigmoid(linear(hidden, attn.cpb_mlp[2]))
        return table_bias(table, height, width, class_token=False)
    pairs = mlp(wide(attn.relative_coordinates_log), attn.meta_mlp)
    area = height * width
    return torch.stack([pairs[:, head].reshape(area, area) for head in range(attn.num_heads)])


def window_attention(x, attn, bias):
    """Output (B, N, C) for the prompts and tokens x (B, N, C) of one window of every image."""
    q, k, v = projections(x, attn)
    if hasattr(attn, "logit_scale"):
        factor = torch.exp(constant(attn.logit_scale).reshape(-1, 1, 1).clamp(max=math.log(100)))
        weights = weights_of(unit(q), unit(k), factor, bias)
    else:
        weights = weights_of(q, k, 1 / math.sqrt(q.shape[-1]), bias)
    return linear(merge_heads(weights @ v), attn.proj)


def all_windows(x, prompts, block):
    """Attention of a block: of tokens (B, H, W, C), and of prompts (B, P, C) averaged over the windows of an image."""
    _, height, width, _ = x.shape
    count = prompts.shape[1]
    (tall, wide_), (down, right) = block.window_size, block.shift_size
    rows = [(row + down) % height for row in range(height)]
    columns = [(column + right) % width for column in range(width)]
    x = x[:, rows][:, :, columns]
    x = F.pad(x, (0, 0, 0, -width % wide_, 0, -height % tall))
    full_height, full_width = x.shape[1:3]
    # Tokens that the roll brought beside each other do not see each other; timm says so with -100.
    far_row = [down > 0 and row >= full_height - down for row in range(full_height)]
    far_column = [right > 0 and column >= full_width - right for column in range(full_width)]
    relative = window_bias(block.attn)
    out, seen = torch.zeros_like(x), []
    for top in range(0, full_height, tall):
        for left in range(0, full_width, wide_):
            places = [(r, c) for r in range(top, top + tall) for c in range(left, left + wide_)]
            regions = torch.tensor([2 * far_row[r] + far_column[c] for r, c in places])
            mask = torch.where(regions[:, None] == regions[None], 0.0, -100.0).double()
            tile = x[:, top : top + tall, left : left + wide_].flatten(1, 2)
            found = window_attention(torch.cat([prompts, tile], dim=1), block.attn, apart(relative + mask, 0, count))
            seen.append(found[:, :count])
            out[:, top : top + tall, left : left + wide_] = found[:, count:].unflatten(1, (tall, wide_))
    out = out[:, :height, :width]
    back_rows = [(row - down) % height for row in range(height)]
    back_columns = [(column - right) % width for column in range(width)]
    return out[:, back_rows][:, :, back_columns], sum(seen) / len(seen)


def swin_block(x, prompts, block, *, post_norm):
    """Tokens and prompts after a block."""
    if post_norm:
        mixed, shared = all_windows(x, prompts, block)
        mixed, shared = norm(mixed, block.norm1), norm(shared, block.norm1)
    else:
        mixed, shared = all_windows(norm(x, block.norm1), norm(prompts, block.norm1), block)

    def rest(y, attended):
        y = y + attended
        y = y + (norm(mlp(y, block.mlp), block.norm2) if post_norm else mlp(norm(y, block.norm2), block.mlp))
        return norm(y, getattr(block, "norm3", nn.Identity()))

    return rest(x, mixed), rest(prompts, shared)


def reduce_(x, merging, *, norm_last):
    if norm_last:
        return norm(linear(x, merging.reduction), merging.norm)
    return linear(norm(x, merging.norm), merging.reduction)


def merge_patches(x, merging, *, norm_last):
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    corners = [x[:, down::2, right::2] for right in (0, 1) for down in (0, 1)]
    return reduce_(torch.cat(corners, dim=-1), merging, norm_last=norm_last)


def run_swin(model, prompts, images, *, shallow):
    second = isinstance(model, SwinTransformerV2)
    post_norm = second or isinstance(model, SwinTransformerV2Cr)
    embedding, batch = model.patch_embed, len(images)
    patches, grid = patchify(images, embedding.patch_size)
    x = norm(project_patches(patches, embedding.proj), embedding.norm).unflatten(1, grid)
    travelling, number = per_image(prompts[0], batch), 0
    for stage in model.stages if isinstance(model, SwinTransformerV2Cr) else model.layers:
        if not isinstance(stage.downsample, nn.Identity):
            x = merge_patches(x, stage.downsample, norm_last=second)
            if shallow:
                travelling = reduce_(torch.cat([travelling] * 4, dim=-1), stage.downsample, norm_last=second)
        for block in stage.blocks:
            own = travelling if shallow else per_image(prompts[number], batch)
            x, travelling = swin_block(x, own, block, post_norm=post_norm)
            number += 1
    x = norm(x, getattr(model, "norm", nn.Identity())).flatten(1, 2)
    mean, most = x.mean(1), x.amax(1)
    pooled = {
        "avg": mean,
        "max": most,
        "avgmax": 0.5 * (mean + most),
        "catavgmax": torch.cat([mean, most], dim=1),
    }
    return pooled[model.head.global_pool.pool_type], []


# ── SAM ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def sam_bias(q, attn, tall, wide_):
    """What the tokens' own queries (B, H, N, d) say of distances, (B, H, N, N): one part down, one part across."""
    down = wide(attn.rel_pos_h)[torch.arange(tall)[:, None] - torch.arange(tall) + tall - 1]
    across = wide(attn.rel_pos_w)[torch.arange(wide_)[:, None] - torch.arange(wide_) + wide_ - 1]
    rows, columns = torch.arange(tall).repeat_interleave(wide_), torch.arange(wide_).repeat(tall)
    distances = down[rows[:, None], rows] + across[columns[:, None], columns]
    return torch.einsum("bhnd,nmd->bhnm", q, distances)


def sam_attention(x, attn, count, size):
    """Output (B, N, C) for the prompts and tokens of one window of every image."""
    q, k, v = projections(x, attn)
    if attn.rope is not None:
        table = attn.rope.get_embed()
        q, k = (torch.cat([t[:, :, :count], rotate(t[:, :, count:], table, half=False)], dim=2) for t in (q, k))
    logits = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(q.shape[-1])
    if attn.use_rel_pos:
        logits[:, :, count:, count:] += sam_bias(q[:, :, count:], attn, *size)
    return linear(merge_heads(softmax_rows(logits) @ v), attn.proj)


def sam_block(x, prompts, block):
    _, height, width, _ = x.shape
    count, side = prompts.shape[1], block.window_size
    tall, wide_ = (side, side) if side else (height, width)
    seen, shown = F.pad(norm(x, block.norm1), (0, 0, 0, -width % wide_, 0, -height % tall)), norm(prompts, block.norm1)
    mixed, shared = torch.zeros_like(seen), []
    for top in range(0, seen.shape[1], tall):
        for left in range(0, seen.shape[2], wide_):
            tile = seen[:, top : top + tall, left : left + wide_].flatten(1, 2)
            found = sam_attention(torch.cat([shown, tile], dim=1), block.attn, count, (tall, wide_))
            shared.append(found[:, :count])
            mixed[:, top : top + tall, left : left + wide_] = found[:, count:].unflatten(1, (tall, wide_))

    def rest(y, attended):
        y = y + scale(attended, block.ls1)
        return y + scale(mlp(norm(y, block.norm2), block.mlp), block.ls2)

    return rest(x, mixed[:, :height, :width]), rest(prompts, sum(shared) / len(shared))


def run_sam(model, prompts, images, *, shallow):
    patches, grid = patchify(images, model.patch_embed.patch_size)
    x = project_patches(patches, model.patch_embed.proj).unflatten(1, grid)
    x = norm(x if model.pos_embed is None else x + wide(model.pos_embed), model.norm_pre)
    travelling = per_image(prompts[0], len(images))
    for number, block in enumerate(model.blocks):
        own = travelling if shallow else per_image(prompts[number], len(images))
        x, travelling = sam_block(x, own, block)
    features = model.neck(x.permute(0, 3, 1, 2))  # convolutions, which prompts never see
    return model.forward_head(features, pre_logits=True), []


# ── visual prompt tuning ─────────────────────────────────────────────────────────────────────────────────────────────


def per_image(prompts, batch):
    """Prompts (B, P, D) of (P, D), or of (B, P, D) that differ between images."""
    prompts = wide(prompts)
    return prompts.expand(batch, -1, -1) if prompts.ndim == 2 else prompts


def run(model, prompts, images, *, shallow=False):
    """Pooled features (B, num_features), and the attention weights of every block (sequence models)."""
    assert len(prompts) == len(blocks_of(model))
    forward = run_swin if isinstance(model, SWIN) else run_sequence
    forward = run_sam if isinstance(model, VisionTransformerSAM) else forward
    return forward(model, prompts, images, shallow=shallow)


def prompted(model, prompts, images, *, shallow=False):
    """Pooled features (B, num_features); `prompts`: one tensor (P_l, D_l) or (B, P_l, D_l) per block."""
    return run(model, prompts, images, shallow=shallow)[0]


def logits(model, prompts, weight, bias, images, *, shallow=False):
    return prompted(model, prompts, images, shallow=shallow) @ wide(weight).T + wide(bias)


def blocks_of(model):
    """All blocks in the order in which they run."""
    if isinstance(model, SWIN):
        stages = model.stages if isinstance(model, SwinTransformerV2Cr) else model.layers
        return [block for stage in stages for block in stage.blocks]
    return list((model.encoder if isinstance(model, WRAPPED) else model).blocks)


def widths_of(model):
    """D_l for every block."""
    if isinstance(model, SWIN):
        return [block.dim for block in blocks_of(model)]
    return [model.embed_dim] * len(blocks_of(model))


def no_prompts(model):
    return [torch.zeros(0, width) for width in widths_of(model)]


def taylor(model, prompts, weight, bias, images, labels, *, shallow=False):
    """s_l[p] = mean over images of |<dL_i/dp, p>|, image by image."""
    leaves = [p.detach().double().requires_grad_() for p in prompts]
    scores = [torch.zeros(len(p), dtype=torch.float64) for p in leaves]
    for image, label in zip(images, labels, strict=True):
        found = logits(model, leaves, weight.detach(), bias.detach(), image[None], shallow=shallow)
        gradients = torch.autograd.grad(cross_entropy(found, label[None]).sum(), leaves, allow_unused=True)
        for score, gradient, leaf in zip(scores, gradients, leaves, strict=True):
            for p in range(len(leaf)):
                score[p] += abs(float(gradient[p] @ leaf[p].detach()))
    return [score / len(images) for score in scores]


def class_similarity(model, prompts, images, *, shallow=False):
    """Mean over images and heads of the class token's weight on each prompt; shallow: and over blocks."""
    with torch.no_grad():
        _, maps = run(model, prompts, images, shallow=shallow)
    at = leading(model)
    if shallow:
        count = len(prompts[0])
        per_block = torch.stack([m[:, :, 0, at : at + count].mean((0, 1)) for m in maps])
        return [per_block.mean(0)] + [torch.zeros(0, dtype=torch.float64)] * (len(prompts) - 1)
    return [m[:, :, 0, at : at + len(p)].mean((0, 1)) for m, p in zip(maps, prompts, strict=True)]


# ── small models ─────────────────────────────────────────────────────────────────────────────────────────────────────


def randomise(model, seed=0):
    """Weights at which everything matters: what timm starts at zero or at a constant is drawn as well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            last = name.rsplit(".", 1)[-1]
            if last == "logit_scale":
                drawn = math.log(10) + 0.5 * drawn
            elif name.endswith(("cpb_mlp.2.weight", "rel_pos.mlp.fc2.weight")) and "cpb" in name + swin_mode(model):
                # 16 · sigmoid of it: nearer 0 than 16, lest prompts, whose bias is zero, have no say.
                drawn = -drawn.abs() * 8 / p.shape[1]
            elif last == "freqs":
                drawn = 0.7 * drawn
            elif p.ndim <= 1:
                is_gain = last in ("weight", "gamma", "gamma_1", "gamma_2")
                drawn = (1.0 if is_gain else 0.0) + 0.3 * drawn
            elif p.ndim == 3 or "pos_embed" in last:
                drawn = 0.5 * drawn
            else:
                drawn = 1.3 / math.sqrt(p[0].numel()) * drawn
            p.copy_(drawn.to(p.dtype))
    return model.eval()


def swin_mode(model):
    modules = (m for m in model.modules() if isinstance(m, RelPosMlp))
    return "cpb" if any(m.mode == "swin" for m in modules) else ""


def small(kind, settings, options):
    torch.manual_seed(0)
    return randomise(kind(**{**settings, **options}))


def swin(**options):
    settings = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    return small(SwinTransformer, {**settings, "window_size": 4, "num_classes": 7}, options)


def swin2(**options):
    settings = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    return small(SwinTransformerV2, {**settings, "window_size": 4, "num_classes": 7}, options)


def swin_cr(**options):
    settings = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    return small(SwinTransformerV2Cr, {**settings, "window_size": 4, "num_classes": 7}, options)


def sam(**options):
    settings = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 7}
    settings |= {"window_size": 3, "global_attn_indexes": (1,), "neck_chans": 12, "use_rel_pos": True}
    return small(VisionTransformerSAM, settings, options)


SEQUENCE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 7}


def eva(**options):
    return small(Eva, SEQUENCE, options)


def rope_vit(**options):
    """A ViT as timm makes its rotary ones: no position embedding but the rotation."""
    return eva(**{"attn_type": "rope", "use_rot_pos_emb": True, "use_abs_pos_emb": False, **options})


def dinov3(**options):
    settings = {"rope_type": "dinov3", "rope_temperature": 100.0, "rope_rotate_half": True, "num_reg_tokens": 4}
    settings |= {"no_embed_class": True, "use_fc_norm": False, "init_values": 1e-5, "qkv_bias": False}
    return rope_vit(**{**settings, **options})


def changed(model, change):
    """The model after `change` was called on every block."""
    for block in blocks_of(model):
        change(block)
    return randomise(model)


def separate_bias(block):
    block.attn.qkv_bias_separate = True


def gate(block):
    old = block.attn
    block.attn = AttentionRope(
        32,
        num_heads=2,
        num_prefix_tokens=old.num_prefix_tokens,
        norm_layer=LayerNorm,
        qk_norm=True,
        scale_norm=True,
        gated=True,
    )


def sharpen(block):
    """Logit scales on both sides of their upper limit."""
    with torch.no_grad():
        block.attn.logit_scale.copy_(torch.linspace(3, 6, block.attn.num_heads).reshape_as(block.attn.logit_scale))


def sharp(model):
    for block in blocks_of(model):
        sharpen(block)
    return model


def beit_(**options):
    return small(Beit, SEQUENCE, options)


def relpos(**options):
    return small(VisionTransformerRelPos, SEQUENCE, options)


def vit(**options):
    return small(VisionTransformer, SEQUENCE, options)


def diff(**options):
    return vit(attn_layer="diff", **options)


def two_scalars(block):
    depth = round(-math.log((0.8 - block.attn.lambda_init) / 0.6) / 0.3)
    block.attn = DiffAttention(32, num_heads=2, qkv_bias=True, depth=depth, dual_lambda=True)


def naflex(**options):
    torch.manual_seed(0)
    settings = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "pos_embed_grid_size": (4, 4)}
    return randomise(NaFlexVit(NaFlexVitCfg(**{**settings, **options}), num_classes=7))


def cait(**options):
    return small(Cait, SEQUENCE, options)


def qwen(**options):
    return small(Qwen3VitClassifier, {**SEQUENCE, "mlp_ratio": 2.0, "pos_embed_grid_size": 4}, options)


def deepseek(**options):
    """DeepSeek's norms compute in float32 in whatever type: they are exchanged for the same in full."""
    model = small(DeepseekVitClassifier, {**SEQUENCE, "mlp_ratio": 2.0}, options)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, RmsNormFp32):
                full = RmsNorm(child.normalized_shape, eps=child.eps, affine=child.weight is not None)
                full.load_state_dict(child.state_dict())
                setattr(module, name, full.eval())
    return model


GAP = {"global_pool": "avg", "reg_tokens": 4, "fc_norm": True, "init_values": 1e-5}
AXIAL = {"global_pool": "avg", "rope_type": "axial", "pos_embed": "none"}
PARALLEL = {"block_fn": ParallelScalingBlock}
DIFF_PARALLEL = {"block_fn": DiffParallelScalingBlock}

BACKBONES = {
    # 8 x 8 in windows of 3 with padding; the second block sees the whole map.
    "sam": sam,
    "sam-rope": lambda: sam(use_rel_pos=False, use_rope=True, init_values=1e-5, neck_chans=0, head_hidden_size=20),
    "sam-plain-non-square": lambda: sam(use_rel_pos=False, img_size=(24, 40), qk_norm=True, qkv_bias=False),
    # Four windows, rolled in the second block; then one window that is the whole map.
    "swin": swin,
    "swin-three-stages": lambda: swin(patch_size=2, depths=(1, 2, 1), num_heads=(1, 2, 4)),
    # 9 x 9 in windows of 4, then 5 x 5: padding in windows, and before patches merge.
    "swin-padded": lambda: swin(img_size=36),
    # 6 x 10 in windows of 4 x 3, then 3 x 5 in windows of 3 x 3 that are rolled along one side only.
    "swin-non-square": lambda: swin(img_size=(24, 40), window_size=(4, 3)),
    "swin-non-square-patch": lambda: swin(patch_size=(4, 2), window_size=(4, 8)),
    "swin-always-partition": lambda: swin(img_size=24, always_partition=True),
    "swin-window-per-stage": lambda: swin(window_size=((4, 4), (2, 2))),
    "swin-dynamic": lambda: swin(strict_img_size=False),
    "swin-head-dim": lambda: swin(head_dim=12),
    "swin-no-qkv-bias": lambda: swin(qkv_bias=False),
    "swin-max": lambda: swin(global_pool="max"),
    "swin-avgmax": lambda: swin(global_pool="avgmax", img_size=36),
    "swin-catavgmax": lambda: swin(global_pool="catavgmax"),
    "swin-one-stage": lambda: swin(depths=(3,), num_heads=(2,)),
    "swin-dropout": lambda: swin(
        drop_rate=0.5, proj_drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5, img_size=36
    ),
    "swin2": swin2,
    "swin2-three-stages": lambda: swin2(patch_size=2, depths=(1, 2, 1), num_heads=(1, 2, 4)),
    "swin2-padded": lambda: swin2(img_size=36),
    "swin2-non-square": lambda: swin2(img_size=(24, 40), window_size=(4, 3)),
    "swin2-always-partition": lambda: swin2(img_size=24, always_partition=True),
    "swin2-dynamic": lambda: swin2(strict_img_size=False),
    "swin2-pretrained-windows": lambda: swin2(pretrained_window_sizes=(6, 3)),
    "swin2-no-qkv-bias": lambda: swin2(qkv_bias=False, img_size=36),
    "swin2-separate-bias": lambda: changed(swin2(), separate_bias),
    "swin2-sharp": lambda: sharp(swin2()),
    "swin2-max": lambda: swin2(global_pool="max"),
    "swin-cr": swin_cr,
    "swin-cr-padded": lambda: swin_cr(img_size=36),
    "swin-cr-non-square": lambda: swin_cr(img_size=(24, 40), window_size=(4, 3)),
    "swin-cr-always-partition": lambda: swin_cr(img_size=24, always_partition=True),
    "swin-cr-dynamic": lambda: swin_cr(strict_img_size=False),
    "swin-cr-window-ratio": lambda: swin_cr(window_size=None, window_ratio=2, depths=(1, 2, 1), num_heads=(1, 2, 4)),
    "swin-cr-extra-norm-period": lambda: swin_cr(extra_norm_period=1, init_values=None),
    "swin-cr-extra-norm-stage": lambda: swin_cr(extra_norm_stage=True),
    "swin-cr-sharp": lambda: sharp(swin_cr()),
    "swin-cr-max": lambda: swin_cr(global_pool="max"),
    "eva": eva,
    "eva-rope": lambda: eva(use_rot_pos_emb=True, ref_feat_shape=(2, 3)),
    "eva-rope-unfused": lambda: eva(use_rot_pos_emb=True, qkv_fused=False),
    "eva-unfused-no-qkv-bias": lambda: eva(qkv_fused=False, qkv_bias=False),
    "eva-no-qkv-bias": lambda: eva(qkv_bias=False, use_rot_pos_emb=True),
    "eva-separate-bias": lambda: changed(eva(use_rot_pos_emb=True), separate_bias),
    "eva-post-norm": lambda: eva(use_post_norm=True),
    "eva-post-norm-rope": lambda: eva(use_post_norm=True, use_rot_pos_emb=True, attn_type="rope", global_pool="token"),
    "eva-scale-inner": lambda: eva(scale_attn_inner=True, use_rot_pos_emb=True),
    "eva-swiglu": lambda: eva(swiglu_mlp=True, use_rot_pos_emb=True),
    "eva02": lambda: eva(swiglu_mlp=True, scale_mlp=True, qkv_fused=False, use_rot_pos_emb=True, scale_attn_inner=True),
    "eva-scale-mlp": lambda: eva(scale_mlp=True),
    "eva-layer-scale": lambda: eva(init_values=1e-5, use_rot_pos_emb=True),
    "eva-attention-layer-scale": lambda: eva(init_values=1e-5, attn_only_layer_scale=True),
    "eva-qk-norm": lambda: eva(qk_norm=True, use_rot_pos_emb=True),
    "eva-token": lambda: eva(global_pool="token", use_rot_pos_emb=True),
    "eva-map": lambda: eva(global_pool="map", use_rot_pos_emb=True, use_pre_transformer_norm=True),
    "eva-max": lambda: eva(global_pool="max", use_rot_pos_emb=True),
    "eva-no-class-token": lambda: eva(class_token=False, use_rot_pos_emb=True),
    "eva-no-class-token-registers": lambda: eva(class_token=False, num_reg_tokens=3, use_rot_pos_emb=True),
    "eva-two-norms": lambda: eva(use_post_transformer_norm=True, use_fc_norm=True),
    "eva-dynamic": lambda: eva(dynamic_img_size=True, use_rot_pos_emb=True),
    "eva-dynamic-padded": lambda: eva(dynamic_img_size=True, dynamic_img_pad=True, use_rot_pos_emb=True),
    "eva-non-square": lambda: eva(img_size=(24, 40), use_rot_pos_emb=True),
    "eva-patch-dropout": lambda: eva(patch_drop_rate=0.5, pos_drop_rate=0.5, use_rot_pos_emb=True, drop_path_rate=0.5),
    "dinov3": dinov3,
    "dinov3-token": lambda: dinov3(global_pool="token"),
    "dinov3-augmented": lambda: dinov3(rope_rescale_coords=2.0, rope_shift_coords=0.5, rope_jitter_coords=1.5),
    "dinov3-dynamic": lambda: dinov3(dynamic_img_size=True, swiglu_mlp=True, swiglu_align_to=8),
    "rope-mixed": lambda: rope_vit(rope_type="mixed", rope_grid_indexing="xy", rope_temperature=10.0),
    "rope-mixed-token": lambda: rope_vit(rope_type="mixed", global_pool="token", use_abs_pos_emb=True),
    "rope-mixed-dynamic": lambda: rope_vit(rope_type="mixed", dynamic_img_size=True, init_values=1e-5),
    "rope-axial": lambda: rope_vit(rope_grid_offset=0.5, rope_grid_indexing="xy", rope_temperature=100.0),
    "rope-axial-half": lambda: rope_vit(rope_rotate_half=True, qk_norm=True),
    "mrope": lambda: rope_vit(rope_type="mrope", rope_mrope_section=(2, 3, 3)),
    "gqa": lambda: rope_vit(num_heads=4, num_kv_heads=2, qkv_fused=False),
    "gqa-per-block": lambda: rope_vit(
        num_heads=4, num_kv_heads=(4, 2, 1), qkv_fused=False, qk_norm=True, global_pool="token"
    ),
    "rope-gated": lambda: changed(rope_vit(), gate),
    "beit": lambda: beit_(use_rel_pos_bias=True, use_abs_pos_emb=False, init_values=1e-5),
    "beit-shared": lambda: beit_(use_shared_rel_pos_bias=True),
    "beit-both": lambda: beit_(use_rel_pos_bias=True, use_shared_rel_pos_bias=True, init_values=None),
    "beit-no-bias": lambda: beit_(global_pool="token"),
    "beit-token": lambda: beit_(use_rel_pos_bias=True, global_pool="token", init_values=1e-5),
    "beit-shared-token": lambda: beit_(use_shared_rel_pos_bias=True, global_pool="token", qkv_bias=False),
    "beit-swiglu": lambda: beit_(use_rel_pos_bias=True, swiglu_mlp=True, scale_mlp=True),
    "beit-separate-bias": lambda: changed(beit_(use_rel_pos_bias=True), separate_bias),
    "beit-non-square": lambda: beit_(use_rel_pos_bias=True, img_size=(24, 40), use_fc_norm=False),
    "relpos-mlp": relpos,
    "relpos-mlp-swin": lambda: relpos(rel_pos_type="mlp_swin", rel_pos_dim=32),
    "relpos-bias": lambda: relpos(rel_pos_type="bias"),
    "relpos-mlp-shared": lambda: relpos(shared_rel_pos=True),
    "relpos-bias-shared": lambda: relpos(rel_pos_type="bias", shared_rel_pos=True, qk_norm=True),
    "relpos-mlp-token": lambda: relpos(class_token=True, global_pool="token"),
    "relpos-bias-token": lambda: relpos(class_token=True, global_pool="token", rel_pos_type="bias"),
    "relpos-bias-shared-token": lambda: relpos(
        class_token=True, global_pool="token", rel_pos_type="bias", shared_rel_pos=True
    ),
    "relpos-bias-avg": lambda: relpos(class_token=True, rel_pos_type="bias", fc_norm=True),
    "relpos-post-norm": lambda: relpos(block_fn=ResPostRelPosBlock, rel_pos_type="bias"),
    "relpos-post-norm-token": lambda: relpos(
        block_fn=ResPostRelPosBlock, class_token=True, global_pool="token", qk_norm=True
    ),
    "relpos-non-square": lambda: relpos(img_size=(24, 40), rel_pos_type="bias", qkv_bias=False, init_values=None),
    "diff": diff,
    "diff-avg": lambda: diff(global_pool="avg"),
    "diff-qk-norm": lambda: diff(qk_norm=True, scale_attn_norm=True),
    "diff-registers": lambda: diff(reg_tokens=2, qkv_bias=False, init_values=1e-5),
    "diff-scalars": lambda: changed(diff(), two_scalars),
    "diff-post-norm": lambda: diff(block_fn=ResPostBlock),
    "parallel": lambda: vit(**PARALLEL),
    "parallel-avg": lambda: vit(**PARALLEL, class_token=False, global_pool="avg"),
    "parallel-no-qkv-bias": lambda: vit(**PARALLEL, qkv_bias=False, qk_norm=True, norm_layer=RmsNorm, pre_norm=True),
    "parallel-fused": lambda: vit(block_fn=partial(ParallelScalingBlock, fuse_out_proj=True), init_values=1e-5),
    "diff-parallel": lambda: vit(**DIFF_PARALLEL),
    "diff-parallel-no-qkv-bias": lambda: vit(**DIFF_PARALLEL, qkv_bias=False, qk_norm=True, global_pool="avg"),
    "diff-parallel-scalars": lambda: vit(block_fn=partial(DiffParallelScalingBlock, dual_lambda=True)),
    "vit-siglip": lambda: vit(class_token=False, global_pool="map", act_layer=get_act_layer("gelu_tanh")),
    "vit-prr": lambda: vit(global_pool="prr", reg_tokens=2),
    "vit-prr-avg": lambda: vit(global_pool="prr", class_token=False),
    "vit-dynamic-padded": lambda: vit(dynamic_img_size=True, dynamic_img_pad=True, no_embed_class=True),
    "naflex-gap": lambda: naflex(**GAP),
    "naflex-gap-resized": lambda: naflex(**GAP),
    "naflex-aspect": lambda: naflex(**GAP, pos_embed_ar_preserving=True),
    "naflex-factorized": lambda: naflex(**GAP, pos_embed="factorized"),
    "naflex-map": lambda: naflex(global_pool="map", reg_tokens=1),
    "naflex-map-prefix": lambda: naflex(global_pool="map", class_token=True, pool_include_prefix=True),
    "naflex-siglip": lambda: naflex(global_pool="map", act_layer="gelu_tanh", pos_embed_interp_mode="bilinear"),
    "naflex-token": lambda: naflex(global_pool="token", class_token=True, reg_tokens=2, embed_proj_type="conv"),
    "naflex-avg-prefix": lambda: naflex(global_pool="avg", class_token=True, pool_include_prefix=True),
    "naflex-axial": lambda: naflex(**AXIAL, reg_tokens=2, dynamic_img_pad=True),
    "naflex-mixed": lambda: naflex(global_pool="token", class_token=True, rope_type="mixed", rope_temperature=10.0),
    "naflex-dinov3": lambda: naflex(global_pool="avg", rope_type="dinov3", rope_rotate_half=True, rope_temperature=100),
    "naflex-mrope-gated": lambda: naflex(
        global_pool="map", rope_type="mrope", rope_mrope_section=(2, 3, 3), attn_gated=True
    ),
    "naflex-gqa": lambda: naflex(**AXIAL, num_kv_heads=1, qkv_fused=False),
    "naflex-eva": lambda: naflex(global_pool="token", class_token=True, attn_type="eva", swiglu_mlp=True),
    "naflex-diff": lambda: naflex(global_pool="token", class_token=True, attn_layer="diff", scale_attn_inner_norm=True),
    "naflex-parallel": lambda: naflex(global_pool="avg", block_fn=ParallelScalingBlock),
    "cait": cait,
    "cait-avg": lambda: cait(global_pool="avg", qkv_bias=False, num_heads=4),
    "qwen3": qwen,
    "qwen3-merged": lambda: qwen(encoder_pool="merge", out_features=24),
    "deepseek": deepseek,
    "deepseek-aligned": lambda: deepseek(encoder_pool="align", out_features=24, dynamic_img_pad=True),
}
"""Name -> function that makes a small backbone with random weights, for images of 32 pixels or `IMAGE_SIZES`."""

IMAGE_SIZES = {
    "sam-plain-non-square": (24, 40),
    "swin-padded": (36, 36),
    "swin-non-square": (24, 40),
    "swin-always-partition": (24, 24),
    "swin-dynamic": (40, 56),
    "swin-avgmax": (36, 36),
    "swin-dropout": (36, 36),
    "swin2-padded": (36, 36),
    "swin2-non-square": (24, 40),
    "swin2-always-partition": (24, 24),
    "swin2-dynamic": (40, 56),
    "swin2-no-qkv-bias": (36, 36),
    "swin-cr-padded": (36, 36),
    "swin-cr-non-square": (24, 40),
    "swin-cr-always-partition": (24, 24),
    "swin-cr-dynamic": (40, 56),
    "eva-dynamic": (40, 24),
    "eva-dynamic-padded": (37, 22),
    "eva-non-square": (24, 40),
    "dinov3-dynamic": (40, 24),
    "rope-mixed-dynamic": (40, 24),
    "beit-non-square": (24, 40),
    "relpos-non-square": (24, 40),
    "vit-dynamic-padded": (37, 22),
    "naflex-gap-resized": (40, 24),
    "naflex-aspect": (40, 24),
    "naflex-factorized": (40, 24),
    "naflex-siglip": (40, 24),
    "naflex-axial": (37, 22),
    "naflex-mixed": (40, 24),
    "qwen3": (40, 24),
    "deepseek-aligned": (37, 22),
}


def some_images(name, batch, *, seed=1, dtype=torch.float32, size=None):
    """Images that are the same numbers in every type."""
    height, width = size or IMAGE_SIZES.get(name, (32, 32))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator).to(dtype)


def some_prompts(model, counts, *, seed=2):
    """Random prompts (P_l, D_l), in float64; `counts` repeats."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(counts[block % len(counts)], width) for block, width in enumerate(widths_of(model))]
    return [0.7 * torch.randn(size, generator=generator).double() for size in sizes]


def attached(name, method, *, execution="prefix", counts=None, dtype=torch.float32, num_classes=5, seed=3):
    """A prompted small model in eval mode: prompts and head are random and large; `counts` keeps P_l per block.

    The numbers are the same in every type.
    """
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


EACH_CLASS = [
    "swin-padded",
    "swin2-padded",
    "swin-cr-padded",
    "sam",
    "eva-rope-unfused",
    "eva-post-norm-rope",
    "dinov3",
    "rope-mixed-token",
    "gqa-per-block",
    "beit-both",
    "relpos-bias-shared-token",
    "diff-qk-norm",
    "parallel-no-qkv-bias",
    "diff-parallel",
    "naflex-gap-resized",
    "cait",
    "deepseek-aligned",
]
"""One backbone for each class of attention and block."""
