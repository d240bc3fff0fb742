"""A frozen backbone with prompts and a head: training, copying, selecting, folding and saving of what is learned."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, overload

import torch
from torch import Tensor, nn

from vprompt.backbones.attention.base import Prefix, PrefixAttention, no_prefix
from vprompt.backbones.freezing import Original
from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo, check_size, describe, num_parameters
from vprompt.data.preprocessing import Preprocessing
from vprompt.methods.base import Method
from vprompt.methods.layers.dense import DenseHead
from vprompt.methods.layers.head import Head, head_values
from vprompt.methods.layers.inject import (
    ConstantPrefix,
    LearnedPrefix,
    constant_prefixes,
    deep_token_parts,
    prefix_parts,
    shallow_token_parts,
)
from vprompt.methods.layers.prompts import KVPrompts, Prompts, check_segments
from vprompt.methods.layers.tuned import Tuning
from vprompt.model.classifier import Classifier
from vprompt.model.maps import feature_maps
from vprompt.model.windows import by_windows
from vprompt.tasks.base import Target
from vprompt.tasks.segmentation import resized
from vprompt.tasks.single_label import SingleLabel
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import line, listed

if TYPE_CHECKING:
    from vprompt.model.records import Condensation, Pruning, Recipe


Execution = Literal["prefix", "published"]


def _not_here(*arguments: Any, **options: Any) -> None:
    raise VPromptError("Maps of features are those of `model.features(images, blocks=[...])`, not of its view.")


def _check_maps(method: Method, tuned: Tuning) -> None:
    if tuned.side is not None:
        raise VPromptError(f"There are no maps of {method.name}, which acts on pooled features; take another method.")


class _Adapted(Classifier):
    """Common parts of a learned and a folded model: a backbone, a head, and a view of the backbone that runs.

    The view stays out of the module tree: it owns nothing, everything in it is reached through the module's children.
    """

    def __init__(
        self,
        backbone: nn.Module,
        info: BackboneInfo,
        tuned: Tuning,
        head: Head,
        method: Method,
        classes: tuple[str, ...] | None,
        target: Target | None,
        preprocessing: Preprocessing,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tuned = tuned
        self.head = head
        self.info = info
        self.method = method
        if target is None:
            target = SingleLabel(names=classes or tuple(str(number) for number in range(head.out_features)))
        self.target = target
        self.classes = classes
        self.preprocessing = preprocessing
        self._original = Original.of(backbone)
        backbone.requires_grad_(False).eval()
        tuned.base.eval()

    def _install(self, parts: Mapping[str, nn.Module]) -> None:
        view = graft(self.tuned.base, self.tuned.placed(parts))
        # timm's would count prompts as patches, and the last block may be cut to the class token.
        view.__dict__["forward_intermediates"] = _not_here
        self.__dict__["_view"] = view

    @contextmanager
    def exchanged(self, parts: Mapping[str, nn.Module]) -> Generator[None]:
        """Inside, the model runs with other parts in its view, by their paths there."""
        before = self.view
        self.__dict__["_view"] = graft(before, parts)
        try:
            yield
        finally:
            self.__dict__["_view"] = before

    @property
    def view(self) -> Any:
        """The backbone with what is learned in place: a timm model that shares all other weights with `backbone`."""
        return self.__dict__["_view"]

    @property
    def any_size(self) -> bool:
        """True where images of other sizes than that of `preprocessing` are taken as they come."""
        return self.info.any_size or self.target.dense

    @property
    def attentions(self) -> list[PrefixAttention]:
        """Our attention of every block, in forward order; the published execution runs timm's own where it can."""
        return [module for module in self.view.modules() if isinstance(module, PrefixAttention)]

    def __repr__(self) -> str:
        counts, seen = self.prompt_counts, self.preprocessing
        each = f"{counts[0]} in each" if len(set(counts)) == 1 else " ".join(map(str, counts))
        learned, held = sum(p.numel() for p in self.parameters() if p.requires_grad), num_parameters(self.backbone)
        share = f"learned: {learned:,} numbers, {100 * learned / held:.2g} % of the backbone's"
        names = listed([line(name, 24) for name in self.class_names], 4)
        execution = getattr(self, "execution", "folded")
        lines = (
            f"{type(self).__name__}: {self.method.name} on {self.info.name} ({held:,} numbers)",
            f"{sum(counts)} prompts in {len(counts)} blocks" + f" ({each})" * any(counts),
            *([share] if learned else []),
            f"answers: {self.target.size} ({names}){self._reads()}",
            f"images: {seen.size[0]}×{seen.size[1]} pixels, {seen.resize}, {seen.interpolation}; runs: {execution}",
        )
        return "\n  ".join(lines)

    def _reads(self) -> str:
        if not isinstance(self.head, DenseHead):
            return ""
        blocks = ", ".join(map(str, self.head.blocks))
        plural = "s" * (len(self.head.blocks) > 1)
        return f" for each pixel, by the head {self.target.map_head} on the map{plural} of block{plural} {blocks}"

    @property
    @abstractmethod
    def prompt_counts(self) -> list[int]:
        """P_l for every block."""

    def as_held(self, images_BCHW: Tensor) -> Tensor:
        """Images in the type of the model's numbers, which may be of half precision."""
        held = self.head.weight.dtype
        # Exported programs hold no conversion that does nothing.
        return images_BCHW if images_BCHW.dtype == held else images_BCHW.to(held)

    @overload
    def features(self, images_BCHW: Tensor) -> Tensor: ...

    @overload
    def features(self, images_BCHW: Tensor, *, blocks: Sequence[int], norm: bool = False) -> list[Tensor]: ...

    def features(
        self, images_BCHW: Tensor, *, blocks: Sequence[int] | None = None, norm: bool = False
    ) -> Tensor | list[Tensor]:
        """Pooled features (B, num_features) of normalised images (B, 3, H, W); or maps of patches, for dense tasks.

        Maps are those of `timm.create_model(..., features_only=True)`, had the backbone what is learned in it:
        class, register and prompt tokens stay out of them. Gradients reach all that is learned.

        Args:
            images_BCHW: Normalised images.
            blocks: Numbers of blocks to give the maps (B, D_l, h, w) of, those below 0 from the end.
            norm: Apply the backbone's last norm to these maps.

        Raises:
            VPromptError: If the backbone or the method has no such map.

        Example:
            >>> import timm, vprompt
            >>> model = vprompt.attach(timm.create_model("test_vit"), vprompt.VPT(4), num_classes=3)
            >>> [tuple(map.shape) for map in model.features(torch.zeros(2, 3, 160, 160), blocks=[2, -1])]
            [(2, 64, 10, 10), (2, 64, 10, 10)]
        """
        images_BCHW = self.as_held(images_BCHW)
        if blocks is not None:
            return self._maps(images_BCHW, blocks, norm)
        features_BF = self.view.forward_head(self.view.forward_features(images_BCHW), pre_logits=True)
        return self.tuned.finish(features_BF, images_BCHW)

    def _maps(self, images_BCHW: Tensor, blocks: Sequence[int], norm: bool) -> list[Tensor]:
        _check_maps(self.method, self.tuned)
        view = self.view if self.target.dense else graft(self.tuned.base, self.tuned.placed(self._parts(whole=True)))
        count = self.prompt_counts[0] if self.method.riding == "tokens" else 0
        return feature_maps(view, self.info, images_BCHW, blocks, prompts=count, norm=norm)

    @abstractmethod
    def _parts(self, *, whole: bool) -> dict[str, nn.Module]:
        """What runs in the place of the blocks, by their paths; if whole, the last one for all patches as well."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images (B, 3, H, W); (B, num_classes, H, W) where pixels have labels.

        The latter are the means of windows of the model's size, see `vprompt.model.windows`.
        """
        if isinstance(self.head, DenseHead):
            return by_windows(self._dense, images_BCHW, self.preprocessing.size)
        return self.head(self.features(images_BCHW))

    def _dense(self, images_BCHW: Tensor) -> Tensor:
        head, widths = cast("DenseHead", self.head), self.info.widths
        norm = len(set(widths)) == 1 and getattr(self.view, "norm", None) is not None
        maps = self.features(images_BCHW, blocks=head.blocks, norm=norm)
        return resized(head(maps), images_BCHW.shape[2:])

    def train(self, mode: bool = True) -> Self:
        """Sets prompts and head to training; the backbone always stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def detach(self) -> nn.Module:
        """Gives the backbone back as it was before `attach`, bit for bit.

        This model is of no further use, nor are others over the same backbone.
        """
        self._original.restore(self.backbone)
        return self.backbone


class PromptedModel(_Adapted):
    """A frozen timm backbone with learned prompts, or what another method learns, and a head; made by `vprompt.attach`.

    The backbone is never changed: what is learned acts in a view of it that shares its weights.

    Args:
        backbone: The timm model; its weights are shared, not copied.
        method: The method to attach.
        prompts: One parameter (P_l, D_l) per block.
        head: The classifier.
        kv_prompts: Key-value prompts, where the method has any.
        tuned: Values of what the method learns in the backbone, by name; its initial ones when not given.
        execution: `"prefix"` runs deep prompts as keys and values (the same function, faster); `"published"` as
            tokens through every block, as the papers do.
        classes: Names of the classes, in the order of the logits.
        target: What the logits say, where that is not one of the classes; its names are then the classes.
        preprocessing: Preprocessing of images; the backbone's own when not given.

    Attributes:
        backbone: The timm model, plain as ever.
        prompts: `prompts[l]` is the parameter (P_l, D_l) of block l; where segments were pruned, the retained ones.
        kv_prompts: `kv_prompts[l]` is the parameter of block l, in the shape that `KVPrompts` says;
            empty for methods that have none.
        tuned: What the method learns in or beside the backbone, under the backbone's names; nothing for prompts.
        head: `torch.nn.Linear`, or what the method's `make_head` gives.
        condensation: Scores and choice of `condense` or `prune`, or None.
        pruning: Shares that `prune` removed, or None.
        recipe: The recipe this model was last trained with, or None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        method: Method,
        prompts: Prompts,
        head: Head,
        *,
        kv_prompts: KVPrompts | None = None,
        tuned: Mapping[str, Tensor] | None = None,
        execution: Execution = "prefix",
        classes: Sequence[str] | None = None,
        target: Target | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        info = describe(backbone)
        names = None if classes is None else tuple(classes)
        names = names if target is None else target.names
        if names is not None and len(names) != head.out_features:
            raise VPromptError(f"There are {len(names)} class names for {head.out_features} classes.")
        if (target is not None and target.dense) != isinstance(head, DenseHead):
            raise VPromptError("A head on maps is for pixels with labels, and no other is; `vprompt.attach` makes it.")
        if execution not in ("prefix", "published"):
            raise VPromptError(f"Execution is 'prefix' or 'published', not {execution!r}.")
        preprocessing = preprocessing or info.preprocessing
        check_size(backbone, info, preprocessing.size)
        # Before the backbone is frozen: a method that does not fit it must leave it alone.
        tuning = method.tuning(backbone, info, tuned)
        if isinstance(head, DenseHead):
            _check_maps(method, tuning)
        super().__init__(backbone, info, tuning, head, method, names, target, preprocessing)
        self.prompts = prompts
        self.kv_prompts = KVPrompts() if kv_prompts is None else kv_prompts
        self.execution: Execution = execution
        self.condensation: Condensation | None = None
        self.pruning: Pruning | None = None
        self.recipe: Recipe | None = None
        self._install(self._parts(whole=self.target.dense))

    @property
    def prompt_counts(self) -> list[int]:
        """P_l for every block."""
        return self.prompts.counts

    @property
    def learned(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that training changes: prompts, what is tuned in the backbone, and the head."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("backbone.") and p.requires_grad}

    @property
    def values(self) -> dict[str, Tensor]:
        """Name -> all numbers that training changes: what is learned, and the statistics of a head's batch norm."""
        return {**self.learned, **{f"head.{name}": value for name, value in head_values(self.head).items()}}

    @property
    def num_learned(self) -> int:
        """Number of learned values."""
        return sum(p.numel() for p in self.learned.values())

    @property
    def relocates(self) -> bool:
        """Whether training moves prompts between blocks: by the method, as long as all are there and whole."""
        all_there = sum(self.prompt_counts) == sum(self.method.initial_counts(len(self.prompts)))
        return self.method.relocates and all_there and self.prompts.num_segments == 1 and self.condensation is None

    def replace_prompts(self, values: Sequence[Tensor]) -> None:
        """Puts plain prompts in the place of others, which may be others in number; the view goes on with them."""
        self.prompts.replace(values)
        for attention, count in zip(self.attentions, self.prompt_counts, strict=False):
            if self.execution == "published":
                attention.inserted = (attention.inserted[0], count)

    def take_counts(self, values: Mapping[str, Tensor]) -> None:
        """Where training moves prompts, gives each block as many as recorded values have, if these are its own."""
        names = [f"prompts.{block}" for block in range(len(self.prompts))]
        counts = [len(values.get(name, ())) for name in names]

        def shape(name: str, value: Tensor) -> torch.Size:
            return value.shape[1:] if name in names else value.shape

        own = all(name in values and shape(name, values[name]) == shape(name, p) for name, p in self.values.items())
        if self.relocates and own and sum(counts) == sum(self.prompt_counts) and counts != self.prompt_counts:
            self.replace_prompts([p.new_zeros(n, p.shape[1]) for p, n in zip(self.prompts, counts, strict=True)])

    def copy(self, *, prompts: Prompts | None = None, execution: Execution | None = None) -> PromptedModel:
        """A model of its own over the same backbone: what is learned is copied, the backbone's weights shared.

        Args:
            prompts: Use these instead of a copy of the prompts.
            execution: Run it this way instead.
        """
        twin = PromptedModel(
            self.backbone,
            self.method,
            prompts if prompts is not None else copy.deepcopy(self.prompts),
            copy.deepcopy(self.head),
            kv_prompts=copy.deepcopy(self.kv_prompts),
            tuned=dict(self.tuned.named_parameters()),
            execution=execution or self.execution,
            classes=self.classes,
            target=None if self.classes is None else self.target,
            preprocessing=self.preprocessing,
        )
        twin.target = self.target  # calibrated, it may be, also where classes have no names
        twin.condensation, twin.pruning, twin.recipe = self.condensation, self.pruning, self.recipe
        return twin.train(self.training)

    def state(self) -> dict[str, Tensor]:
        """A copy of all learned values as they are now, by name; `restore` puts them back.

        Where segments were pruned, it also says which, under the names of buffers.
        """
        places = {f"prompts.{name}": buffer.clone() for name, buffer in self.prompts.named_buffers()}
        return {name: value.detach().clone() for name, value in self.values.items()} | places

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Sets all learned values to those that `state` recorded.

        Raises:
            VPromptError: If they are those of another model.
        """
        self.take_counts(state)
        current, values = self.state(), self.values
        fixed = current.keys() - values.keys()
        if {n: t.shape for n, t in current.items()} != {n: t.shape for n, t in state.items()} or any(
            not torch.equal(current[name], state[name].to(current[name].device)) for name in fixed
        ):
            raise VPromptError("The recorded values are not those of this model: names, shapes or segments differ.")
        for name, value in values.items():
            value.copy_(state[name])

    def keep(self, kept: Sequence[Tensor], segments: Sequence[Tensor] | None = None) -> PromptedModel:
        """A copy that holds only the prompts chosen for each block; the others are removed, not masked.

        Args:
            kept: Indices of the prompts to retain, one tensor per block, as `vprompt.select` returns.
            segments: One mask (P_l, R) per block of the segments to retain of these prompts, as
                `vprompt.select_segments` returns; the channels of the others become zeros that are neither learned nor
                saved.

        Raises:
            VPromptError: If the indices or masks do not fit the prompts.
        """
        if len(kept) != len(self.prompts):
            raise VPromptError(f"There are {len(kept)} index tensors for {len(self.prompts)} blocks.")
        for block, (index, count) in enumerate(zip(kept, self.prompt_counts, strict=True)):
            if len(index) and (int(index.min()) < 0 or int(index.max()) >= count):
                raise VPromptError(f"Block {block} has {count} prompts; the indices to keep go beyond them.")
            if len(index.unique()) != len(index):
                raise VPromptError(f"The indices to keep in block {block} name a prompt twice.")
        if segments is not None:
            segments = self._checked(segments, kept)
        small = self.copy(prompts=self.prompts.select(kept, segments))
        small.condensation = small.pruning = None  # records of other prompts
        return small

    def _checked(self, segments: Sequence[Tensor], kept: Sequence[Tensor]) -> list[Tensor]:
        """Masks that fit the prompts to keep, without the segments that these lack already."""
        if len(segments) != len(kept):
            raise VPromptError(f"There are {len(segments)} masks of segments for {len(kept)} blocks.")
        masks: list[Tensor] = []
        for block, (mask_PR, index) in enumerate(zip(segments, kept, strict=True)):
            if mask_PR.dtype != torch.bool or mask_PR.ndim != 2 or len(mask_PR) != len(index):
                raise VPromptError(
                    f"Block {block} needs a mask of booleans ({len(index)}, R) for the prompts it keeps."
                )
            if not bool(mask_PR.any(1).all()):
                raise VPromptError(f"A prompt of block {block} would keep no segment; remove it whole.")
            check_segments(mask_PR.shape[1], self.info.widths)
            if self.prompts.num_segments not in (1, mask_PR.shape[1]):
                raise VPromptError(
                    f"Segments were pruned before, {self.prompts.num_segments} to a prompt; {mask_PR.shape[1]} do not "
                    "fit these."
                )
            retained_PR = self.prompts.segments(block)[index.to(self.prompts[block].device)]
            masks.append(mask_PR.to(retained_PR.device) & retained_PR)
        return masks

    @torch.no_grad()
    def fold(self) -> FoldedModel:
        """The same function for inference: prompts as constant keys and values, LoRA merged, nothing learned.

        Shallow prompts ask queries in every block, so they stay tokens. With class-token pooling the last block
        computes the class token only.

        Returns:
            A `FoldedModel` over the same backbone; this model stays usable.
        """
        return FoldedModel(self)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes adapter_config.json, adapter_model.safetensors and README.md; see `save_adapter`."""
        from vprompt.model.save import save_adapter

        save_adapter(self, Path(directory))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the adapter to the Hugging Face Hub; see `vprompt.model.save.push_adapter`."""
        from vprompt.model.save import push_adapter

        return push_adapter(self, repo_id, **options)

    def _parts(self, *, whole: bool) -> dict[str, nn.Module]:
        base = self.tuned.base
        if self.method.riding == "tokens":
            published = whole or self.execution == "published"
            return shallow_token_parts(base, self.info, self.prompts, published=published)
        # Stages that run in one have no place behind a block.
        if self.execution == "published" and not (self.info.stages and self.tuned.behind):
            return deep_token_parts(base, self.info, self.prompts, self.kv_prompts)
        return prefix_parts(base, self.info, partial(LearnedPrefix, self.prompts, self.kv_prompts), whole=whole)


class FoldedModel(_Adapted):
    """A model for inference only, in which nothing learns; made by `PromptedModel.fold`."""

    def __init__(self, source: PromptedModel) -> None:
        head = copy.deepcopy(source.head).requires_grad_(False)
        info, method = source.info, source.method
        tuned = method.fold_tuning(source.backbone, info, source.tuned)
        classes, target = source.classes, source.target
        super().__init__(source.backbone, info, tuned, head, method, classes, target, source.preprocessing)
        self.counts = tuple(source.prompt_counts)
        if source.method.riding == "tokens":
            self.tokens = source.prompts.constants()
        else:
            prefixes = constant_prefixes(self.tuned.base, self.info, source.prompts, source.kv_prompts)
            self.prefixes = nn.ModuleList(prefixes)
        self._install(self._parts(whole=self.target.dense))
        self.eval()

    def _constant(self, block: int) -> Prefix:
        prefix = cast("ConstantPrefix", self.prefixes[block])
        return prefix if len(prefix) else no_prefix

    def _parts(self, *, whole: bool) -> dict[str, nn.Module]:
        if self.method.riding == "tokens":
            return shallow_token_parts(self.tuned.base, self.info, self.tokens, published=whole)
        return prefix_parts(self.tuned.base, self.info, self._constant, whole=whole)

    @property
    def prompt_counts(self) -> list[int]:
        """P_l for every block."""
        return list(self.counts)
