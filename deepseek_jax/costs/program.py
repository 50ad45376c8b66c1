"""A program of a recipe, by the shapes and shardings of its arguments: enough to compile it, anywhere."""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.costs.flops import forward_flops, useful_flops
from deepseek_jax.models import ModelConfig

# The parts of a step of reinforcement, by the names of MLPerf's training benchmarks
TRAINING = "policy_training_time"
GENERATION = "exposed_generation_time"
SYNC = "weight_sync_time"


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and the ShapeDtypeStructs that it is called with; nothing of it is an array.

    arguments: static ones included; a function of {name of an earlier program: its outputs} where they are
    results of other programs. tokens, flops: what one call does and what the model needs for it, over all
    devices; of a decoding step, not of the loop. part: TRAINING, GENERATION or SYNC. times: how often a step
    of the run calls it, at most. sizes: for a reader.
    """

    name: str
    function: Callable
    arguments: tuple | Callable[[dict], tuple]
    mesh: Mesh
    tokens: int
    flops: float
    sizes: str
    part: str = TRAINING
    times: int = 1

    def arguments_after(self, outputs: dict):
        """The arguments, given the outputs of the programs before."""
        return self.arguments(outputs) if callable(self.arguments) else self.arguments


def update_program(
    name: str, step: Callable, state, batch: dict, *, config: ModelConfig, mesh: Mesh, **work
):
    """The Program of step(state, batch, rng). state, batch: ShapeDtypeStructs with shardings. work: fields of
    Program; by default tokens, flops and sizes are those of the rows batch["tokens"].
    """
    # Where the update counter is: on every device
    rng = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=state.step.sharding)
    if "tokens" not in work:
        rows, length = batch["tokens"].shape
        flops = rows * length * useful_flops(config, length, trains_mtp="mtp_weight" in batch)
        work |= dict(tokens=rows * length, flops=flops, sizes=f"{rows:,} rows x {length:,}")
    return Program(name, step, (state, batch, rng), mesh, **work)


def forward_work(config: ModelConfig, rows: int, length: int):
    """The fields tokens, flops and sizes of a Program that reads rows of so many tokens."""
    tokens, sizes = rows * length, f"{rows:,} rows x {length:,}"
    return dict(tokens=tokens, flops=tokens * forward_flops(config, length / 2), sizes=sizes)


def everywhere(mesh: Mesh, shape: tuple, dtype):
    """The ShapeDtypeStruct of an array that every device has whole."""
    place = NamedSharding(mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)
