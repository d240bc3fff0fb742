"""Saving an adapter to a folder, and pushing it to the Hub."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save

from vprompt.backbones.factory import can_create, public_name
from vprompt.backbones.quantise import original_fingerprint, original_rounded, precision_held
from vprompt.backbones.weights import weights_file
from vprompt.model import hub as adapter_hub
from vprompt.model.card import card
from vprompt.model.config import FORMAT_VERSION, AdaptedBackbone, AdapterConfig, read_config, write_config
from vprompt.model.tensors import CONFIG_FILE, TENSORS_FILE, check_values, tensors_of
from vprompt.tasks.base import to_document
from vprompt.utils.errors import AdapterError
from vprompt.utils.io import write_atomically, write_text
from vprompt.utils.version import __version__

if TYPE_CHECKING:
    from vprompt.model.model import PromptedModel

CARD_FILE = "README.md"


def save_adapter(model: PromptedModel, directory: str | Path) -> None:
    """Writes adapter_model.safetensors, README.md and, last, adapter_config.json; an adapter there is replaced.

    Args:
        model: What it learned is saved, in the type it is held in; the backbone is named, not saved.
        directory: Made where missing; other files in it are left alone.

    Raises:
        AdapterError: If a number is not finite.
        StorageError: If the files cannot be written.

    Example:
        >>> import tempfile, timm, torch, vprompt
        >>> backbone = timm.create_model("test_vit", img_size=32)
        >>> model = vprompt.attach(backbone, vprompt.VPT(num_prompts=4), num_classes=3).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_adapter(model, folder)
        ...     again = vprompt.load(folder, backbone=backbone)
        >>> images = torch.rand(1, 3, 32, 32)
        >>> torch.equal(again(images), model(images))
        True
    """
    file = weights_file(model.backbone)
    _save(model, Path(directory), model.info.name, None if file is None else str(file))


def push_adapter(
    model: PromptedModel,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload an adapter of vprompt",
) -> str:
    """Uploads the three files of an adapter to the Hugging Face Hub as one commit.

    Args:
        model: What to upload.
        repo_id: `user/name`; made where missing.
        private: Where the repository is made: keep it private.
        token: The one that `hf auth login` stored when not given.
        revision: Branch, made where missing; main when not given.
        commit_message: One line.

    Returns:
        The URL of the repository.

    Raises:
        AdapterError: If the model cannot be saved, or the Hub does not take it.

    Example:
        >>> push_adapter(model, "me/birds")  # doctest: +SKIP
        'https://huggingface.co/me/birds'
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder, weights = Path(temporary), weights_file(model.backbone)
        _save(model, folder, public_name(model.info.name), None if weights is None else weights.name)
        files = {file: folder / file for file in (CONFIG_FILE, TENSORS_FILE, CARD_FILE)}
        return adapter_hub.upload(
            repo_id, files, private=private, token=token, revision=revision, commit_message=commit_message
        )


def _save(model: PromptedModel, directory: Path, backbone: str, weights: str | None) -> None:
    tensors = tensors_of(model)
    data = save(tensors, metadata={"format": "pt"})
    config = _config_of(model, hashlib.sha256(data).hexdigest(), backbone, weights)
    text = write_config(config)
    try:
        read_config(text, CONFIG_FILE)
        check_values(tensors, TENSORS_FILE)
    except AdapterError as error:
        raise AdapterError(f"This model cannot be saved as an adapter. {error}") from error
    write_atomically(directory / TENSORS_FILE, lambda part: part.write_bytes(data))
    pretrained: Any = getattr(model.backbone, "pretrained_cfg", None) or {}
    published = pretrained.get("hf_hub_id") if weights is None else None
    known, learned = can_create(backbone), model.num_learned
    shown = card(config, base_model=str(published or backbone), known_to_timm=known, learned=learned)
    write_text(directory / CARD_FILE, shown)
    write_text(directory / CONFIG_FILE, text)


def _config_of(model: PromptedModel, tensors_sha256: str, backbone: str, weights: str | None) -> AdapterConfig:
    return AdapterConfig(
        format_version=FORMAT_VERSION,
        vprompt_version=__version__,
        method=model.method,
        backbone=AdaptedBackbone(
            name=backbone,
            fingerprint=original_fingerprint(model.backbone),
            img_size=model.info.preprocessing.size,
            weights=weights,
            rounded=original_rounded(model.backbone),
            precision=precision_held(model.backbone),
        ),
        preprocessing=model.preprocessing,
        classes=model.classes if to_document(model.target) is None else model.target.names,
        num_classes=model.head.out_features,
        prompt_counts=tuple(model.prompt_counts),
        widths=tuple(model.info.widths),
        condensation=model.condensation,
        num_segments=model.prompts.num_segments,
        merged=model.prompts.merged,
        plain_prompts=model.prompts.settled().plain,
        pruning=model.pruning,
        recipe=model.recipe,
        tensors_sha256=tensors_sha256,
        target=model.target,
    )
