"""An attention class and a model of a user's own, made known by one file outside the package."""

import pytest
import timm
from timm.models.beit import Attention as BeitAttention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import families
import vprompt
from processes import Script
from vprompt.backbones.attention.base import PrefixAttention
from vprompt.backbones.attention.registry import WRAPPERS, register, wrapper_for
from vprompt.backbones.info import describe
from vprompt.backbones.supported import LAYOUTS, layout_of
from vprompt.utils.errors import BackboneError, VPromptError

PLUGIN = '''
import torch
from timm.layers import PatchEmbed
from torch import nn
from torch.nn import functional as F

from vprompt.backbones.attention.base import BlockForm, PrefixAttention
from vprompt.backbones.attention.registry import register
from vprompt.backbones.supported import LAYOUTS, Layout


class CosineAttention(nn.Module):
    """Queries and keys of length one, and a temperature for every head."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads, self.scale = num_heads, 1.0
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        self.temperature = nn.Parameter(torch.linspace(1, 5, num_heads).reshape(-1, 1, 1))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (self.temperature * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class AttentionOnly(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.before, self.attn = nn.LayerNorm(dim), CosineAttention(dim, num_heads)

    def forward(self, x):
        return x + self.attn(self.before(x))


class Net(nn.Module):
    """No class of timm: tokens are averaged."""

    num_prefix_tokens, global_pool, head_hidden_size, pretrained_cfg = 0, "avg", 16, {}

    def __init__(self):
        super().__init__()
        self.patch_embed = PatchEmbed(img_size=16, patch_size=4, embed_dim=16)
        self.layers = nn.Sequential(AttentionOnly(16, 2), AttentionOnly(16, 4))

    def forward_features(self, x):
        return self.layers(self.patch_embed(x))

    def forward_head(self, x, pre_logits=False):
        return x.mean(1)


@register
class CosinePrefix(PrefixAttention):
    name = "cosine"
    attends = (CosineAttention,)
    blocks = {AttentionOnly: BlockForm(entry="before")}

    def forward(self, x):
        q, k, v = self.project(x)
        return self.project_out(self.mix(q, k, v, self.prefix(self, len(x)), None), x)

    def _query(self, q_BNA):
        return F.normalize(super()._query(q_BNA), dim=-1) * self.attention.temperature

    def _key(self, k_BNA):
        return F.normalize(super()._key(k_BNA), dim=-1)


LAYOUTS.register(Layout(model=Net, blocks="layers", leading=False))
'''

SCRIPT = """
import sys, torch, vprompt
from vprompt.utils.registry import load_plugin, plugins
load_plugin(*plugins())
plugin = next(module for name, module in sys.modules.items() if name.startswith("vprompt_plugin"))
torch.manual_seed(0)
net = plugin.Net().double().eval()
model = vprompt.attach(net, vprompt.VPT(3), head_init="paper", num_classes=2).eval()
with torch.no_grad():
    for parameter in model.prompts:
        parameter.normal_()
images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
x = net.patch_embed(images)
for block, prompts in zip(net.layers, model.prompts, strict=True):
    x = block(torch.cat([x, prompts.expand(2, -1, -1)], dim=1))[:, :-3]
wanted = x.mean(1)
assert not torch.allclose(wanted, net.forward_head(net.forward_features(images)), atol=1e-3)
for run in (model, model.copy(execution="published").eval(), model.fold()):
    torch.testing.assert_close(run.features(images), wanted, atol=1e-12, rtol=0)
print(model.info.widths, model.info.name)
"""


def test_one_file_brings_an_attention_class_its_block_and_its_model(tmp_path):
    plugin = tmp_path / "own.py"
    plugin.write_text(PLUGIN)
    status, printed, errors = Script(SCRIPT, folder=tmp_path, environment={"VPROMPT_PLUGINS": str(plugin)}).end()
    assert status == 0, errors
    assert printed == "[16, 16] Net\n"


def test_every_wrapper_stands_for_classes_of_its_own():
    classes = [cls for wrapper in WRAPPERS for cls in wrapper.attends]
    assert len(classes) == len(set(classes))
    assert all(wrapper_for_class(cls) for cls in classes)
    assert len(WRAPPERS.names()) == len(list(WRAPPERS)) == 12


def wrapper_for_class(cls):
    return wrapper_for(object.__new__(cls))


def test_names_of_wrappers_are_taken_once():
    with pytest.raises(VPromptError, match="two attention wrappers called 'plain'"):

        @register
        class Other(PrefixAttention):
            name = "plain"


def test_known_attention_in_a_block_that_does_not_go_with_it_is_refused():
    backbone = families.vit()
    backbone.blocks[1].attn = BeitAttention(32, num_heads=2)
    with pytest.raises(BackboneError, match="Attention is not supported in blocks of class Block"):
        vprompt.attach(backbone, vprompt.VPT(2), num_classes=3)


def test_the_nearest_class_says_the_layout():
    class Mine(VisionTransformer):
        pass

    mine = Mine(embed_dim=16, depth=1, num_heads=2)
    assert layout_of(mine).model is VisionTransformer
    assert layout_of(timm.create_model("test_vit")).model is VisionTransformer
    assert len(describe(mine).blocks) == 1
    assert {layout.model for layout in LAYOUTS} >= {VisionTransformer}
    with pytest.raises(BackboneError, match=r"Linear is not supported; supported are timm's VisionTransformer, .*SAM"):
        layout_of(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("name", "first", "batch"),
    [("swin", False, False), ("swin-cr-padded", True, False), ("deepseek-aligned", False, True)],
)
def test_layouts_say_how_maps_and_batches_are_held(name, first, batch):
    info = describe(families.BACKBONES[name]())
    assert (info.channels_first, info.fixed_batch) == (first, batch)
