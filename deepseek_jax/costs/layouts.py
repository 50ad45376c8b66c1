"""How an update is laid out over devices: what launch/plan.py --search varies, and a recipe's config sets."""

import dataclasses

from deepseek_jax.parallel.mesh import size_name


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an update is spread: the size of every mesh axis, the micro-batches, and ModelConfig's remat."""

    mesh: dict[str, int]
    micro_batches: int
    remat: str

    def __str__(self):
        axes = " ".join(f"{size_name(axis)}={n}" for axis, n in self.mesh.items() if n > 1)
        return f"{axes or 'one device'}, micro_batches={self.micro_batches}, remat={self.remat}"
