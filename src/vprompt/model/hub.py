"""Adapters on the Hugging Face Hub: fetched, uploaded, and every failure as a sentence."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from vprompt.backbones.weights import reason
from vprompt.utils.errors import AdapterError, UnknownAdapterError

_MISSING = (401, 403, 404)
"""Statuses of what is not there, or not for whoever asks: the Hub does not say which."""

_NOT_UPLOADED = {
    401: "the Hub does not accept your token; log in with `hf auth login`, or pass token=",
    403: "your token may not write there; use a token with write access, or another name",
    404: "the Hub finds no such repository or branch; check the name and the token's rights",
}
"""Status of an answer -> what is wrong and what to do."""


def is_hub_id(text: str) -> bool:
    """True for text that could name a repository on the Hub: `user/name`.

    Example:
        >>> is_hub_id("me/birds"), is_hub_id("adapters/birds/best"), is_hub_id("./birds")
        (True, False, False)
    """
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


def fetch(repo_id: str, files: Sequence[str], *, revision: str | None = None, max_bytes: int | None = None) -> Path:
    """Downloads files of one commit into the Hub's cache, or finds them there.

    Environment variables that count at the time of the call: `HF_ENDPOINT`, `HF_HUB_CACHE`.

    Args:
        repo_id: `user/name`.
        files: Paths in the repository.
        revision: Commit, branch or tag; the newest of the main branch when not given.
        max_bytes: Refuse a file that is larger, before it is downloaded.

    Returns:
        The folder that holds them, which is called as their commit.

    Raises:
        AdapterError: If one cannot be had.
    """
    unreachable = _why_unreachable(repo_id, files[0], revision)
    folder = Path()
    for file in files:
        try:
            if max_bytes is not None and unreachable is None:
                url = hf_hub_url(repo_id, file, revision=revision, endpoint=_endpoint())
                if (get_hf_file_metadata(url).size or 0) > max_bytes:
                    raise AdapterError(f"{file} of {repo_id!r} on the Hub is larger than {max_bytes} bytes.")
            path = hf_hub_download(
                repo_id,
                file,
                revision=revision,
                endpoint=_endpoint(),
                cache_dir=os.environ.get("HF_HUB_CACHE") or None,
                local_files_only=unreachable is not None,
            )
        except AdapterError:
            raise
        except Exception as error:  # the Hub's own errors, the network's and the file system's have no common base
            kind = UnknownAdapterError if unreachable is None and _status(error) in _MISSING else AdapterError
            raise kind(_why_not_fetched(repo_id, file, error, unreachable)) from error
        folder = Path(path).parent
        revision = folder.name  # the other files from the same commit
    return folder


def upload(
    repo_id: str,
    files: Mapping[str, Path],
    *,
    private: bool,
    token: str | None,
    revision: str | None,
    commit_message: str,
) -> str:
    """Uploads files as one commit; makes the repository, and the branch, where they are missing.

    Args:
        repo_id: `user/name`.
        files: Path in the repository -> file.
        private: Where the repository is made: keep it private.
        token: The one that `hf auth login` stored when not given.
        revision: Branch; main when not given.
        commit_message: One line.

    Returns:
        The repository's URL.

    Raises:
        AdapterError: If it fails.
    """
    api = HfApi(endpoint=_endpoint(), token=token)
    try:
        repository = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repository.repo_id, branch=revision, exist_ok=True)
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
        api.create_commit(repository.repo_id, additions, commit_message=commit_message, revision=revision)
    except Exception as error:  # as in `fetch`
        raise AdapterError(_why_not_uploaded(repo_id, api.endpoint, error)) from error
    return str(repository) if revision is None else f"{repository}/tree/{revision}"


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _why_unreachable(repo_id: str, file: str, revision: str | None) -> Exception | None:
    """The error of a Hub that cannot be reached, or None; `hf_hub_download` alone takes half a minute to raise it."""
    try:
        get_hf_file_metadata(hf_hub_url(repo_id, file, revision=revision, endpoint=_endpoint()))
    except Exception as error:  # as in `fetch`
        return error if _status(error) is None else None
    return None


def _why_not_fetched(repo_id: str, file: str, error: Exception, unreachable: Exception | None) -> str:
    start = f"There is no folder {repo_id!r}, and"
    status = _status(error)
    if unreachable is not None:
        return f"{start} the Hub could not be reached to look for it ({reason(unreachable)}); check path and network."
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"The repository {repo_id!r} on the Hub has no {file}: it is no adapter of vprompt; check the name."
    if status in _MISSING:
        return f"{start} no such repository on the Hub is open to you; check the name, or log in with `hf auth login`."
    return f"{start} {repo_id!r} could not be fetched from the Hub ({reason(error)}); try again."


def _why_not_uploaded(repo_id: str, endpoint: str, error: Exception) -> str:
    status = _status(error)
    if isinstance(error, HFValidationError):
        why = "that is no id for a repository on the Hub; use the form 'user/name'"
    elif status is not None:
        why = _NOT_UPLOADED.get(status, f"the Hub answered with status {status} ({reason(error)}); try again later")
    elif isinstance(error, ValueError | TypeError | RuntimeError):
        why = reason(error)
    else:
        why = f"the Hub at {endpoint} could not be reached ({reason(error)}); check the network"
    return f"The adapter could not be uploaded to {repo_id!r}: {why}."


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, or behind what caused it."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None
