"""The commits of a config's names on the Hugging Face hub, so that a run reads the same files when it
resumes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from deepseek_jax.errors import at
from deepseek_jax.hub import hub_id, pinned
from deepseek_jax.settings import OnHub, field_hints, marks_of


def with_commits(
    config: ConfigDict, settings: Any, known: Mapping[str, str]
) -> tuple[ConfigDict, dict[str, str]]:
    """(the config with each name on the hub at a commit, {the name: the name with its commit}).

    settings: of the config, whose hints say which fields may have such names. known: what the run's work
    directory says of them; the hub is asked about others. Raises ValueError as hub.pinned does.
    """
    commits = {}
    for path, name, kind in _names(settings, ()):
        if hub_id(name) is not None and name not in commits:
            with at(".".join(("config", *map(str, path)))):
                commits[name] = known.get(name) or pinned(name, kind)
    if not commits:
        return config, {}
    found = config.copy_and_resolve_references()
    for path, name, _ in _names(settings, ()):
        if name in commits:
            _set(found, path, commits[name])
    return found, commits


def _names(block, path):
    """(keys from the config's root, text, kind) of each text that may be a name on the hub."""
    for field, hint in field_hints(type(block)).items():
        yield from _below(getattr(block, field), hint, (*path, field))


def _below(value, hint, path):
    kinds = [mark.kind for mark in marks_of(hint) if isinstance(mark, OnHub)]
    if dataclasses.is_dataclass(value):
        yield from _names(value, path)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _below(entry, hint, (*path, key))
    elif kinds and isinstance(value, tuple):
        for index, entry in enumerate(value):
            yield (*path, index), entry, kinds[0]
    elif kinds and isinstance(value, str):
        yield path, value, kinds[0]


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
