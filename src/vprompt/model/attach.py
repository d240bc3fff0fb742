"""Attaching a method to a backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.backbones.factory import as_timm, create_backbone, describe_name
from vprompt.backbones.info import describe
from vprompt.backbones.names import BackbonePrecision
from vprompt.backbones.quantise import quantise
from vprompt.data.benchmarks.tasks import transforms_of
from vprompt.data.dataset import ImageDataset, Task, usual_augment
from vprompt.data.pipeline import Progress
from vprompt.data.preprocessing import Preprocessing, Resize
from vprompt.data.tasks import open_task
from vprompt.methods.base import HEAD_INIT, Method, check_head_init
from vprompt.methods.layers.head import initialise, new_head
from vprompt.methods.layers.texts import read_text_features, start_from_texts
from vprompt.methods.vpt import VPT
from vprompt.model.model import Execution, PromptedModel
from vprompt.tasks.base import TARGETS, Target
from vprompt.tasks.columns import NO_COLUMNS, Columns
from vprompt.utils.errors import BackboneError, VPromptError
from vprompt.utils.serialization import typed

MAX_CLASSES = 1_000_000

START_IMAGES, START_BATCH = 256, 32
"""Training images that prompts are made of at the start, and how many of them at once."""


def attach(
    backbone: str | nn.Module,
    method: Method | None = None,
    *,
    num_classes: int | None = None,
    data: Task | None = None,
    execution: Execution = "prefix",
    head_init: str = HEAD_INIT,
    classes: Sequence[str] | None = None,
    target: Target | str | None = None,
    preprocessing: Preprocessing | None = None,
    pretrained: bool = True,
    weights: str | Path | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    head: str | None = None,
    backbone_precision: BackbonePrecision | None = None,
) -> PromptedModel:
    """Attaches a method, such as prompts, and a head to a frozen vision transformer.

    Prompts are drawn from uniform(-v, v) (see `init_bound` in `vprompt.methods.layers.prompts`), or made of training
    images where the method's `init` says so, with torch's global generator: call `torch.manual_seed` to repeat. After
    that, training gives the numbers of `vprompt fit` with the same method and seed.

    Args:
        backbone: `"small"`, `"base"` or `"large"`; a timm name (`hf-hub:` and `local-dir:` included); `hf:` and
            the id or folder of a model of transformers; or a model of timm or transformers, which is not changed.
        method: The method; `VPT()`, deep with 20 prompts, when not given.
        num_classes: At least 1; as many as there are names when not given.
        data: A task from `open_data`, whose target and preprocessing are taken unless others are given, and of whose
            training images prompts are made where the method's `init` says so.
        execution: `"prefix"` or `"published"`; the same function, see `PromptedModel`.
        head_init: `"zero"` starts from zeros; `"paper"` draws the head's weight from Kaiming's normal distribution (fan
            out) and sets its bias to -ln 99, which the paper's SGD at high rates forgets and AdamW does not. Of a
            deeper head, its last layer. A file of text features (`.npz` or `.safetensors`: `features` (classes, width),
            `names`, `logit_scale`) makes it a zero-shot classifier of CLIP or SigLIP (docs/libraries.md).
        classes: Names of the classes.
        target: What is to be said of an image, where that is not one of the classes: `"multi-label"` (labels (B, K) of
            0 and 1), `"regression"` (labels (B, K), standardised) or another name in `vprompt.tasks`, with `classes`
            for the names of tags or numbers; or one that was made of data.
        preprocessing: Preprocessing of images; the backbone's own when not given.
        pretrained: With a name: load its weights.
        weights: With a name: file with other weights than those that the name stands for; see
            `vprompt.backbones.factory.create_backbone`.
        img_size: With a name: input size in pixels (one number, or height and width), where it should differ from the
            pre-training size.
        in_chans: With a name: channels of the images where they are not RGB.
        head: Where every pixel has a label, what makes logits of maps: `"linear"`, `"multi"` or `"conv"`, see
            `vprompt.methods.layers.dense`; the target's own when not given.
        backbone_precision: How to hold the weights of the backbone's linear layers: `"bf16"`, `"int8"`, `"int4"` or
            `"fp8"`, for less memory (docs/memory.md); as they are when not given. All that is learned stays as it is.

    Returns:
        A `PromptedModel` in training mode.

    Raises:
        BackboneError: If the backbone cannot be made or is not supported.
        VPromptError: If another argument is out of range.

    Example:
        >>> import timm, torch
        >>> model = attach(timm.create_model("test_vit"), VPT(num_prompts=4), num_classes=3)
        >>> model(torch.zeros(2, 3, 160, 160)).shape, model.prompt_counts
        (torch.Size([2, 3]), [4, 4, 4, 4, 4, 4])

    Source: VPT (arXiv 2203.12119).
    """
    target = _target(target, data, classes, num_classes)
    if data is not None:
        preprocessing = preprocessing or data.preprocessing
    if isinstance(classes, str):
        raise VPromptError(f"Names of classes are a list, not the text {classes!r}.")
    check_head_init(head_init)
    texts = None if head_init in ("zero", "paper") else read_text_features(head_init)
    if texts is not None and target is None and classes is None and num_classes in (None, len(texts.features)):
        classes, num_classes = texts.names, len(texts.features)
    classes = classes if target is None else target.names
    number = typed("num_classes", len(classes or ()) if num_classes is None else num_classes, int)
    if not 1 <= number <= MAX_CLASSES:
        raise VPromptError(
            f"A classifier has 1 to {MAX_CLASSES:,} classes, not {number}; give num_classes, classes or data."
        )
    method = VPT() if method is None else method
    if isinstance(backbone, str):
        with torch.random.fork_rng(devices=[]):  # what is drawn below is the same for a name and for its model
            backbone = create_backbone(
                backbone, pretrained=pretrained, weights=weights, img_size=img_size, in_chans=in_chans
            )
    elif img_size is not None or in_chans is not None:
        what = "img_size" if img_size is not None else "in_chans"
        raise BackboneError(f"{what} goes with a backbone's name; a model object has its input size already.")
    elif weights is not None:
        raise BackboneError("weights goes with a backbone's name; a model object has its weights already.")
    backbone = quantise(as_timm(backbone), backbone_precision)
    info = describe(backbone)
    prompts, kv_prompts = method.make_prompts(info), method.make_kv_prompts(backbone, info)
    if head is not None:
        if target is None:
            raise VPromptError("A head on maps needs a target whose pixels have labels; give data or target.")
        target = target.with_head(head)
    classifier = initialise(new_head(method, info, target, number), head_init if texts is None else HEAD_INIT)
    like = next(backbone.parameters())
    model = PromptedModel(
        backbone,
        method,
        prompts,
        classifier,
        kv_prompts=kv_prompts,
        execution=execution,
        classes=classes,
        target=target,
        preprocessing=preprocessing,
    )
    model.to(device=like.device, dtype=like.dtype)
    drawn = None if data is None else partial(_drawn_images, data.train, like)
    if not like.is_meta:  # where only shapes are asked for, there is nothing to start
        method.start(model.prompts, backbone, info, drawn)
        if texts is not None:
            few = [torch.randn(8, *info.preprocessing.shape).to(like)] if drawn is None else drawn()
            start_from_texts(model.head, texts, model.classes, backbone, few)
    return model.train()


def _target(
    target: Target | str | None, data: object, classes: Sequence[str] | None, num_classes: int | None
) -> Target | None:
    """That of a name with the given classes or numbers for names, or that of the data."""
    if data is not None and not isinstance(data, Task):
        raise VPromptError(f"data must be a task from vprompt.open_data, not {type(data).__name__}.")
    if isinstance(target, str):
        known = () if data is None or num_classes is not None else data.target.names
        return TARGETS.get(target).called(classes or known or [str(number) for number in range(num_classes or 0)])
    if data is None:
        return target
    return data.target if target is None and classes is None else target


def _drawn_images(images: ImageDataset, like: Tensor) -> Iterator[Tensor]:
    """Batches of training images at the model's size, as training sees them, drawn with torch's global generator."""
    index, seed = torch.randperm(len(images))[:START_IMAGES], int(torch.randint(2**31, ()))
    for part in index.split(START_BATCH):
        pairs = list(images.pairs(part, seed=seed, epoch=0))
        pixels = torch.cat([pixels for pixels, _ in pairs]).to(like.device)
        yield images.preprocessing.normalise(pixels).to(like.dtype)


def open_data(
    data: Any = None,
    backbone: str | nn.Module = BUNDLED_BACKBONE,
    *,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    resize: Resize | None = None,
    root: str | Path | None = None,
    columns: Columns = NO_COLUMNS,
    target: str | None = None,
    split_seed: int = 0,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Task:
    """Opens images as `vprompt fit DATA` does: checked, split, and prepared for a backbone.

    Args:
        data: An image folder, a table, `hf:NAME`, `vtab:NAME`, `fgvc:NAME`, `synthetic:NAME`; or a data set in Python
            whose items are pairs of an image (a PIL image, an array of bytes, a path) and a label, or a mapping of
            `train`, `val` and `test` to such; the bundled task when not given.
        backbone: Name or model, as for `attach`, that will see the images.
        img_size: With a name: its input size, as for `attach`.
        in_chans: With a name: channels of the images, as for `attach`.
        resize: `"squash"` or `"crop"`, as the task's results are made when not given; where pixels have labels,
            `"keep"` (when not given), `"fit"` or `"squash"`.
        root: Folder of benchmark tasks; see `vprompt.data.open_task`.
        columns: What the columns of a table are, where that does not tell itself.
        target: Name of what is to be said of an image; see `vprompt.data.open_task`.
        split_seed: Cuts the splits that a folder does not have.
        skip_bad: Go on without images and classes that cannot be used.
        progress: Called after every image with (done, total).

    Returns:
        A task: `train`, `val`, `test` and `classes`, for `attach(..., data=task)` and `fit(model, task)`.

    Raises:
        DataError: If the data cannot be used.
        BackboneError: If there is no such backbone.

    Example:
        >>> len(open_data().train)
        800
    """
    info = (
        describe_name(backbone, img_size=img_size, in_chans=in_chans)
        if isinstance(backbone, str)
        else describe(as_timm(backbone))
    )
    spec = str(data) if isinstance(data, Path) else data
    usual = transforms_of(spec if isinstance(spec, str) else None)
    preprocessing = replace(info.preprocessing, resize=resize or usual.resize)
    task = open_task(
        spec,
        preprocessing,
        root=root,
        columns=columns,
        target=target,
        resize=resize,
        split_seed=split_seed,
        skip_bad=skip_bad,
        progress=progress,
    )
    return replace(task, train=task.train.with_augment(usual_augment(usual.augment, task.train)))
