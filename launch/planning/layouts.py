"""Layouts of an update over devices, which --search varies, and the config fields for them."""

import dataclasses

from deepseek_jax.costs.program import Program
from deepseek_jax.parallel.mesh import size_name
from launch.planning.shards import arguments_of


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an update is spread over devices.

    Attributes:
        mesh: {axis: size} of every mesh axis.
        micro_batches: Their number.
        remat: ModelConfig's field.
    """

    mesh: dict[str, int]
    micro_batches: int
    remat: str

    def __str__(self):
        axes = " ".join(f"{size_name(axis)}={n}" for axis, n in self.mesh.items() if n > 1)
        return f"{axes or 'one device'}, micro_batches={self.micro_batches}, remat={self.remat}"


def layout_fields(updates: list[Program], layout: Layout):
    """Return the fields of an experiment's config that give its updates a layout.

    Returns:
        {dotted field: value}.
    """
    fields: dict[str, int | str] = {
        f"mesh.{size_name(axis)}": size for axis, size in layout.mesh.items()
    }
    for update in updates:
        block = f"{update.path}." if update.path else ""
        _, batch, *_ = arguments_of(update)
        rows = max(len(leaf) for leaf in batch.values() if leaf.shape)
        if hasattr(update.settings, "micro_batch_size"):
            # Pre-training counts the rows of a micro-batch, not the micro-batches
            fields[f"{block}micro_batch_size"] = rows // layout.micro_batches
        else:
            fields[f"{block}micro_batches"] = layout.micro_batches
        fields[f"{update.model_path}.remat"] = layout.remat
    return fields
