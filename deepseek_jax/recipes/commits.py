"""The commits of a config's names on the Hugging Face hub, so that a run reads the same files when it
resumes.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from deepseek_jax.errors import at
from deepseek_jax.hub import hub_id, pinned
from deepseek_jax.settings import OnHub, marked_texts


def with_commits(
    config: ConfigDict, settings: Any, known: Mapping[str, Mapping[str, str]]
) -> tuple[ConfigDict, dict[str, dict[str, str]]]:
    """(the config with each name on the hub at a commit, {kind: {the name: the name with its commit}}).

    settings: of the config, whose hints say which fields may have such names, and of what kind. known: what
    the run's work directory says of them; the hub is asked about others. Raises ValueError as hub.pinned
    does.
    """
    found, commits = config.copy_and_resolve_references(), {}
    for path, name, mark in marked_texts(settings, OnHub):
        if hub_id(name) is None:
            continue
        names = commits.setdefault(mark.kind, {})
        if name not in names:
            with at(".".join(("config", *map(str, path)))):
                names[name] = known.get(mark.kind, {}).get(name) or pinned(name, mark.kind)
        _set(found, path, names[name])
    return found, commits


def _set(config, path, value):
    """Set an entry of nested blocks and tuples; one that the config leaves to its default needs no commit."""
    *outer, last = path
    block = config
    for depth, key in enumerate(outer):
        if key not in block:
            return
        if isinstance(block[key], (list, tuple)):
            entries = list(block[key])
            entries[path[depth + 1]] = value
            with block.unlocked(), block.ignore_type():
                block[key] = tuple(entries)
            return
        block = block[key]
    with block.unlocked(), block.ignore_type():
        block[last] = value
