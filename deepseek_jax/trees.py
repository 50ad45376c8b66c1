"""PyTree, the type of what holds arrays: nested dicts, lists and records.

Tests: tests/test_house.py.
"""

from typing import Any, TypeAlias

# jax has no type of its own for trees, and its functions take Any
PyTree: TypeAlias = Any
