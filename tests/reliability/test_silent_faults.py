"""Faults that no loss shows: each is planted, named, and ends a run with its own exit status."""

import contextlib
import dataclasses
import functools
import importlib
import math
import re
import typing
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs.grpo_small import get_config
from deepseek_jax import settings as blocks
from deepseek_jax.checkpoint.damage import DamagedCheckpoint
from deepseek_jax.checkpoint.store import Store
from deepseek_jax.data.chat import asked_messages
from deepseek_jax.errors import BrokenTerm, NotFinite, SamplerApart, UnusableRewards
from deepseek_jax.losses import grpo as losses
from deepseek_jax.losses.advantages import group_advantages
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes import driver
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.recipes.kinds import pretrain
from deepseek_jax.reinforce import batch as batches
from deepseek_jax.reinforce import groups as groups_of
from deepseek_jax.reinforce import grpo
from deepseek_jax.reinforce.accounts import (
    NewQuestions,
    check_questions,
    check_tokens,
    left_out_tokens,
)
from deepseek_jax.reinforce.degenerate import Degenerate, DegenerateSettings, check_range
from deepseek_jax.reinforce.idle import IdleUpdates, check_reference
from deepseek_jax.rewards import Rule, scoring
from deepseek_jax.rewards.scoring import Scores
from deepseek_jax.settings import build
from deepseek_jax.training import loop
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.nonfinite import locate
from deepseek_jax.training.optimizer import OptimizerSettings
from deepseek_jax.training.run import Run
from deepseek_jax.training.schedule import Phase
from deepseek_jax.training.settings import CheckpointSettings, FaultSettings, LoopSettings
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import make_train_step
from deepseek_jax.training.watch import Checks
from launch import common
from tests.processes import run_two
from tests.quick import others_slow
from tests.recipes.small import make_run
from tests.reinforce.rollouts import rollout_of
from tests.reinforce.test_update import TOKENIZER
from tests.reinforce.test_update import train as reinforced
from tests.tiny import tiny_model
from tests.training.test_loop import Numbers

RECIPES = (
    "pretrain",
    "sft",
    "reward_model",
    "judge",
    "grpo",
    "generate",
    "evaluate",
    "r1",
    "distill",
)
EOS = 7
TX = optax.sgd(1.0)


def status_of(body):
    """The exit status of a program whose run does this."""
    with pytest.raises(SystemExit) as ended, common.one_message():
        body()
    return ended.value.code


def squares(params, batch, rng):
    return ((params["x"] - batch["values"]) ** 2).mean(), {}


def train(workdir, loss_fn=squares, params=None, source=None, tx=None, checks=None, **fields):
    """Six steps of the real loop over Numbers."""
    tx = tx or optax.adam(0.1)
    settings = dict(num_steps=6, save_every=6, log_every=1)
    settings |= dict(checkpoints=CheckpointSettings(), faults=FaultSettings())
    settings |= dict(optimizer=OptimizerSettings(learning_rate=0.1)) | fields
    step = make_train_step(loss_fn, tx)
    checks = checks or Checks(terms=loop.LOSS_TERMS, locate=functools.partial(locate, loss_fn, 1))
    run = Run(None, workdir / "checkpoints", MetricsWriter(workdir), phase="sft")
    state = TrainState.create(params or {"x": jnp.zeros(4)}, tx)
    step = jax.jit(step)
    settings = LoopSettings(**settings)
    return loop.train(settings, state, step, source or Numbers(), run, 7, checks)


def saved_in(workdir):
    with Store(workdir / "checkpoints") as store:
        return store.latest_step()


def test_each_kind_of_fault_has_its_own_exit_status():
    """Oracle: the table in launch/README.md, by hand. 2 is a user's mistake, 75 a stopped run."""
    kinds = NotFinite, SamplerApart, BrokenTerm, UnusableRewards, DamagedCheckpoint
    assert [kind.status for kind in kinds] == [3, 4, 5, 6, 7]

    def fail(kind):
        raise kind("a fault")

    assert [status_of(lambda kind=kind: fail(kind)) for kind in kinds] == [3, 4, 5, 6, 7]


# Ranges


def hints_in(cls, seen):
    """(field, hint) of every field of a settings class and of the classes within it."""
    if cls in seen:
        return
    seen.add(cls)
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        yield name, hint
        for inner in within(hint):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                yield from hints_in(inner, seen)


def within(hint):
    yield hint
    for part in typing.get_args(hint):
        yield from within(part)


def test_no_number_of_any_config_may_be_nan_or_infinite():
    """Oracle: every field of every recipe's settings, and the entries of its lists and dicts, given each of
    the three: only fields that take anything, or no number at all, are left out.
    """
    numbers, seen = 0, set()
    for recipe in RECIPES:
        name = f"deepseek_jax.recipes.{recipe}.run"
        for field, hint in hints_in(importlib.import_module(name).SETTINGS, seen):
            for part in within(hint):
                # A range's own hint is Annotated, around the plain one
                if part is not float and float not in typing.get_args(part):
                    continue
                for bad in (math.nan, math.inf, -math.inf):
                    with pytest.raises(ValueError, match=f"{field}="):
                        blocks._checked(bad, part, field)
                numbers += 1
    assert numbers > 50


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("optimizer.learning_rate", 0.0, "learning_rate=0.0 must be above 0"),
        ("rewards.correct_reasoning", 0.0, "config.rewards={.*} pays nothing; set one of the"),
        (
            "rewards.correct_reasoning",
            1e30,
            r"config.rewards.correct_reasoning=1e[+]30 must be within",
        ),
        ("reference_every", 1, "config.reference_every=1 makes the policy its own reference"),
    ],
)
def test_a_value_that_trains_nothing_is_refused(path, value, words):
    """Oracle: the field and the range, by hand, before anything compiles; exit status 2."""
    config = get_config()
    config.unlock()
    config.loss.kl_coef = 0.1
    for name in config.rewards:
        config.rewards[name] = 0.0 if path.startswith("rewards") else config.rewards[name]
    with config.ignore_type():
        config.update_from_flattened_dict({path: value})
    with pytest.raises(ValueError, match=words):
        build(GrpoSettings, config, "config")
    assert status_of(lambda: build(GrpoSettings, config, "config")) == 2


def test_phases_without_a_rate_are_refused():
    """Oracle: the field, by hand."""
    optimizer = importlib.import_module("deepseek_jax.training.optimizer").OptimizerSettings
    phases = [dict(kind="constant", steps=5, to=0.0)]
    with pytest.raises(ValueError, match=r"config.optimizer.phases\[0\].to=0, and so all others"):
        build(optimizer, dict(phases=phases), "config.optimizer")


def test_parameters_that_an_update_breaks_are_never_saved(tmp_path):
    """Oracle: a rate that is infinite from update 3 on: the checkpoint after update 2 is the last."""
    rate = optax.join_schedules([lambda _: 0.1, lambda _: jnp.inf], [3])
    words = "sft: after step 3 the parameters of x are not finite"
    with pytest.raises(NotFinite, match=words) as fault:
        train(tmp_path, tx=optax.adam(rate), save_every=1)
    assert fault.value.status == 3 and saved_in(tmp_path) == 3


# Gradients that are not finite


def test_skipped_updates_in_a_row_are_counted_across_resumes(tmp_path, capsys):
    """Oracle: by hand: steps 1 and 2 are skipped and saved, step 3 is the third in a row."""
    stops = iter([False, False, True])
    settings = dict(num_steps=6, save_every=1, log_every=1)
    settings |= dict(checkpoints=CheckpointSettings(), faults=FaultSettings())
    settings |= dict(optimizer=OptimizerSettings(learning_rate=0.1))
    tx = optax.adam(0.1)
    step = make_train_step(squares, tx)

    def resumed(should_stop):
        run = Run(None, tmp_path / "checkpoints", MetricsWriter(tmp_path), should_stop, "sft")
        state = TrainState.create({"x": jnp.zeros(4)}, tx)
        source, checks = (
            Numbers(poisoned=(1, 2, 3)),
            Checks(locate=functools.partial(locate, squares, 1)),
        )
        loop.train(LoopSettings(**settings), state, jax.jit(step), source, run, 7, checks)

    with pytest.raises(SystemExit):
        resumed(lambda: next(stops))
    said = capsys.readouterr().out
    assert (
        "sft: updates skipped, because gradients were not finite: 1. At step 1: micro-batch" in said
    )
    assert status_of(lambda: resumed(lambda: False)) == 3
    told = capsys.readouterr().err
    assert "not finite in 3 updates in a row" in told and "At step 3: micro-batch 0 of 1" in told
    assert saved_in(tmp_path) == 3


def layered(function):
    """A loss of residual layers, whose weights are those of a stack: h + function(w h)."""

    def loss_fn(params, batch, rng):
        h = batch["x"] * params["embedding"]
        for w in params["dense_layers"]["w"]:
            h = h + function(w * h)
        return h.sum() / 16, {}

    return loss_fn


def located(loss_fn, weights, x):
    """nonfinite.locate for two micro-batches of eight rows on eight devices, after a step that skips."""
    mesh, tx = make_mesh(data=8), optax.sgd(0.1)
    params = {"embedding": jnp.ones(()), "dense_layers": {"w": jnp.array(weights)}}
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    x = jax.device_put(jnp.asarray(x), NamedSharding(mesh, PartitionSpec("data")))
    step = make_train_step(loss_fn, tx, micro_batches=2)
    with jax.set_mesh(mesh):
        state, metrics = jax.jit(step)(TrainState.create(params, tx), {"x": x}, jax.random.key(0))
        assert metrics["nonfinite"] == 1
        return locate(loss_fn, 2, state, {"x": x}, jax.random.key(0)), mesh.devices.ravel()


def test_a_loss_that_overflows_is_located(tmp_path):
    """Oracle: by hand: exp overflows in layer 1 alone, in row 3 of the second micro-batch, on one device."""
    x = np.ones(16, np.float32)
    x[8 + 3] = 1000
    words, devices = located(layered(jnp.exp), [0.0, 1.0, 1e-9], x)
    assert words == (
        f"micro-batch 1 of 2, row 3 on {devices[3]}: the loss is inf, first in layer 1 of dense_layers; "
        "lower the learning rate, or look at the data of this step"
    )


TWO_PROCESSES = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

process, port = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
from deepseek_jax.parallel import make_mesh
from deepseek_jax.training.nonfinite import locate
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import make_train_step
from tests.reliability.test_silent_faults import layered

mesh, tx = make_mesh(data=8), optax.sgd(0.1)

def put(array, *axes):
    array = np.asarray(array, np.float32)
    places = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(array.shape, places, lambda index: array[index])

x = np.ones(16)
x[8 + 3] = 1000
batch = {"x": put(x, "data")}
params = {"embedding": put(1.0), "dense_layers": {"w": put([0.0, 1.0, 1e-9])}}
step = make_train_step(layered(jnp.exp), tx, micro_batches=2)
with jax.set_mesh(mesh):
    state, _ = jax.jit(step)(TrainState.create(params, tx), batch, jax.random.key(0))
    print(locate(layered(jnp.exp), 2, state, batch, jax.random.key(0)), flush=True)
"""


@pytest.mark.slow
def test_two_processes_locate_the_same():
    """Oracle: the words for one process, by hand: the row is on the fourth device of process 0."""
    flags = "--xla_force_host_platform_device_count=4"
    statuses, outputs = run_two(TWO_PROCESSES, xla_flags=flags)
    assert statuses == [0, 0], outputs
    words = (
        "micro-batch 1 of 2, row 3 on cpu:3: the loss is inf, first in layer 1 of dense_layers; "
    )
    words += "lower the learning rate, or look at the data of this step"
    assert all(words in output for output in outputs), outputs


def test_a_gradient_that_overflows_is_located():
    """Oracle: by hand: the slope of a root at 0 is infinite in layer 1, from which it spreads to the layers
    before.
    """
    words, _ = located(layered(jnp.sqrt), [1.0, 0.0, 1.0], np.ones(16, np.float32))
    assert words.startswith("micro-batch 0 of 2, row 0 on ")
    assert words.endswith(
        "the gradients of layer 1 of dense_layers are not, the first in the backward pass; "
        "lower the learning rate, or look at the data of this step"
    )


def test_parameters_that_are_not_finite_are_named():
    """Oracle: by hand: the weights of layer 2."""
    words, _ = located(layered(jnp.exp), [1.0, 0.0, np.nan], np.ones(16, np.float32))
    assert words == "the parameters of layer 2 of dense_layers are not finite"


def test_a_batch_that_is_not_finite_is_named():
    """Oracle: by hand: NaN in row 2 of the second micro-batch; without it all is finite."""
    x = np.ones(16, np.float32)
    x[8 + 2] = np.nan
    words, devices = located(layered(jnp.tanh), [1.0, 0.0], x)
    assert words == (
        f"micro-batch 1 of 2, row 2 on {devices[2]}: values that are not finite in x of the batch: "
        "look at what made them"
    )


@pytest.mark.slow
def test_a_layer_of_a_model_that_overflows_is_located():
    """Oracle: the layer whose weights were scaled up, in a model with experts; every parameter is finite."""
    config, params = tiny_model("mla_moe")
    huge = jax.tree.map(lambda w: w * 1e30, params["moe_layers"])
    step = make_train_step(pretraining_loss(config), optax.sgd(0.1))
    state = TrainState.create(params | {"moe_layers": huge}, optax.sgd(0.1))
    state, metrics = jax.jit(step)(state, rows(), jax.random.key(0))
    assert metrics["nonfinite"] == 1
    words = locate(pretraining_loss(config), 1, state, rows(), jax.random.key(0))
    assert "first in layer 0 of moe_layers; lower" in words, words


# Terms that do nothing


def pretraining_loss(config):
    return lambda params, batch, rng: pretrain.next_token_loss(config, params, batch)


def rows():
    """A batch of pre-training: two rows of twelve tokens."""
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 50)
    ones = jnp.ones((2, 12), jnp.int32)
    return dict(
        tokens=tokens,
        targets=jnp.roll(tokens, -1, 1),
        segment_ids=ones,
        positions=jnp.tile(jnp.arange(12), (2, 1)),
        loss_mask=ones.astype(bool),
        normalizer=jnp.float32(24),
        num_tokens=jnp.float32(24),
    )


@pytest.mark.slow
def test_a_balance_loss_without_a_gradient_is_named(monkeypatch):
    """Oracle: the real loss passes; with its gradient stopped, the field and the number, by hand."""
    config, params = tiny_model("mla_moe")
    stage = SimpleNamespace(balance_weight=0.01, micro_batch_size=1)
    pretrain.check_balance(config, stage, params, rows())
    loss = pretrain.next_token_loss

    def stopped(*arguments):
        value, metrics = loss(*arguments)
        return value, metrics | {"balance_loss": jax.lax.stop_gradient(metrics["balance_loss"])}

    monkeypatch.setattr(pretrain, "next_token_loss", stopped)
    words = "^balance_weight=0.01, and the term's gradient norm is 0: "
    with pytest.raises(BrokenTerm, match=words):
        pretrain.check_balance(config, stage, params, rows())


@pytest.mark.parametrize("num_steps, lines", [(6, 3), (2, 2)])
def test_a_term_that_stays_zero_is_named(tmp_path, num_steps, lines):
    """Oracle: three lines, or all of a run that has fewer; a term that has worked once may become 0."""
    stage, model = (
        SimpleNamespace(mtp_weight=0.3, balance_weight=0),
        SimpleNamespace(indexer_loss="none"),
    )
    (name, meaning), *_ = (
        pretrain._checks(model, stage, None).terms.items() - loop.LOSS_TERMS.items()
    )

    def loss_fn(params, batch, rng):
        return squares(params, batch, rng)[0], {name: 0.0 * params["x"].sum()}

    words = (
        f"sft: mtp_loss is exactly 0 in each of the {lines} lines .*: mtp_weight=0.3 trains nothing"
    )
    checks = Checks(terms={name: meaning})
    with pytest.raises(BrokenTerm, match=words):
        train(tmp_path, loss_fn, checks=checks, num_steps=num_steps)

    def once(params, batch, rng):
        return squares(params, batch, rng)[0], {name: (params["x"] == 0).mean()}

    train(tmp_path / "once", once, checks=checks)


def test_a_loss_mask_of_zeros_ends_the_run(tmp_path, capsys):
    """Oracle: by hand: no token in steps 1 and 2 is survived and said; in steps 3 to 5 it ends the run."""

    class Masked(Numbers):
        def next(self, state, step):
            found, metrics = super().next(state, step)
            return found, metrics | {"tokens": 0.0 if step != 0 and step != 3 else 4.0}

    words = "sft: the loss mask is all zeros in 3 steps in a row up to step 6: no token is learned; look"
    with pytest.raises(BrokenTerm, match=words):
        train(tmp_path, source=Masked(), num_steps=9, save_every=1)
    said = capsys.readouterr().out
    assert "all zeros in 2 steps in a row up to step 2" in said and saved_in(tmp_path) == 6


def adapters(read):
    """(loss_fn, params) of two adapters whose b is 0, of which the loss reads these."""
    pair = {"lora_a": jnp.ones(4), "lora_b": jnp.zeros(4)}

    def loss_fn(params, batch, rng):
        products = [
            params["layers"][name]["lora_a"] * params["layers"][name]["lora_b"] for name in read
        ]
        return ((sum(products) - batch["values"]) ** 2).mean(), {}

    return loss_fn, {"layers": {"q_proj": dict(pair), "v_proj": dict(pair)}}


def test_an_adapter_without_a_gradient_is_named(tmp_path):
    """Oracle: by hand: the one that the loss does not read; where it reads both, the run is complete."""
    train(tmp_path / "both", *adapters(["q_proj", "v_proj"]))
    words = "sft: layers.v_proj had no gradient up to step 2, while"
    with pytest.raises(BrokenTerm, match=words) as fault:
        train(tmp_path, *adapters(["q_proj"]))
    assert fault.value.status == 5


def test_a_prediction_module_without_a_gradient_is_named(tmp_path):
    """Oracle: by hand: the module that the loss does not read; where it reads both, the run is complete."""
    stage, model = (
        SimpleNamespace(mtp_weight=0.3, balance_weight=0),
        SimpleNamespace(indexer_loss="none"),
    )
    checks = pretrain._checks(model, stage, None)
    params = {name: {"w": jnp.zeros(4)} for name in ("mtp_1", "mtp_2")}

    def reading(*names):
        def loss_fn(params, batch, rng):
            ours = sum(params[name]["w"] for name in names)
            loss = ((ours - batch["values"]) ** 2).mean()
            return loss, {"mtp_loss": loss}

        return loss_fn

    train(tmp_path / "both", reading("mtp_1", "mtp_2"), params, checks=checks)
    with pytest.raises(BrokenTerm, match="sft: mtp_2.w had no gradient up to step 2, while"):
        train(tmp_path, reading("mtp_1"), params, checks=checks)


def test_no_gradient_at_all_is_named(tmp_path):
    """Oracle: by hand: a loss that reads no parameter."""

    def constant(params, batch, rng):
        return (batch["values"] ** 2).mean() + 0 * params["x"].sum(), {}

    with pytest.raises(
        BrokenTerm, match="grad_norm is exactly 0 in each of the 3 lines up to step 2"
    ):
        train(tmp_path, constant)


def experts(silent):
    """(loss_fn, params) of a stack of two layers of three experts, of which the last gets no token. silent:
    the part of the stack that gets no gradient, a function of the weights.
    """
    weights = jnp.linspace(0.1, 0.6, 6).reshape(2, 3)
    params = {"moe_layers": {"experts": {"up": weights, "down": weights[::-1]}}, "x": jnp.zeros(4)}

    def loss_fn(params, batch, rng):
        of = params["moe_layers"]["experts"]
        ours = (of["up"] * silent(of["down"]))[:, :2].sum() + params["x"]
        return ((ours - batch["values"]) ** 2).mean(), {}

    return loss_fn, params


@pytest.mark.parametrize(
    "silent, name",
    [
        (lambda w: w, None),
        (jax.lax.stop_gradient, "moe_layers.experts.down"),
        (
            lambda w: jnp.stack([w[0], jax.lax.stop_gradient(w[1])]),
            "layer 1 of moe_layers.experts.down",
        ),
    ],
    ids=["none", "stack", "layer"],
)
def test_a_stack_of_experts_without_a_gradient_is_named(tmp_path, silent, name):
    """Oracle: by hand: the stack, or its layer, that the loss holds still; an expert without a token is no
    fault.
    """
    named = pytest.raises(BrokenTerm, match=f"sft: {name} had no gradient up to step 2, while")
    with named if name else contextlib.nullcontext():
        train(tmp_path, *experts(silent))


def test_a_parameter_may_begin_to_learn_within_the_first_lines(tmp_path):
    """Oracle: by hand: w2 has a gradient once w1 has left 0, at the second update."""

    def loss_fn(params, batch, rng):
        return ((params["w1"] * params["w2"] - batch["values"]) ** 2).mean(), {}

    train(tmp_path, loss_fn, {"w1": jnp.zeros(4), "w2": jnp.ones(4)})


def test_weights_that_no_update_moves_are_said_and_end_the_run(tmp_path, capsys):
    """Oracle: by hand: 1 - 1e-30 is 1 in float32, whatever router_bias does: said at step 0, ended after
    three updates.
    """
    moved = optax.partition(
        {"weights": optax.adam(1e-30), "biases": optax.sgd(0.1)},
        lambda params: {name: "biases" if "bias" in name else "weights" for name in params},
    )

    def loss_fn(params, batch, rng):
        return ((params["x"] + params["router_bias"] - batch["values"]) ** 2).mean(), {}

    params = {"x": jnp.ones(4), "router_bias": jnp.ones(4)}
    words = "updates up to step 2 had a gradient and moved no bit of any weight: raise optimizer"
    with pytest.raises(BrokenTerm, match=f"sft: 3 {words}.learning_rate"):
        train(tmp_path, loss_fn, params, tx=moved)
    assert "sft: 1 updates up to step 0 had a gradient and moved no bit" in capsys.readouterr().out


def test_weights_may_stand_still_until_the_warm_up_is_over(tmp_path, capsys):
    """Oracle: by hand: rates of 0 in a warm-up of four updates: only said, from step 1 on; with the same
    rates of 0 and a warm-up of one it ends at step 3.
    """

    def run(folder, steps):
        rate = optax.join_schedules([lambda _: 0.0, lambda _: 0.1], [4])
        phases = Phase("linear", steps, 0.1), Phase("constant", 6 - steps)
        settings = OptimizerSettings(phases=phases)
        train(folder, params={"x": jnp.ones(4)}, tx=optax.adam(rate), optimizer=settings)

    run(tmp_path / "long", 4)
    said = [line for line in capsys.readouterr().out.splitlines() if "moved no bit" in line]
    assert [line.split()[1:6] for line in said][0] == ["2", "updates", "up", "to", "step"]
    with pytest.raises(BrokenTerm, match="sft: 4 updates up to step 3 had a gradient"):
        run(tmp_path / "short", 1)


GRPO = SimpleNamespace(loss=SimpleNamespace(kl_coef=0.04), faults=FaultSettings(), minibatches=2)
MARKS = np.float32([0.25, 0.5, 0.125])
LINE = dict(learned_tokens=20.0, tokens=40.0, marked_advantages=MARKS[1] / 2)


def idle(advantages=(0.0, 1.0), **fields):
    """IdleUpdates of a source with these advantages in its rows."""
    record = SimpleNamespace(advantages=np.float32(advantages), marks=MARKS[: len(advantages)])
    return IdleUpdates(GRPO, SimpleNamespace(has_moved=False, record=record, **fields))


def test_a_kl_of_zero_is_named_once_the_policy_has_moved():
    """Oracle: by hand: a KL of 0 is right until the sampling policy is another than the reference."""
    checked = idle()
    line = LINE | dict(kl=0.0, grad_norm=1.0, all_equal_share=0.0)
    for step in range(5):
        checked.look(step, line)
    checked.source.has_moved = True
    checked.look(5, line)
    checked.look(6, line | {"kl": 1e-9})
    checked.look(7, line)
    checked.look(8, line)
    with pytest.raises(
        BrokenTerm, match="kl is exactly 0 in 3 lines in a row up to step 9, though .*=0.04"
    ):
        checked.look(9, line)


def test_rewards_that_differ_and_move_nothing_are_named():
    """Oracle: by hand; where all rewards are equal, a gradient of 0 is right."""
    checked = idle()
    for step in range(9):
        checked.look(step, LINE | dict(grad_norm=0.0, all_equal_share=1.0))
    checked.look(9, LINE | dict(grad_norm=0.0, all_equal_share=0.5))
    checked.look(10, LINE | dict(grad_norm=0.0, all_equal_share=0.5))
    with pytest.raises(
        BrokenTerm, match="grad_norm is exactly 0 in 3 lines in a row up to step 11, though"
    ):
        checked.look(11, LINE | dict(grad_norm=0.0, all_equal_share=0.5))


def test_a_loss_without_some_tokens_of_the_step_is_named():
    """Oracle: by hand: two updates of 19 tokens each learn 38 of 40."""
    line = LINE | dict(grad_norm=1.0, all_equal_share=0.0)
    with pytest.raises(BrokenTerm, match="step 3: .* have 38 tokens of completions in place of 40"):
        idle().look(3, line | {"learned_tokens": 19.0})


def test_advantages_in_the_rows_of_others_are_named():
    """Oracle: by hand: the sum over three rows in two updates, then that of the same values, of which the
    last two have changed places.
    """
    line = LINE | dict(grad_norm=1.0, all_equal_share=0.0)
    checked, own = idle([-1, 3, -2]), np.float32([-1, 3, -2])
    checked.look(3, line | {"marked_advantages": MARKS @ own / 2 * (1 + 1e-5)})
    with pytest.raises(
        BrokenTerm, match="step 3: the sum of advantages, .* rows of other completions"
    ):
        checked.look(3, line | {"marked_advantages": MARKS @ own[[0, 2, 1]] / 2})


def test_a_reference_unlike_the_policy_is_named_at_the_first_update():
    """Oracle: by hand: half a nat, and rounding; tests/training/test_loop.py holds when it is looked at."""
    check_reference(GRPO, 1e-4, {"kl": jnp.float32(1e-9)})
    with pytest.raises(
        BrokenTerm, match="loss.kl_coef=0.04: at the first update the KL .* is 5.0e-01"
    ):
        check_reference(GRPO, 1e-4, {"kl": jnp.float32(0.5)})


def test_each_micro_batch_gives_its_part_of_the_gradient():
    """Oracle: by hand: the gradient of x times 1, 2, 4 and 8 is 15; of two micro-batches of two rows, one
    alone would give 3 or 12.
    """
    step = make_train_step(
        lambda p, batch, rng: ((p["x"] * batch["rows"]).sum(), {}), TX, micro_batches=2
    )
    state = TrainState.create({"x": jnp.zeros(())}, TX)
    state, _ = jax.jit(step)(state, {"rows": jnp.float32([1, 2, 4, 8])}, jax.random.key(0))
    assert state.params["x"] == -15


# Rewards


def group(rewards, ids=((3, EOS),) * 4, truncated=(False,) * 4, **parts):
    """A group of groups.make_groups, of four completions."""
    return dict(
        prompt_ids=[1, 2],
        rewards=np.array(rewards, np.float32),
        parts={name: np.array(part, np.float32) for name, part in parts.items()},
        rollout=rollout_of(ids, truncated=truncated),
    )


def test_advantages_of_zero_for_rewards_that_differ_are_named():
    """Oracle: by hand: the second group's; groups of equal rewards have advantages of 0."""
    groups = [group([1, 1, 1, 1]), group([0, 1, 0, 1])]
    batches.check_advantages(groups, np.float32([0, 0, 0, 0, -1, 1, -1, 1]))
    words = r"the rewards \[0.0, 1.0, 0.0, 1.0\] of a group differ, and all their advantages are 0"
    with pytest.raises(BrokenTerm, match=words):
        batches.check_advantages(groups, np.zeros(8, np.float32))


@pytest.mark.parametrize(
    "planted",
    [
        lambda a: -a,
        lambda a: a.reshape(2, 4)[::-1].ravel(),
        lambda a: np.roll(a, 1),
        lambda a: a + np.float32([0, 0, 0, 0.5] * 2),
    ],
    ids=["negated", "another group's", "shifted by one", "a completion without a score"],
)
def test_advantages_in_another_order_than_the_rewards_are_named(planted):
    """Oracle: by hand: losses.group_advantages' own pass, also where one completion has no score."""
    groups = [group([0, 1, 2, math.nan]), group([2, 0, 1, math.nan])]
    rewards = np.concatenate([each["rewards"] for each in groups])
    advantages = np.asarray(group_advantages(jnp.array(rewards), group_size=4))
    batches.check_advantages(groups, advantages)
    with pytest.raises(BrokenTerm, match="of a group and its advantages .* not in the same order"):
        batches.check_advantages(groups, planted(advantages))


@pytest.mark.parametrize(
    "reward, allowed", [(1e30, False), (-2e6, False), (1e6, True), (math.nan, True)]
)
def test_rewards_whose_advantages_would_overflow_are_refused(reward, allowed):
    """Oracle: by hand: 1e30 squared is infinite in float32. NaN is one that could not be scored."""
    values = np.array([0.0, reward], np.float32)
    scores = Scores(total=values, rewards_by_name={"length": values})
    if allowed:
        check_range(scores)
        return
    with pytest.raises(
        UnusableRewards, match="length: a reward is .*, above 1e[+]06: float32 would lose"
    ):
        check_range(scores)


def test_every_sampled_token_is_learned_or_counted_as_left_out():
    """Oracle: by hand: a group of four completions of two tokens is not trained on, and one completion of the
    other has no score: 8 + 2 tokens are left out of 16.
    """
    used, unused = group([0, 1, math.nan, 1]), group([1, 1, 1, 1])
    left_out = left_out_tokens([used], [used, unused])
    assert left_out == 10
    check_tokens(5, 16, left_out, 6)
    with pytest.raises(BrokenTerm, match="step 5: 16 tokens .* learn 3 in place of 6: a mask is"):
        check_tokens(5, 16, left_out, 3)


def test_questions_that_are_asked_again_in_their_epoch_are_not_new():
    """Oracle: by hand: three questions, two of them alike, asked in two epochs; a resumed run knows none."""
    questions, asked = [dict(q=1), dict(q=1), dict(q=2)], NewQuestions({"reasoning": 3})

    def new(*numbers):
        return [asked.add("reasoning", n, questions[n % 3]) for n in numbers]

    assert new(0, 1, 2) == [True] * 3 and new(3, 4) == [True, True] and new(3, 4) == [False, False]
    assert NewQuestions({"reasoning": 3}).add("reasoning", 5, questions[2])
    check_questions(1, 2, 1)
    check_questions(1, 0, 0)
    with pytest.raises(BrokenTerm, match="step 1: all 2 questions were asked before in this epoch"):
        check_questions(1, 2, 0)


# recipe -> what its stages learn, or sample to be learned. stages: by name. read(source): what it reads
LEARNED = {
    "grpo": lambda stages, read: read(stages["grpo"].questions)["reasoning"],
    "sft": lambda stages, read: read(stages["sft"].texts),
    "generate": lambda stages, read: stages["questions"].questions.both[0],
}


@pytest.mark.parametrize("recipe", LEARNED)
def test_questions_that_accuracy_is_measured_on_are_not_learned(tmp_path, capsys, recipe):
    """Oracle: by hand: a task whose four held-out questions are among its twelve to train on."""
    file = tmp_path / "tasks.py"
    file.write_text(
        "def make(seed, number):\n"
        "    asked = [dict(question=f'{n}?', answer='1', solution='1') for n in range(12)]\n"
        "    return asked, asked[:number]\n"
    )
    module = importlib.import_module(f"deepseek_jax.recipes.{recipe}.run")
    config = importlib.import_module(f"configs.{recipe}_small").get_config()
    config.unlock()
    config.data.update(path=None, task=f"{file}:make", num_held_out=4)
    if recipe == "generate":
        config.data.num_prompts = None
    settings = build(module.SETTINGS, config, "config")
    running = driver._Running(module, settings, make_run(tmp_path))
    context = running.context(running.stages[-1])
    stages = {stage.name: stage for stage in running.stages}
    learned = LEARNED[recipe](stages, lambda source: source.read(context))
    assert [asked_messages(learned[i])[0]["content"] for i in range(len(learned))] == [
        f"{n}?" for n in range(4, 12)
    ]
    assert "4 of 12 training questions are held out, too" in capsys.readouterr().out


VARIES = [0, 1, 0, 1]
FINE = group(VARIES, length=VARIES)
CUT = group(VARIES, truncated=(True,) * 4, length=VARIES)
EMPTY = group(VARIES, ids=((EOS, 0),) * 4, length=VARIES)
ODD = group(VARIES, ids=((3, EOS), (3, 5), (3, EOS), (3, 4)), length=VARIES)
CONSTANT = group(VARIES, length=[2, 2, 2, 2])


@pytest.mark.parametrize(
    "field, bad, words",
    [
        (
            "equal_rewards",
            group([1, 1, 1, 1], length=VARIES),
            "all rewards of each group were equal",
        ),
        ("truncated", CUT, "every completion was cut off at max_completion_length"),
        ("empty", EMPTY, "every completion was empty"),
    ],
)
def test_steps_without_anything_to_learn_are_said_and_then_end_the_run(capsys, field, bad, words):
    """Oracle: by hand: said after 8 and 16 steps in a row, ended at the limit of 20; a step that is fine
    begins the count anew.
    """
    none = dict.fromkeys([f.name for f in dataclasses.fields(DegenerateSettings)])
    watched = Degenerate(DegenerateSettings(**none | {field: 20}), [EOS])
    for step in range(7):
        watched.look(step, [bad, bad])
    watched.look(7, [FINE, FINE])
    assert not capsys.readouterr().out
    for step in range(19):
        watched.look(step, [bad, bad])
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["step 7", "step 15"] and words in said[0]
    with pytest.raises(
        UnusableRewards, match=f"for 20 steps in a row .*{words}.*; degenerate.{field}=20"
    ):
        watched.look(19, [bad, bad])
    never = Degenerate(DegenerateSettings(**none), [EOS])
    for step in range(300):
        never.look(step, [bad, bad])


def test_a_constant_reward_is_said_and_odd_ends_end_the_run(capsys):
    """Oracle: by hand: both for 8 steps in a row; the constant reward for 300, too."""
    watched = Degenerate(DegenerateSettings(), [EOS])
    for step in range(300):
        watched.look(step, [CONSTANT, CONSTANT])
    words = "step 7: for 8 steps in a row a reward was the same for all completions: length was 2"
    assert words in capsys.readouterr().out
    for step in range(7):
        watched.look(step, [ODD, ODD])
    words = (
        "for 8 steps in a row .* at other tokens than those that end an answer: 4, 5; the limit=8"
    )
    with pytest.raises(UnusableRewards, match=words):
        watched.look(7, [ODD, ODD])


@pytest.fixture
def by_length(monkeypatch):
    """A reward that varies from the first step on."""
    rule = Rule(lambda text, _: len(text) / 10)
    monkeypatch.setitem(scoring.RULES, "correct_reasoning", rule)


@pytest.mark.slow
def test_a_run_whose_kl_is_zero_is_ended(tmp_path, monkeypatch, by_length):
    """Oracle: a KL of exactly 0 planted in the loss; at step 0 the policy has not moved."""
    monkeypatch.setattr(losses, "k3_kl", lambda logprobs, reference: jnp.zeros_like(logprobs))
    with pytest.raises(
        BrokenTerm, match="kl is exactly 0 in 3 lines in a row up to step 3, though"
    ):
        reinforced(tmp_path, num_steps=6)


@pytest.mark.slow
def test_a_run_with_another_models_reference_is_ended_at_its_first_update(
    tmp_path, monkeypatch, by_length
):
    """Oracle: a reference whose weights are 1.5 times the policy's; nothing is saved."""
    stored = grpo.as_reference

    def other(settings, params):
        return jax.tree.map(lambda x: x * 1.5, stored(settings, params))

    monkeypatch.setattr(grpo, "as_reference", other)
    with pytest.raises(BrokenTerm, match="at the first update the KL to the reference is"):
        reinforced(tmp_path, num_steps=2)
    assert not any(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())


def planted(monkeypatch, module, name, change):
    """Let change(function's result, its arguments) take the place of a function's result."""
    of = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: change(of(*args, **kwargs), args))


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, name, change, words",
    [
        (groups_of, "group_advantages", lambda a, _: -a, "step|not in the same order"),
        (groups_of.GroupSource, "_numbers", lambda n, _: range(2), "step 1: all 2 questions"),
        (batches, "completion_batch", lambda b, _: without_ends(b), "step 0: .* a mask is wrong"),
        (
            groups_of,
            "make_groups",
            lambda g, _: [without_end(each) for each in g],
            "a mask is wrong",
        ),
        (losses, "_masked", lambda x, _: x, None),
    ],
    ids=["negated", "same questions", "no ends in the batch", "no ends in groups", "nothing"],
)
def test_a_run_with_a_fault_planted_in_its_batches_is_ended(
    tmp_path, monkeypatch, by_length, module, name, change, words
):
    """Oracle: by hand: the fault that is planted; exit status 5, nothing saved. Without one the run ends."""
    planted(monkeypatch, module, name, change)
    if words is None:
        reinforced(tmp_path, num_steps=2)
        return
    with pytest.raises(BrokenTerm, match=words) as fault:
        reinforced(tmp_path, num_steps=3)
    assert fault.value.status == 5


@pytest.mark.parametrize("micro_batches", others_slow([1, 2], 1))
def test_a_run_whose_advantages_lie_on_other_devices_is_ended(
    tmp_path, monkeypatch, by_length, micro_batches
):
    """Oracle: by hand: after all checks of the batch, each of four devices gets the advantages of the next;
    exit status 5.
    """
    put = batches.put_share

    def shifted(mesh, part):
        moved = np.roll(part["advantages"], len(part["advantages"]) // mesh.size)
        return put(mesh, part | {"advantages": moved})

    monkeypatch.setattr(batches, "put_share", shifted)
    mesh = make_mesh(data=4, devices=jax.devices()[:4])
    fields = dict(prompts_per_step=8, num_steps=1, micro_batches=micro_batches)
    # Little to compile
    fields |= dict(model=dict(num_hidden_layers=1), loss=dict(kl_coef=0.0))
    with pytest.raises(
        BrokenTerm, match="step 0: the sum of advantages.* rows of other completions"
    ):
        reinforced(tmp_path, mesh=mesh, **fields)


def without_ends(batch):
    """A batch whose mask leaves out the last token of each completion."""
    mask = batch["completion_mask"]
    return batch | {"completion_mask": mask & np.roll(mask, -1, axis=1)}


def without_end(of):
    """A group whose mask leaves out the last token of each completion."""
    mask = of["rollout"].completion_mask
    mask &= np.roll(mask, -1, axis=1)
    return of


@pytest.mark.slow
@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_a_run_whose_rate_moves_no_weight_is_ended(tmp_path, by_length, kl_coef):
    """Oracle: by hand: a rate of 1e-30 in float32; exit status 5."""
    fields = dict(optimizer=dict(learning_rate=1e-30), loss=dict(kl_coef=kl_coef), num_steps=5)
    with pytest.raises(BrokenTerm, match="rl: 3 updates up to step 2 had a gradient and moved no"):
        reinforced(tmp_path, **fields)
    assert saved_in(tmp_path) == 2


@pytest.mark.slow
def test_a_run_whose_reference_is_not_finite_names_it(tmp_path, monkeypatch, capsys, by_length):
    """Oracle: by hand: a reference of NaN; exit status 3, and the word for what it gives to the batch."""
    stored = grpo.as_reference

    def broken(settings, params):
        return jax.tree.map(lambda x: x * math.nan, stored(settings, params))

    monkeypatch.setattr(grpo, "as_reference", broken)
    assert status_of(lambda: reinforced(tmp_path, num_steps=5)) == 3
    told = capsys.readouterr().err
    assert "values that are not finite in ref_logprobs of the batch" in told
    assert "learning rate" not in told


@pytest.mark.slow
def test_a_run_whose_log_probabilities_are_not_finite_names_the_micro_batch(
    tmp_path, monkeypatch, capsys, by_length
):
    """Oracle: by hand: NaN in the row of the second micro-batch alone; exit status 3."""
    scored = losses.completion_logprobs

    def broken(config, params, batch, **how):
        logprobs, *others = scored(config, params, batch, **how)
        # advantages of micro-batch 1 alone hold the row's number
        return logprobs + jnp.where(batch["prompt_ids"][0, 0] == 1, jnp.nan, 0), *others

    monkeypatch.setattr(losses, "completion_logprobs", broken)
    made = batches.step_batch

    def marked(*arguments):
        batch = made(*arguments)
        batch["prompt_ids"][:, 0] = [0, 1]
        return batch

    monkeypatch.setattr(batches, "step_batch", marked)
    assert status_of(lambda: reinforced(tmp_path, num_steps=5, micro_batches=2)) == 3
    assert "micro-batch 1 of 2" in capsys.readouterr().err


@pytest.mark.slow
def test_rewards_stay_with_their_completions(tmp_path, monkeypatch, by_length):
    """Oracle: the reward of each completion that an update gets, from its own tokens, decoded here. Rewards
    that were shifted within their group would show nowhere else.
    """
    found = []
    planted(
        monkeypatch,
        groups_of,
        "update_batches",
        lambda made, args: found.append((made, args)) or made,
    )
    reinforced(tmp_path, num_steps=2)
    rows = 0
    for (parts, _), (groups, *_) in found:
        advantages = np.concatenate([np.asarray(part["advantages"]) for part in parts])
        ids = np.concatenate([np.asarray(part["completion_ids"]) for part in parts])
        mask = np.concatenate([np.asarray(part["completion_mask"]) for part in parts])
        texts = [TOKENIZER.decode(row[kept]) for row, kept in zip(ids, mask, strict=True)]
        paid = np.float32([len(text) / 10 for text in texts])
        np.testing.assert_array_equal(
            np.concatenate([g["parts"]["correct_reasoning"] for g in groups]), paid
        )
        for own, rewards in zip(
            np.split(advantages, len(groups)), np.split(paid, len(groups)), strict=True
        ):
            np.testing.assert_array_equal(np.sign(own), np.sign(rewards - rewards.mean()))
            rows += len(set(rewards)) > 1
    assert rows


@pytest.mark.slow
def test_a_run_of_equal_rewards_is_ended_at_its_limit(tmp_path, monkeypatch, capsys):
    """Oracle: by hand: graders that pay 1 for anything, and a limit of three steps; exit status 6."""
    for name in ("correct", "correct_reasoning"):
        monkeypatch.setitem(scoring.RULES, name, Rule(lambda text, _: 1.0))
    block = dict(degenerate=dict(equal_rewards=3))
    assert status_of(lambda: reinforced(tmp_path, num_steps=5, **block)) == 6
    assert (
        "step 2: for 3 steps in a row all rewards of each group were equal"
        in capsys.readouterr().err
    )


def _scores_nothing(text, example):
    raise ValueError("no verdict")


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule, words", [(lambda *_: 1e30, "above 1e[+]06"), (_scores_nothing, "could be scored")]
)
def test_a_run_of_unusable_rewards_ends_with_six(tmp_path, monkeypatch, capsys, rule, words):
    """Oracle: by hand: exit status 6, nothing saved."""
    monkeypatch.setitem(scoring.RULES, "correct_reasoning", Rule(rule))
    assert status_of(lambda: reinforced(tmp_path, num_steps=2)) == 6
    assert re.search(words, capsys.readouterr().err)
    assert saved_in(tmp_path) is None
