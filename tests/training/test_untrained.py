"""What a loss does not train stays as it was, byte for byte: no decay, no momentum, in every tensor of a V3
with multi-token prediction and of a V3.2.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.tree_util import keystr
from jax.tree_util import tree_leaves_with_path as leaves_with_path

from deepseek_jax.checkpoint import save_hf
from deepseek_jax.distill.objective import Objective
from deepseek_jax.losses.next_token import parts_trained
from deepseek_jax.training.optimizer import OptimizerSettings
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import make_train_step
from tests.checkpoint.test_hf_export import stored
from tests.distill import test_objective as distilled
from tests.parallel.test_uneven import completions, preferred, texts
from tests.quick import others_slow
from tests.tiny import tiny_model


def distillation(kind):
    """From a teacher, and with the penalty that shrinks weights."""
    config, params = tiny_model(kind)
    weights = dict(soft=0.5, hard=0.3, l2=1e-2)
    objective = Objective(student=config, teacher=distilled.TEACHER[0], weights=weights)
    loss_fn = functools.partial(objective.loss, teacher_params=distilled.TEACHER[1])
    return loss_fn, params, distilled.whole_batch()


def pre_training(kind):
    """With all that a model has to learn: its modules, and its indexers too."""
    return texts(kind, 4, indexer_loss=learns_index(kind), mtp_weight=0.3)


def learns_index(kind):
    return "sparse" if kind == "sparse" else "none"


# loss -> (loss_fn, params, batch) of a kind of model
LOSSES = {
    "fine-tuning": functools.partial(texts, rows=4),
    "grpo": functools.partial(completions, rows=2, shared=True),
    "reward model": functools.partial(preferred, rows=4),
    "distillation": distillation,
    "pre-training": pre_training,
}


@functools.cache
def updated(kind, loss, optimizer):
    """(params before, params after three updates, whether each has had a gradient, the optimizer's state)."""
    loss_fn, params, batch = LOSSES[loss](kind)
    parts = ()
    if loss == "pre-training":
        config = dataclasses.replace(tiny_model(kind)[0], indexer_loss=learns_index(kind))
        parts = parts_trained(config, with_mtp=True)
    settings = OptimizerSettings(learning_rate=0.01, weight_decay=0.5, kind=optimizer)
    tx = settings.make(3, parts)
    step = jax.jit(make_train_step(loss_fn, tx))
    gradient = jax.jit(jax.grad(lambda params: loss_fn(params, batch, jax.random.key(0))[0]))
    state, found = TrainState.create(params, tx), jax.tree.map(lambda _: False, params)
    for _ in range(3):
        own = gradient(state.params)
        found = jax.tree.map(lambda before, g: before or bool(np.any(g)), found, own)
        state, _ = step(state, batch, jax.random.key(0))
    return params, state.params, found, state.opt_state


CASES = [(k, loss, o) for k in ("sparse", "mtp") for loss in LOSSES for o in ("adamw", "muon")]


@pytest.mark.parametrize(
    ("kind", "loss", "optimizer"), others_slow(CASES, ("sparse", "fine-tuning", "adamw"))
)
def test_a_parameter_moves_exactly_if_the_loss_gives_it_a_gradient(kind, loss, optimizer):
    """Oracle: JAX's gradient of every tensor in each of three updates; a decay of 0.5 would show."""
    before, after, found, opt_state = updated(kind, loss, optimizer)
    moved = jax.tree.map(lambda a, b: a.tobytes() != b.tobytes(), *jax.device_get((before, after)))
    moved, found = ({keystr(path): x for path, x in leaves_with_path(t)} for t in (moved, found))
    assert moved == found
    untrained = {name for name, has_gradient in found.items() if not has_gradient}
    assert any("router_bias" in name for name in untrained)
    learns = kind != "sparse" or loss == "pre-training"
    assert any("indexer" in name for name in untrained) != learns
    # The two rewards of a pair share this bias, which no decay moves: it is trained in other losses
    untrained -= {"['head']['bias']"}
    held = [keystr(path) for path, _ in leaves_with_path(opt_state)]
    assert not [path for path in held if path.endswith(tuple(untrained))]


@pytest.mark.parametrize("optimizer", others_slow(["adamw", "muon"], "adamw"))
@pytest.mark.parametrize("kind", others_slow(["sparse", "mtp"], "sparse"))
def test_an_export_has_the_bytes_of_what_was_not_trained(kind, optimizer, tmp_path):
    """Oracle: the export of the parameters before. Names of Hugging Face: the layers after the last are those
    of multi-token prediction; embedding and head stand there again, and are trained.
    """
    before, after, _, _ = updated(kind, "fine-tuning", optimizer)
    config, _ = tiny_model(kind)
    for name, params in dict(before=before, after=after).items():
        save_hf(tmp_path / name, config, params)
    before, after = stored(tmp_path / "before"), stored(tmp_path / "after")
    assert before.keys() == after.keys()
    same = {name for name in before if before[name] == after[name]}
    further = tuple(
        f"model.layers.{config.num_hidden_layers + i}."
        for i in range(config.num_nextn_predict_layers)
    )
    joint = "embed_tokens.weight", "shared_head.head.weight"
    wanted = {
        name
        for name in before
        if ".indexer." in name
        or name.endswith("e_score_correction_bias")
        or (name.startswith(further) and not name.endswith(joint))
    }
    assert same == wanted
