"""What is measured is left between two of its parts once the run is asked to stop."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.distill.source import TaskWatch
from deepseek_jax.evaluation import ConversationLoss, held_out_loss
from deepseek_jax.models import init_params
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout import generate
from deepseek_jax.rollout.completions import MeasuredLog
from deepseek_jax.training.run import leave_if_asked, stoppable
from tests.evaluation.test_held_out import CONFIG, SAMPLING


@pytest.fixture(scope="module")
def weights():
    return nn.unbox(jax.jit(lambda rng: init_params(CONFIG, rng))(jax.random.key(0)))


def left(measure, after: int):
    """How often the run was asked until it left, with a request that comes after so many questions."""
    asked = []
    with pytest.raises(SystemExit) as end, stoppable(lambda: asked.append(0) or len(asked) > after):
        measure()
    assert end.value.code == 75
    return len(asked)


def test_a_held_out_loss_is_left_between_batches():
    """Oracle: by hand: the batches that were read, of five."""
    read = []

    def loss_fn(params, batch):
        read.append(batch)
        return jnp.float32(batch)

    assert left(lambda: held_out_loss(loss_fn, {}, range(5)), after=2) == 3 and read == [0, 1]
    assert held_out_loss(loss_fn, {}, range(5))[0] == 2.0


def test_a_loss_of_conversations_is_left_between_batches(weights):
    """Oracle: by hand: two batches of three."""
    rows = dict.fromkeys(("tokens", "targets", "positions"), np.ones((2, 4), np.int32))
    batch = rows | {"segment_ids": rows["tokens"], "loss_mask": np.ones((2, 4), bool)}
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        loss_of = ConversationLoss(CONFIG, [batch] * 3, mesh)
        assert left(lambda: loss_of(weights), after=2) == 3


def test_answers_are_left_when_one_has_ended(weights):
    """Oracle: by hand: with one slot each answer is a part. A rollout that is not measured is not left."""
    how = SAMPLING | dict(slots=1, n=4)
    assert left(lambda: generate(CONFIG, weights, [[1, 2]], log=MeasuredLog(), **how), after=1) == 2
    with stoppable(lambda: True):
        assert len(generate(CONFIG, weights, [[1, 2]], **how).completion_ids) == 4


def test_a_task_watch_that_is_left_has_noted_nothing():
    """Oracle: its state before: the next start measures again."""

    class Losses:
        def by_conversation(self, params, batches):
            leave_if_asked("the measurement")
            return jnp.ones(3)

    watch = TaskWatch(Losses(), {"a": [], "b": []}, "student")
    before = watch.get_state()
    assert left(lambda: watch({}), after=1) == 2 and watch.get_state() == before
