"""Hub names of a config, each fixed at a commit, so that a resumed run reads the same files."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from deepseek_jax.errors import at
from deepseek_jax.hub import hub_id, pinned
from deepseek_jax.settings import OnHub, marked_texts


def with_commits(
    config: ConfigDict, settings: Any, known: Mapping[str, Mapping[str, str]]
) -> tuple[ConfigDict, dict[str, dict[str, str]]]:
    """Fix each Hugging Face hub name of a config at a commit.

    Args:
        config: The config, which stays unchanged.
        settings: The settings of this config. Their type hints say which fields may hold hub names,
            and of what kind.
        known: {kind: {name: the name with its commit}} from the run's work directory. The hub is
            asked only about other names.

    Returns:
        (a copy of the config with commits, {kind: {name: the name with its commit}}).

    Raises:
        ValueError: As hub.pinned does.
    """
    pinned_config = config.copy_and_resolve_references()
    commits: dict[str, dict[str, str]] = {}
    for path, name, mark in marked_texts(settings, OnHub):
        if hub_id(name) is None:
            continue
        pinned_names = commits.setdefault(mark.kind, {})
        if name not in pinned_names:
            with at(".".join(("config", *map(str, path)))):
                pinned_names[name] = known.get(mark.kind, {}).get(name) or pinned(name, mark.kind)
        _set(pinned_config, path, pinned_names[name])
    return pinned_config, commits


def _set(config, path, value):
    """Set an entry of nested blocks and tuples.

    A field that the config leaves at its default needs no commit and is skipped.
    """
    *outer_keys, last_key = path
    block = config
    for depth, key in enumerate(outer_keys):
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
        block[last_key] = value
