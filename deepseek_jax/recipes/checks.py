"""Checks of a stage's settings against the mesh and the model, for several kinds of stages."""

import contextlib
import dataclasses
from typing import Any

from jax.sharding import Mesh

from deepseek_jax.errors import at
from deepseek_jax.models.network_config import Network
from deepseek_jax.parallel.shard import check_batch
from deepseek_jax.rollout import requests
from deepseek_jax.training.settings import RowSettings


def check_rows(settings: RowSettings, mesh: Mesh, pipeline_micro_batches: int | None = None):
    """Raise ValueError, naming the fields, unless a step's rows split over the mesh.

    Args:
        settings: The settings of the stage.
        mesh: The mesh that the rows are split over.
        pipeline_micro_batches: The model's field of this name.
    """
    rows, length = settings.batch_size, settings.sequence_length
    with at(f"batch_size={rows}, sequence_length={length}"):
        check_batch(
            mesh,
            rows,
            length,
            micro_batches=settings.micro_batches,
            pipeline_micro_batches=pipeline_micro_batches,
        )


def check_slots(settings: Any, mesh: Mesh):
    """Raise ValueError, naming the field, if slots in the settings do not split over the mesh."""
    for path, slots in _slots(settings):
        with at(path) if path else contextlib.nullcontext():
            requests.check_slots(slots, mesh.size)


def _slots(block):
    """Yield (path of the block, its slots) for each block of the settings that has slots."""
    if dataclasses.is_dataclass(block):
        block = {field.name: getattr(block, field.name) for field in dataclasses.fields(block)}
    for name, value in (block or {}).items():
        if name == "slots":
            yield "", value
        elif dataclasses.is_dataclass(value) or isinstance(value, dict):
            for path, slots in _slots(value):
                yield f"{name}.{path}".rstrip("."), slots


# Fields that count rows, copies of each row, and the tokens of a row
ROWS, TIMES = ("batch_size", "prompts_per_step", "prompts", "slots"), ("group_size",)
LENGTHS = "sequence_length", "max_prompt_length", "max_completion_length"


def largest_batch(settings: Any) -> int:
    """Return an upper bound of the tokens in any batch that the settings ask for."""
    largest_by_field: dict[str, int] = {}
    for name, number in _numbers(settings):
        largest_by_field[name] = max(number, largest_by_field.get(name, 0))
    rows = max(largest_by_field.get(name, 0) for name in ROWS)
    copies = max(largest_by_field.get(name, 1) for name in TIMES)
    return rows * copies * sum(largest_by_field.get(name, 0) for name in LENGTHS)


def _numbers(block, outer_name=""):
    """Yield (name of the field, number) for every integer in the settings.

    A number in a dict or in pairs gets the name of the field that holds it.
    """
    if dataclasses.is_dataclass(block):
        for field in dataclasses.fields(block):
            yield from _numbers(getattr(block, field.name), field.name)
    elif isinstance(block, dict):
        for name, value in block.items():
            yield from _numbers(
                value, outer_name if isinstance(value, int) and outer_name else name
            )
    elif isinstance(block, (list, tuple)):
        for value in block:
            yield from _numbers(value, outer_name)
    elif isinstance(block, int):
        yield outer_name, block


def check_positions(settings: RowSettings, config: Network):
    """Raise ValueError if sequence_length exceeds the model's max_position_embeddings."""
    if settings.sequence_length > config.max_position_embeddings:
        raise ValueError(
            f"sequence_length={settings.sequence_length} is beyond the model's "
            f"max_position_embeddings={config.max_position_embeddings}; lower it"
        )
