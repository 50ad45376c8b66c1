"""Names on the Hugging Face hub, ORG/NAME[:SUBSET][@REVISION]: find their commit, get their files.

huggingface_hub downloads into its cache and locks each file, so that only one process of a machine
downloads it. It reads HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN. No message of this project
contains the token.
"""

import contextlib
import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import TypeVar

from deepseek_jax.errors import shortened

NAME = re.compile(r"([a-zA-Z0-9][\w.-]*/[a-zA-Z0-9][\w.-]*)(?::([\w.+-]+))?(?:@([\w./-]+))?")
COMMIT = re.compile("[0-9a-f]{40}")
# Most characters that a message of ours quotes from a library
REASON = 300
# Endings of data files. A data set may have the same data in two forms: the first form here counts
DATA = (".parquet", ".jsonl", ".json", ".csv")
# A name with one of these endings is the path of a file, even if the file does not exist
FILES = (*DATA, ".gguf", ".py", ".safetensors")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
# The files of a tokenizer, as transformers names them
TOKENIZER = (
    "tokenizer*.json",
    "tokenizer.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
)
# No code, and nothing pickled
SMALL = ("config.json", "generation_config.json", *TOKENIZER)


# The type of a name: a text or a path
Name = TypeVar("Name", bound=str | os.PathLike)


@dataclasses.dataclass(frozen=True)
class HubId:
    """A model or a data set on the hub, at some revision.

    Attributes:
        repo: ORG/NAME.
        subset: A data set's config.
        revision: A branch, a tag or a commit; None for main.
    """

    repo: str
    subset: str | None = None
    revision: str | None = None

    def __str__(self):
        subset = "" if self.subset is None else f":{self.subset}"
        return self.repo + subset + ("" if self.revision is None else f"@{self.revision}")

    def at_commit(self, kind: str) -> "HubId":
        """Return the same id with a commit as its revision.

        This takes one request, or none if the revision is a commit already.

        Args:
            kind: "model" or "dataset".

        Raises:
            ValueError: The id is a model with a subset; or as pinned does.
        """
        if kind == "model" and self.subset is not None:
            raise ValueError(f"{self}: a model has no subset; leave out :{self.subset}")
        if self.revision is not None and COMMIT.fullmatch(self.revision):
            return self
        from huggingface_hub import HfApi

        with one_message(self, kind):
            resolution = HfApi().resolve_revision(self.repo, repo_type=kind, revision=self.revision)
        return dataclasses.replace(self, revision=resolution.resolved)


def hub_id(name: str | os.PathLike) -> HubId | None:
    """Return the HubId that a name means, or None if the name is a path.

    It is a path if something exists there, or if it has another form than a name on the hub.
    """
    text = os.fspath(name)
    match = NAME.fullmatch(text)
    if match is None or match[1].endswith(FILES) or os.path.exists(text):
        return None
    repo, subset, revision = match.groups()
    return HubId(repo, subset, revision)


def pinned(name: Name, kind: str) -> Name | str:
    """Return a name with a commit as its revision; a name that is not on the hub stays unchanged.

    Without a network, the commit is the one that the cache has for the revision.

    Args:
        name: A name on the hub, or a path.
        kind: "model" or "dataset".

    Raises:
        ValueError: There is no network and no commit in the cache; the hub has no such name or
            revision; or it requires a login.
    """
    repo_id = hub_id(name)
    return name if repo_id is None else str(repo_id.at_commit(kind))


def model_folder(name: str | os.PathLike, *, weights: bool = True) -> Path:
    """Download a model from the hub and return its local folder.

    The folder may have other files from earlier downloads.

    Args:
        name: A name on the hub.
        weights: False to get only config and tokenizer.

    Raises:
        ValueError: The name is a path; the model has no safetensors; or as pinned does.
    """
    model = _model(name)
    patterns = [*SMALL, *WEIGHTS] if weights else [*SMALL]
    # Subfolders have the same weights in other formats
    folder = snapshot(model, "model", patterns, ignore=["*/*"])
    if not folder.exists() or weights and not any(folder.glob(WEIGHTS[0])):
        raise ValueError(_without_safetensors(model))
    return folder


def check_model(name: str | os.PathLike):
    """Raise ValueError as model_folder does, without a download of the weights."""
    model = _model(name)
    folder = model_folder(str(model), weights=False)
    if not any(folder.glob(WEIGHTS[0])):
        names = names_of_files(model, "model")
        if not any(file.endswith(".safetensors") and "/" not in file for file in names):
            raise ValueError(_without_safetensors(model))


def _model(name: str | os.PathLike) -> HubId:
    """Return the HubId of a model's name, at a commit."""
    model = hub_id(name)
    if model is None:
        raise ValueError(f"{name} is a path, and no name on the hub")
    return model.at_commit("model")


def snapshot(
    repo_id: HubId, kind: str, patterns: list[str], ignore: list[str] | None = None
) -> Path:
    """Download the files at a commit that match and are not in the cache.

    Args:
        repo_id: An id at a commit.
        kind: "model" or "dataset".
        patterns: Glob patterns of the files to download.
        ignore: Glob patterns of the files not to download.

    Returns:
        The commit's local folder.

    Raises:
        ValueError: As one_message does.
    """
    from huggingface_hub import errors, snapshot_download

    download = functools.partial(
        snapshot_download,
        repo_id.repo,
        repo_type=kind,
        revision=repo_id.revision,
        allow_patterns=patterns,
        ignore_patterns=ignore,
    )
    with one_message(repo_id, kind):
        if not _listed(repo_id, kind):
            return Path(download(local_files_only=not _answers(repo_id, kind)))
        # This prints nothing if all of them are in the cache
        with contextlib.suppress(errors.LocalEntryNotFoundError):
            return Path(download(local_files_only=True))
        return Path(download())


def _listed(repo_id, kind):
    """Return whether the cache has the list of files at a commit, so that it takes no request."""
    from huggingface_hub import errors, get_cached_repo_tree

    try:
        return bool(get_cached_repo_tree(repo_id.repo, repo_type=kind, revision=repo_id.revision))
    except errors.CachedRepoTreeNotFoundError:
        return False


def _answers(repo_id, kind):
    """Return whether the hub can be reached, by one request.

    Asking for the list of files would retry for half a minute.
    """
    from huggingface_hub import HfApi, errors

    try:
        HfApi().repo_info(repo_id.repo, repo_type=kind, revision=repo_id.revision)
    except errors.HfHubHTTPError:
        raise
    except (errors.HTTPError, errors.OfflineModeIsEnabled):
        return False
    return True


def names_of_files(repo_id: HubId, kind: str) -> list[str]:
    """Return the sorted names of all files at a commit, as its latest snapshot listed them."""
    from huggingface_hub import get_cached_repo_tree

    with one_message(repo_id, kind):
        tree = get_cached_repo_tree(repo_id.repo, repo_type=kind, revision=repo_id.revision)
    return sorted(file.path for file in tree)


def _without_safetensors(model):
    names = names_of_files(model, "model")
    weights = [name for name in names if name.endswith((".gguf", ".bin", ".pt", ".pth"))]
    ggufs = [name for name in weights if name.endswith(".gguf")]
    if ggufs:
        return (
            f"{model} has no .safetensors, but .gguf files ({', '.join(ggufs)}): run `hf download "
            f"{model.repo} {ggufs[0]} --revision {model.revision}`, and give the path that it prints"
        )
    return (
        f"{model} has no .safetensors; of weights it has {', '.join(weights) or 'none'}, and pickled files "
        "are not read; give a model with .safetensors"
    )


@contextlib.contextmanager
def one_message(repo_id, kind: str):
    """Turn errors of huggingface_hub in the body into ValueErrors of one line.

    Args:
        repo_id: The HubId that the body requests.
        kind: "model" or "dataset".
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        # The hub may have answered, with a refusal
        hub_answered = isinstance(error.__cause__, errors.HfHubHTTPError)
        message = _refusal(repo_id, kind, error.__cause__) if hub_answered else None
        raise ValueError(message or _unreachable(repo_id, kind, error)) from error
    except errors.HfHubHTTPError as error:
        raise ValueError(_refusal(repo_id, kind, error)) from error
    # HTTPError is the one of httpx, a package with a name that depends on huggingface_hub's version
    except (
        errors.RevisionResolutionError,
        errors.CachedRepoTreeNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.HTTPError,
    ) as error:
        raise ValueError(_unreachable(repo_id, kind, error)) from error


def _refusal(repo_id, kind, error):
    """Return a message that explains the hub's refusal to a user."""
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{repo_id}: {repo_id.repo} has no revision {repo_id.revision}; see "
            f"{_page(repo_id, kind)}/tree/main"
        )
    status = error.response.status_code
    # The hub answers 401 for private repositories too, and for ones that do not exist
    is_hidden = isinstance(error, errors.RepositoryNotFoundError)
    if isinstance(error, errors.GatedRepoError) or status in (401, 403) and not is_hidden:
        return (
            f"{repo_id} is gated: ask for access at {_page(repo_id, kind)}, and set the environment variable "
            "HF_TOKEN to a token of that account"
        )
    if is_hidden:
        return (
            f"there is nothing at {repo_id}, and the hub has no {kind} {repo_id.repo}; correct the name, or, "
            "if it is private, set the environment variable HF_TOKEN"
        )
    return f"{repo_id}: the hub answered with status {status}; try again later"


def _unreachable(repo_id, kind, error):
    """Return a message that the hub cannot be reached.

    It has the command that fetches the files where there is a network.
    """
    from huggingface_hub import constants, errors

    reason = "no network"
    if constants.is_offline_mode():
        reason = "HF_HUB_OFFLINE is set"
    # Errors of huggingface_hub say in many lines what their cause says in one
    elif error.__cause__ is not None or isinstance(error, errors.HTTPError):
        reason = shortened(str(error.__cause__ or error).partition("\n")[0], REASON)
    command = f"hf download {repo_id.repo}{' --repo-type dataset' if kind == 'dataset' else ''}"
    command += "" if repo_id.revision is None else f" --revision {repo_id.revision}"
    return (
        f"there is nothing at {repo_id}, the cache {constants.HF_HUB_CACHE} does not have all of it, and the "
        f"Hugging Face hub cannot be reached ({reason}): run `{command}` where there is a network, with "
        "HF_HOME set to a folder that this machine sees too"
    )


def _page(repo_id, kind):
    """Return the address of an id's page on the hub."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo_id.repo}"
