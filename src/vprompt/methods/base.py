"""Methods of adaptation: the protocol that one file for each method fills in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import ADDED, check_fields

# torch takes seconds to import, and commands list methods and their options without it.
if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vprompt.backbones.info import BackboneInfo
    from vprompt.methods.layers.head import Head
    from vprompt.methods.layers.prompts import KVPrompts, Prompts
    from vprompt.methods.layers.tuned import Tuning

Riding = Literal["prefix", "tokens", "nothing"]
"""The form of prompts in the backbone: a prefix of keys and values in each block's attention, tokens that are inserted
once and pass all blocks, or none.
"""

MAX_PROMPTS = 10_000
"""In a block; more fit into no memory."""

Init = Literal["random", "tokens", "clusters", "vipamin"]
"""Start of prompts; see `DeepPrompts`."""

TEXT_FEATURES = (".npz", ".safetensors")
"""Endings of files that a head may start from."""

HEAD_INIT = "zero"
"""Start of the head that AdamW needs, in Python as on the command line."""


def check_head_init(init: str) -> None:
    """Checks the form of a head's start.

    Raises:
        VPromptError: If it is neither `"zero"`, `"paper"` nor a file of text features.
    """
    if init not in ("zero", "paper") and not init.endswith(TEXT_FEATURES):
        raise VPromptError(
            f"The head's initialisation is 'paper', 'zero' or a file of text features ({' or '.join(TEXT_FEATURES)}), "
            f"not {init!r}."
        )


class Move(NamedTuple):
    """A prompt that is removed, by its block and row, and the block in which a fresh one is planted."""

    block: int
    row: int
    target: int


def option(default: Any, *, flag: str | None = None, least: int | None = None, most: int | None = None) -> Any:
    """A field of a method with bounds, or with another name on the command line, in plans and in results."""
    named = {} if flag is None else {"flag": flag}
    return field(default=default, metadata={**named, "least": least, "most": most})


@dataclass(frozen=True)
class Method:
    """A method of adaptation: parameters that are learned on, in or beside a frozen backbone.

    A method is a frozen dataclass of its options. Its base class, this one, is a linear probe: a linear head on the
    frozen backbone. A new method inherits from it, or from `DeepPrompts`, sets `name`, and overrides what differs:

    - prompts: `riding`, `initial_counts` (prompts per block) and, where they are computed in a way of their own,
      `make_prompts`. With `riding = "prefix"` the prompts of each block are keys and values of its attention; with
      `"tokens"` those of the first block are inserted into the sequence and pass all blocks.
    - parameters in or beside the backbone: `tunes_backbone = True` and `make_tuning`, which returns a `Tuning`: the
      learned parameters by name, and a view of the backbone (made by `graft`) in which they act. `fold_tuning` where
      inference can do with less.
    - prompts that move between blocks in training: `relocates = True`, `relocate` and `most_counts`.
    - another classifier: `head_layers`, or `make_head` and `make_dense_head`.

    `lr_factor`, `size` and `summary` are its share of the learning rate and its texts. With the decorator `register`
    (`vprompt.methods.registry`) it is known to all the rest: attaching, training, saving, loading, folding,
    condensing, the command line and plans ask the method. `docs/extending.md` has an example of 50 lines.

    Attributes:
        name: Its name on the command line and in files.
        letters: Its `size`, with options in braces.
        words: Its `summary`, with options in braces.
        riding: Form of its prompts; see `Riding`.
        lr_factor: Share of the default learning rate at which it trains; weights that are good already need a low one.
        stochastic_depth: At which it trains by default; see `Recipe`.
        backward_cost: Backward passes over the forward one: 2 where weights learn, 1 where only what comes before.
        tunes_backbone: Whether anything is learned in or beside the backbone, other than prompts and head.
        merges_weights: Whether folding makes copies of the backbone's weights.
        relocates: Whether prompts may move between blocks in training; they are then plain, and every block has some.
        prunes: Whether pruning is a part of the method, so that comparisons prune it.
        head_layers: Layers of the head.
        sizes: Options that set its size, by their names on the command line, and what a comparison tries of each: one,
            two or three combinations in all.

    Example:
        >>> from vprompt.methods.vpt import VPT
        >>> VPT(num_prompts=10).riding, VPT(depth="shallow").riding
        ('prefix', 'tokens')
    """

    name: ClassVar[str]
    letters: ClassVar[str] = ""
    words: ClassVar[str] = "a linear head"
    riding: ClassVar[Riding] = "nothing"
    lr_factor: ClassVar[float] = 1.0
    stochastic_depth: ClassVar[float] = 0.0
    backward_cost: ClassVar[float] = 1.0
    tunes_backbone: ClassVar[bool] = False
    merges_weights: ClassVar[bool] = False
    relocates: ClassVar[bool] = False
    prunes: ClassVar[bool] = False
    prompt_dropout: ClassVar[float] = 0.0
    head_layers: ClassVar[int] = 1
    sizes: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def __post_init__(self) -> None:
        check_fields(self)
        for entry in fields(self):
            value, least, most = (getattr(self, entry.name), *map(entry.metadata.get, ("least", "most")))
            if (least is not None and not value >= least) or (most is not None and not value <= most):
                bounds = [
                    f"at {name} {bound}" for name, bound in (("least", least), ("most", most)) if bound is not None
                ]
                what = f"{entry.metadata.get('flag', entry.name)} of {type(self).__name__}"
                raise VPromptError(f"The {what} must be {' and '.join(bounds)}, not {value}.")

    @classmethod
    def variants(cls) -> Mapping[str, Mapping[str, Any]]:
        """Names on the command line and in files, and the options that each of them fixes."""
        return {cls.name: {}}

    @property
    def caches_features(self) -> bool:
        """True where the pooled features never change in training, so that they can be computed once."""
        return self.riding == "nothing" and not self.tunes_backbone

    @property
    def size(self) -> str:
        """A few letters that tell its settings apart in the name of a run, such as p20; may be empty."""
        return self.letters.format(**vars(self))

    def summary(self) -> str:
        """The learned part in words, for the model card."""
        return self.words.format(**vars(self))

    def initial_counts(self, num_blocks: int) -> list[int]:
        """Prompts of each block before training."""
        return [0] * num_blocks

    def most_counts(self, num_blocks: int) -> list[int]:
        """The most prompts that each block may have after training."""
        return self.initial_counts(num_blocks)

    def relocate(self, effects: Sequence[Tensor], planted: Sequence[int]) -> list[Move]:
        """The prompts that move before the next epoch, in blocks that keep at least one.

        Args:
            effects: By block, the rise of the loss of some training images without each prompt, to first order, (N, P).
            planted: By block, how many of its last prompts were planted before the last epoch.
        """
        return []

    def make_prompts(self, info: BackboneInfo) -> Prompts:
        """The prompts as training starts, drawn with torch's global generator."""
        from vprompt.methods.layers.prompts import Prompts, init_bound

        counts = self.initial_counts(len(info.blocks))
        bound = init_bound(info.patch_size, info.widths[0])
        return Prompts.initial(counts, info.widths, bound=bound, dropout=self.prompt_dropout)

    def make_kv_prompts(self, backbone: nn.Module, info: BackboneInfo) -> KVPrompts:
        """The key-value prompts as training starts; none by default."""
        from vprompt.methods.layers.prompts import KVPrompts

        return KVPrompts()

    def make_head(self, features: int, classes: int) -> Head:
        """The classifier on the pooled feature; `attach` sets the values of its last layer."""
        from torch import nn

        from vprompt.methods.layers.head import MLPHead

        many = self.head_layers > 1
        return MLPHead(features, classes, self.head_layers) if many else nn.Linear(features, classes)

    def make_dense_head(self, kind: str, widths: Sequence[int], classes: int) -> Head:
        """The classifier on maps of features, where every pixel has a label."""
        from vprompt.methods.layers.dense import DenseHead

        return DenseHead(kind, widths, classes, self.head_layers)

    def make_tuning(self, backbone: nn.Module, info: BackboneInfo, learned: Collection[str] | None = None) -> Tuning:
        """Learned parameters in or beside the backbone, as training starts, and a view of the backbone that uses them.

        Args:
            backbone: The timm model; it is not changed.
            info: Its description.
            learned: Names of the learned parameters, where they are known from a file.

        Raises:
            VPromptError: If the method does not fit the backbone.
        """
        from vprompt.methods.layers.tuned import Tuning

        return Tuning(backbone)

    def fold_tuning(self, backbone: nn.Module, info: BackboneInfo, tuned: Tuning) -> Tuning:
        """A copy of what is learned in the backbone for inference, in which nothing learns."""
        return self.tuning(backbone, info, dict(tuned.named_parameters())).requires_grad_(False)

    def tuning(self, backbone: nn.Module, info: BackboneInfo, values: Mapping[str, Tensor] | None = None) -> Tuning:
        """The `Tuning` of `make_tuning`, with values, by name, if given; these take nothing from torch's generator."""
        if values is None:
            return self.make_tuning(backbone, info)
        import torch

        with torch.random.fork_rng(devices=[]):
            tuned = self.make_tuning(backbone, info, values)
        tuned.fill(values)
        return tuned

    def tuned_shapes(self, backbone: nn.Module, info: BackboneInfo) -> dict[str, torch.Size]:
        """Name -> shape of all that is learned in or beside a backbone; costs neither memory nor random numbers."""
        import torch

        from vprompt.backbones.meta import on_meta

        with torch.random.fork_rng(devices=[]):
            tuned = self.make_tuning(on_meta(backbone), info)
        return {name: parameter.shape for name, parameter in tuned.named_parameters()}

    def start(
        self, prompts: Prompts, backbone: nn.Module, info: BackboneInfo, images: Callable[[], Iterable[Tensor]] | None
    ) -> None:
        """Sets learned values from training images before the first step; by default all stays as it was drawn.

        Args:
            prompts: Changed in place.
            backbone: The bare timm model, in eval mode.
            info: Its description.
            images: Gives batches of normalised images that are drawn from those to train on; None where they are not
                known.

        Raises:
            VPromptError: If images are needed.
        """

    def without_dropout(self) -> Self:
        """The same method with prompt dropout off, as condensed prompts are fine-tuned."""
        return self


@dataclass(frozen=True)
class DeepPrompts(Method):
    """Methods with learned prompts in every block: options and checks that they have in common.

    A method that computes its prompts in its own way overrides `make_prompts` and returns a subclass of
    `vprompt.methods.layers.prompts.Prompts` with its own `transform`.

    Args:
        num_prompts: P, prompts per block; 1 to 10,000.
        dropout: Probability of prompt dropout while training, 0 to below 1; 0.1 when not given.
        init: Start of the prompts: random; tokens of training images on their way into each block; the centres of
            clusters of these; or vipamin, prompts that suit the attention (not for windows).

    Raises:
        VPromptError: If a value is out of range.

    Source: of the starts, SPT (arXiv 2402.02382) and VIPAMIN (arXiv 2510.16446).
    """

    riding: ClassVar[Riding] = "prefix"
    letters: ClassVar[str] = "p{num_prompts}"
    words: ClassVar[str] = "started with {num_prompts} prompts per block"
    sizes: ClassVar[Mapping[str, tuple[Any, ...]]] = {"prompts": (10, 50)}

    num_prompts: int = option(20, flag="prompts", most=MAX_PROMPTS)
    dropout: float | None = field(default=None, kw_only=True)
    init: Init = field(default="random", kw_only=True, metadata=ADDED)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers()
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise VPromptError(f"Prompt dropout is at least 0 and below 1, not {self.dropout}.")

    def check_numbers(self) -> None:
        """Checks the numbers of prompts.

        Raises:
            VPromptError: If one is out of range.
        """
        if self.num_prompts < 1:
            raise VPromptError(
                f"{type(self).__name__} needs at least one prompt, not {self.num_prompts}; without any, it is Linear()."
            )

    @property
    def size(self) -> str:
        """Numbers of prompts, and their start where it is not random."""
        return super().size + ("" if self.init == "random" else f"-{self.init}")

    @property
    def prompt_dropout(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The dropout in force."""
        return 0.1 if self.dropout is None else self.dropout

    def initial_counts(self, num_blocks: int) -> list[int]:
        """Prompts of each block before training and condensation."""
        return [self.num_prompts] * num_blocks

    def start(
        self, prompts: Prompts, backbone: nn.Module, info: BackboneInfo, images: Callable[[], Iterable[Tensor]] | None
    ) -> None:
        """Takes the start that `init` names from training images."""
        if self.init == "random":
            return
        if images is None:
            raise VPromptError(
                f"Prompts that start from {self.init!r} are made of training images; attach with data=, a task from "
                "open_data, or with init='random'."
            )
        from vprompt.methods.layers import starts

        if self.init == "vipamin":
            starts.vipamin(prompts, backbone, info, images())
        else:
            starts.tokens(prompts, backbone, info, images(), clusters=self.init == "clusters")

    def without_dropout(self) -> Self:
        """The same method with prompt dropout off."""
        return replace(self, dropout=0.0)
