"""Heads that start from features of texts: zero-shot classification by CLIP or SigLIP, as one linear layer."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vprompt.methods.layers.head import Head
from vprompt.utils.errors import VPromptError

USUAL_SCALE = math.log(100)
"""Logarithm of CLIP's scale at the end of its training, and its bound."""


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """What a file says of classes.

    Args:
        features: Projected features (K, E) of K texts (of several of one class, their mean).
        names: Names of the classes, or None.
        scale: Logarithm of what multiplies a cosine, as the parameter `logit_scale` of CLIP and SigLIP.
        bias: What is added to it, as SigLIP's `logit_bias`.
        file: Where it is from.
    """

    features: Tensor
    names: tuple[str, ...] | None
    scale: float
    bias: float
    file: str


def read_text_features(file: str) -> TextFeatures:
    """Reads `features` (K, E) and, where they are there, `names`, `logit_scale` and `logit_bias`.

    In a `.npz` file names are an array of text; in a `.safetensors` file they are metadata, as JSON.

    Raises:
        VPromptError: If there is no such file, or it does not hold such values.
    """
    try:
        arrays, names = _read(Path(file))
        features = arrays["features"].double()
        scale, bias = (
            float(arrays.get(key, usual)) for key, usual in (("logit_scale", USUAL_SCALE), ("logit_bias", 0))
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, zipfile.BadZipFile) as error:
        raise VPromptError(
            f"The text features in {file} cannot be read ({type(error).__name__}: {error}); give a .npz or "
            ".safetensors file with an array 'features' (classes, width)."
        ) from error
    problem = None
    if features.ndim != 2 or not features.numel() or not bool(features.isfinite().all()):
        problem = f"'features' of shape {tuple(features.shape)} are not finite numbers (classes, width)"
    elif not bool(features.any(1).all()):
        problem = "a class has features that are all zero"
    elif names is not None and (len(names) != len(features) or len(set(names)) != len(names)):
        problem = f"there are not {len(features)} different names for {len(features)} classes"
    elif not (abs(scale) <= 20 and math.isfinite(bias)):
        problem = f"'logit_scale' is a logarithm (that of 100 is {USUAL_SCALE:.2f}), not {scale:g}"
    if problem is not None:
        raise VPromptError(f"In the text features of {file}, {problem}; write the file again.")
    return TextFeatures(features=features, names=names, scale=scale, bias=bias, file=file)


def _read(file: Path) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """Tensors and names."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as stored:
            names = (stored.metadata() or {}).get("names")
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - it is no mapping
            return tensors, None if names is None else tuple(map(str, json.loads(names)))
    with np.load(file, allow_pickle=False) as stored:
        arrays = dict(stored)
    names = arrays.pop("names", None)
    return {key: torch.from_numpy(array) for key, array in arrays.items()}, None if names is None else tuple(
        map(str, names)
    )


@torch.no_grad()
def start_from_texts(
    head: Head, texts: TextFeatures, classes: Sequence[str] | None, backbone: Any, batches: Iterable[Tensor]
) -> None:
    """Sets a linear head so that its answers are those of zero-shot classification by the same features.

    A linear layer cannot divide by the norm of each image's feature; it divides by the mean norm over some images,
    which changes no answer, and probabilities little.

    Args:
        head: Changed in place.
        texts: Features of texts in the space that images are projected to.
        classes: Names of the head's classes, by which texts are found; None where they are in the file's order.
        backbone: The bare timm model; where it has a projection to that space, this is its classifier.
        batches: Normalised images.

    Raises:
        VPromptError: If the texts are not of these classes, or of another width.
    """
    features_KE = texts.features
    if classes is not None and texts.names is not None:
        lacking = [name for name in classes if name not in texts.names]
        if lacking:
            raise VPromptError(f"The text features of {texts.file} have no class {lacking[0]!r}; add it to them.")
        features_KE = features_KE[[texts.names.index(name) for name in classes]]
    rows, width = features_KE.shape
    projection = backbone.get_classifier()
    if not isinstance(projection, nn.Linear) or projection.out_features != width:
        projection = None
    into = head.in_features if projection is None else width
    if not isinstance(head, nn.Linear) or (rows, width) != (head.out_features, into):
        raise VPromptError(
            f"The text features of {texts.file} are {rows} × {width}, and this model's head is {head.out_features} × "
            f"{head.in_features}; give features of its classes by the model's own text encoder."
        )
    project = nn.Identity() if projection is None else projection
    norms = [
        project(backbone.forward_head(backbone.forward_features(images), pre_logits=True)).norm(dim=-1)
        for images in batches
    ]
    rows_KE = F.normalize(features_KE, dim=1) * math.exp(texts.scale) / float(torch.cat(norms).cpu().double().mean())
    weight_KF, bias_K = rows_KE, rows_KE.new_full((rows,), texts.bias)
    if projection is not None:
        weight_KF = rows_KE @ projection.weight.cpu().double()
        for bias in [value for name, value in projection.named_parameters() if name == "bias"]:
            bias_K = bias_K + rows_KE @ bias.cpu().double()
    head.weight.copy_(weight_KF)
    head.bias.copy_(bias_K)
