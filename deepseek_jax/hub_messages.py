"""What goes wrong with the Hugging Face hub, in one line for a user."""

import contextlib

from deepseek_jax.errors import shortened

# Characters of what a library says
REASON = 300


@contextlib.contextmanager
def one_message(found, kind: str):
    """Raise what huggingface_hub raises in the body as a ValueError of one line. found: a hub.HubId."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        # The hub may have answered, with a refusal
        answered = isinstance(error.__cause__, errors.HfHubHTTPError)
        message = _refusal(found, kind, error.__cause__) if answered else None
        raise ValueError(message or _unreachable(found, kind, error)) from error
    except errors.HfHubHTTPError as error:
        raise ValueError(_refusal(found, kind, error)) from error
    # HTTPError: of httpx, whose name depends on the version of huggingface_hub
    except (
        errors.RevisionResolutionError,
        errors.CachedRepoTreeNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.HTTPError,
    ) as error:
        raise ValueError(_unreachable(found, kind, error)) from error


def _refusal(found, kind, error):
    """What the hub's answer means for a user."""
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return f"{found}: {found.repo} has no revision {found.revision}; see {_page(found, kind)}/tree/main"
    status = error.response.status_code
    # The hub answers 401 for what is private too, and for what is not there
    hidden = isinstance(error, errors.RepositoryNotFoundError)
    if isinstance(error, errors.GatedRepoError) or status in (401, 403) and not hidden:
        return (
            f"{found} is gated: ask for access at {_page(found, kind)}, and set the environment variable "
            "HF_TOKEN to a token of that account"
        )
    if hidden:
        return (
            f"there is nothing at {found}, and the hub has no {kind} {found.repo}; correct the name, or, if "
            "it is private, set the environment variable HF_TOKEN"
        )
    return f"{found}: the hub answered with status {status}; try again later"


def _unreachable(found, kind, error):
    """Which command fetches it where there is a network."""
    from huggingface_hub import constants, errors

    reason = "no network"
    if constants.is_offline_mode():
        reason = "HF_HUB_OFFLINE is set"
    # The classes of huggingface_hub say in many lines what their cause says in one
    elif error.__cause__ is not None or isinstance(error, errors.HTTPError):
        reason = shortened(str(error.__cause__ or error).partition("\n")[0], REASON)
    command = f"hf download {found.repo}{' --repo-type dataset' if kind == 'dataset' else ''}"
    command += "" if found.revision is None else f" --revision {found.revision}"
    return (
        f"there is nothing at {found}, the cache {constants.HF_HUB_CACHE} does not have all of it, and the "
        f"Hugging Face hub cannot be reached ({reason}): run `{command}` where there is a network, with "
        "HF_HOME set to a folder that this machine sees too"
    )


def _page(found, kind):
    """The address of its page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{found.repo}"
