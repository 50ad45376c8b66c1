"""Program: a recipe's program with the shapes and shardings of its arguments.

This is enough to compile it anywhere, without arrays.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from deepseek_jax.costs.flops import attended_keys, forward_flops, useful_flops
from deepseek_jax.models.network_config import Network
from deepseek_jax.trees import PyTree

# A step of reinforcement and its parts, in seconds. MLPerf's training benchmarks use these names, and steps
# are compared with their logs: an exception to the rule that the name of a time ends in _seconds
STEP = "train_step_time"
TRAINING = "policy_training_time"
GENERATION = "exposed_generation_time"
SYNC = "weight_sync_time"
# The seconds of reward models and judges; the name is a metric of a run, not MLPerf's
REWARD = "reward_seconds"
# Learned tokens of a step, per second and per device, whatever kind of device it is
TOKEN_RATE = "valid_tokens_per_sec_per_gpu"


class ResidentArrays(NamedTuple):
    """Arrays in the devices' memory that a running program does not take as arguments.

    Attributes:
        name: What it is, in words.
        tree: ShapeDtypeStructs with shardings.
        fields: Fields of the config that make it smaller, in words.
    """

    name: str
    tree: PyTree
    fields: str = ""

    @property
    def bytes(self) -> int:
        """The bytes on one device."""
        return argument_bytes(self.tree)


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function, and the ShapeDtypeStructs that it is called with instead of arrays.

    Attributes:
        name: The program's name; results are passed on under it.
        arguments: All arguments, including static ones. If there are `needs`, a function from their
            results to the arguments.
        mesh: The mesh of the run.
        tokens: Tokens that one call, or one turn of a decoding loop, works through, over all
            devices.
        flops: Operations that the model needs for these tokens, over all devices.
        sizes: The sizes of a call, for a reader.
        part: TRAINING, GENERATION, SYNC or REWARD.
        times: How often a step of the run calls the program, at most.
        token_steps: Turns of the decoding loop in all these calls, at most; 0 for a program without
            one.
        needs: Names of earlier programs with results that are arguments here.
        model: The model that an update trains.
        beside: What else is in the devices' memory while the program runs.
        waiting: Names of earlier programs with results that are in memory too.
        settings: The settings of its stage.
        path: The place of these settings in the config.
        model_path: The place of the model in the config.
        host_bytes: Bytes that the program's arguments, and what they are made from, take in the memory
            of one process; 0 if they are few.
        by_shapes: True if a plan needs only the size of the results, which are in memory during
            other programs, and compiles nothing.
    """

    name: str
    function: Callable
    arguments: tuple | Callable[..., tuple]
    mesh: Mesh
    tokens: int
    flops: float
    sizes: str
    part: str = TRAINING
    times: int = 1
    token_steps: int = 0
    needs: tuple[str, ...] = ()
    model: Network | None = None
    beside: tuple[ResidentArrays, ...] = ()
    waiting: tuple[str, ...] = ()
    settings: Any = None
    path: str = ""
    model_path: str = "model"
    host_bytes: int = 0
    by_shapes: bool = False

    @property
    def beside_bytes(self) -> int:
        """Bytes on one device, in addition to the program's arguments and results."""
        return sum(arrays.bytes for arrays in self.beside)

    @property
    def runs(self) -> int:
        """How often a step of the run does the work that `tokens` and `flops` describe."""
        return self.token_steps or self.times

    @property
    def filled(self) -> float:
        """The share of the experts' buffers that a balanced load fills."""
        buffer = None if self.model is None else self.model.expert_buffer
        return 1.0 if buffer is None else 1 / buffer

    @property
    def after(self) -> tuple[str, ...]:
        """The names of all earlier programs with results that are needed to plan this one."""
        return self.needs + self.waiting

    def arguments_after(self, results: Mapping[str, Any]) -> tuple:
        """Return the arguments, from {name: results} of the programs before.

        Raises:
            KeyError: For missing results.
        """
        if not callable(self.arguments):
            return self.arguments
        return self.arguments(*(results[name] for name in self.needs))


def beside(programs: Iterable[Program], *held: ResidentArrays) -> list[Program]:
    """Return the programs, with more values in the devices' memory while they run."""
    return [dataclasses.replace(p, beside=(*p.beside, *held)) for p in programs]


def step_of(program: Program) -> str:
    """Return the prefix that the names of a step's programs share, "" for none.

    A reward model's programs have its name behind this prefix.
    """
    prefix = program.name.rpartition(": ")[0]
    return prefix.rpartition(": ")[0] if program.part == REWARD else prefix


class AbstractState(Protocol):
    """A TrainState of ShapeDtypeStructs with shardings, as far as a Program reads it."""

    step: Any
    opt_state: Any
    frozen: Any


def moments_of(state: AbstractState) -> ResidentArrays:
    """Return the ResidentArrays of a TrainState's moments, while another program reads its parameters."""
    fields = "optimizer.moment_memory='host', or optimizer.moment_dtype='bfloat16'"
    return ResidentArrays("the optimizer's moments", state.opt_state, fields)


def policy_params(params: PyTree) -> ResidentArrays:
    """Return the ResidentArrays of a policy's parameters, while another model works."""
    return ResidentArrays("the policy's parameters", params)


class Amount(NamedTuple):
    """Size of one call of a Program: tokens, FLOPs, and a text with the sizes.

    Program has fields of the same names.
    """

    tokens: int
    flops: float
    sizes: str


def update_program(
    name: str,
    step: Callable,
    state: AbstractState,
    batch: dict,
    amount: Amount | None = None,
    *,
    config: Network,
    mesh: Mesh,
    times: int = 1,
) -> Program:
    """Build the Program of an update, step(state, batch, rng).

    Args:
        name: The program's name.
        step: The jitted update.
        state: An AbstractState.
        batch: A dict of ShapeDtypeStructs with shardings.
        amount: Default: the Amount of an update of the rows batch["tokens"].
        config: The model that the update trains.
        mesh: The mesh.
        times: How often a step of the run calls it.
    """
    # The key is on every device, like the update counter
    rng = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=state.step.sharding)
    if amount is None:
        trains_mtp, frozen = "mtp_weight" in batch, state.frozen is not None
        rows, length = batch["tokens"].shape
        flops_per_token = useful_flops(config, length, trains_mtp=trains_mtp, frozen=frozen)
        amount = rows_of_tokens(rows, length, flops_per_token)
    return Program(name, step, (state, batch, rng), mesh, *amount, times=times, model=config)


def rows_of_tokens(rows: int, length: int, flops_per_token: float) -> Amount:
    """Return the Amount of `rows` rows of `length` tokens."""
    tokens = rows * length
    return Amount(tokens, tokens * flops_per_token, f"{rows:,} rows x {length:,}")


def forward_work(config: Network, rows: int, length: int, logits: int | None = None) -> Amount:
    """Return the Amount of a forward pass over `rows` rows of `length` tokens.

    Args:
        config: The model.
        rows: The number of rows.
        length: The tokens of a row.
        logits: How many tokens of a row need logits. Default: all.
    """
    logit_share, num_keys = (
        1.0 if logits is None else logits / length,
        attended_keys(config, length),
    )
    flops = forward_flops(config, length / 2, attended=num_keys, logits=logit_share)
    return rows_of_tokens(rows, length, flops)


def everywhere(mesh: Mesh, shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """Return the ShapeDtypeStruct of an array that every device has whole."""
    place = NamedSharding(mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def argument_bytes(arguments: Any) -> int:
    """Return the bytes on one device of a tree of ShapeDtypeStructs with shardings.

    Values that wait in the host's memory take none.
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(arguments)
        if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding.memory_kind != "pinned_host"
    )
