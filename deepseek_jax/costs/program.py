"""A program of a recipe, by the shapes and shardings of its arguments: enough to compile it, anywhere."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.costs.flops import attended_keys, forward_flops, useful_flops
from deepseek_jax.models import ModelConfig

# A step of reinforcement and its parts, in seconds. The names are those of MLPerf's training benchmarks, with
# whose logs such steps are compared: an exception to the rule that the name of a time ends in _seconds
STEP = "train_step_time"
TRAINING = "policy_training_time"
GENERATION = "exposed_generation_time"
SYNC = "weight_sync_time"
# The seconds of reward models and judges: not one of MLPerf's names, but the metric of a run
REWARD = "reward_seconds"
# Learned tokens of a step / its seconds / devices, of whatever kind
TOKEN_RATE = "valid_tokens_per_sec_per_gpu"


class Held(NamedTuple):
    """What lies on the devices while a program runs, and is not among its arguments.

    tree: of ShapeDtypeStructs with shardings. fields: of the config, in words, that make it smaller.
    """

    name: str
    tree: Any
    fields: str = ""

    @property
    def bytes(self):
        """Of one device."""
        return argument_bytes(self.tree)


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and the ShapeDtypeStructs that it is called with; nothing of it is an array.

    arguments: static ones included. needs: the names of earlier programs; where there are any, arguments is a
    function of their results. part: TRAINING, GENERATION, SYNC or REWARD. times: how often a step of the run
    calls it, at most. token_steps: the turns that the decoding loop makes in all these calls, at most; 0 of a
    program without one. tokens, flops: what one call, or one turn of that loop, does and what the model needs
    for it, over all devices. sizes: for a reader. model: of an update, what it trains. beside:
    what else the devices hold meanwhile. waiting: the names of earlier programs whose results they hold too.
    settings: of its stage. path, model_path: where these, and the model, stand in the config. by_shapes: True
    where a plan needs only the size of its results, which lie beside others, and compiles nothing.
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
    model: ModelConfig | None = None
    beside: tuple[Held, ...] = ()
    waiting: tuple[str, ...] = ()
    settings: Any = None
    path: str = ""
    model_path: str = "model"
    by_shapes: bool = False

    @property
    def beside_bytes(self):
        """Bytes of one device that lie beside the program."""
        return sum(held.bytes for held in self.beside)

    @property
    def runs(self):
        """How often a step of the run does what tokens and flops are of."""
        return self.token_steps or self.times

    @property
    def filled(self):
        """The share of its experts' buffers that a balanced load fills."""
        buffer = None if self.model is None else self.model.expert_buffer
        return 1.0 if buffer is None else 1 / buffer

    @property
    def after(self):
        """The names of all earlier programs without whose results it cannot be planned."""
        return self.needs + self.waiting

    def arguments_after(self, results: dict):
        """The arguments, given {name: results} of the programs before. Raises KeyError for missing ones."""
        if not self.needs:
            return self.arguments
        return self.arguments(*(results[name] for name in self.needs))


def beside(programs: Iterable[Program], *held: Held):
    """The programs, while these lie on the devices too: [Program]."""
    return [dataclasses.replace(p, beside=(*p.beside, *held)) for p in programs]


def moments_of(state):
    """The Held of a TrainState that waits while another program reads its parameters."""
    fields = "optimizer.moment_memory='host', or optimizer.moment_dtype='bfloat16'"
    return Held("the optimizer's moments", state.opt_state, fields)


def policy_params(params):
    """The Held of a policy's parameters while another model works."""
    return Held("the policy's parameters", params)


class Amount(NamedTuple):
    """What one call of a Program works through: its fields of these names."""

    tokens: int
    flops: float
    sizes: str


def update_program(
    name: str,
    step: Callable,
    state,
    batch: dict,
    amount: Amount | None = None,
    *,
    config: ModelConfig,
    mesh: Mesh,
    times: int = 1,
):
    """The Program of step(state, batch, rng). state, batch: ShapeDtypeStructs with shardings. amount: by
    default that of an update of the rows batch["tokens"].
    """
    # Where the update counter is: on every device
    rng = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=state.step.sharding)
    if amount is None:
        trains_mtp, frozen = "mtp_weight" in batch, state.frozen is not None
        rows, length = batch["tokens"].shape
        each = useful_flops(config, length, trains_mtp=trains_mtp, frozen=frozen)
        amount = rows_of_tokens(rows, length, each)
    return Program(name, step, (state, batch, rng), mesh, *amount, times=times, model=config)


def rows_of_tokens(rows: int, length: int, flops_per_token: float):
    """The Amount of `rows` rows of `length` tokens."""
    tokens = rows * length
    return Amount(tokens, tokens * flops_per_token, f"{rows:,} rows x {length:,}")


def forward_work(config: ModelConfig, rows: int, length: int, logits: int | None = None):
    """The Amount of a forward pass over `rows` rows of `length` tokens. logits: how many tokens of a row need
    theirs; by default all.
    """
    share, attended = 1.0 if logits is None else logits / length, attended_keys(config, length)
    flops = forward_flops(config, length / 2, attended=attended, logits=share)
    return rows_of_tokens(rows, length, flops)


def everywhere(mesh: Mesh, shape: tuple, dtype):
    """The ShapeDtypeStruct of an array that every device has whole."""
    place = NamedSharding(mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def argument_bytes(arguments):
    """The bytes that one device holds of a tree of ShapeDtypeStructs with shardings. What waits in the host's
    memory has none.
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(arguments)
        if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding.memory_kind != "pinned_host"
    )
