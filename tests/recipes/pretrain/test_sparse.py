"""A dense checkpoint becomes a sparse model: its indexers learn alone, then everything does."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import r1_small
from deepseek_jax.checkpoint import load_orbax, save_orbax
from deepseek_jax.models import build_model, random_params
from deepseek_jax.models.trained_part import indexers_of
from deepseek_jax.recipes.kinds.pretrain import _checks
from deepseek_jax.recipes.pretrain.settings import BaseSettings, StageSettings
from deepseek_jax.settings import build
from tests.recipes.outcome import assert_names, scores_in
from tests.recipes.pretrain.test_run import records, run, small_config, stop_after
from tests.recipes.small import one_device

INDEXER = dict(model_type="deepseek_v32", index_n_heads=2, index_head_dim=32, index_topk=12)


def dense_config():
    """Two stages of 2 updates each, the first of which any model can pass."""
    config = small_config()
    config.model.num_hidden_layers = 2
    rows = dict(batch_size=2, sequence_length=48, micro_batch_size=2, num_steps=2)
    # So large that no gradient is scaled: the indexers' would scale the others
    optimizer = dict(learning_rate=1e-3, max_grad_norm=1e9)
    rows |= dict(bias_update_speed=0.0, mtp_weight=0.3, balance_weight=0.0, optimizer=optimizer)
    rows |= dict(log_every=1, save_every=1, eval_every=1)
    config.stages = {"stage_1": dict(rows), "stage_2": dict(rows)}
    return config


def sparse_config(start, then="sparse", **fields):
    """dense_config from the checkpoint `start`, as a warm-up, and a stage whose indexer_loss is `then`.
    fields: of the warm-up.
    """
    config = dense_config()
    config.init_from, config.model = str(start), dict(config.model) | INDEXER
    config.stages.stage_1.update(dict(trains="indexer", indexer_loss="dense") | fields)
    config.stages.stage_2.indexer_loss = then
    return config


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A dense checkpoint."""
    folder = tmp_path_factory.mktemp("start") / "params"
    model = build_model(dense_config().model)
    save_orbax(folder, model, random_params(model, one_device(), 0))
    return folder


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """A run from dense to sparse: its folder, and the model and params that it left."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, *run(workdir, sparse_config(start))


@pytest.mark.slow
def test_the_indexers_learn_alone_and_then_everything_does(start, whole):
    """Oracle: the checkpoint's parameters and losses. The warm-up leaves attention over all keys, so the
    held-out loss stays to the bit; the first sparse loss is another one.
    """
    workdir, model, params = whole
    losses = {
        (stage, when): scores_in(workdir, f"{stage}_{when}")[0]
        for stage in ("stage_1", "stage_2")
        for when in ("before", "after")
    }
    assert losses["stage_1", "before"] == losses["stage_1", "after"]
    sparse = losses["stage_2", "before"]
    assert sparse != losses["stage_1", "after"] and losses["stage_2", "after"] < sparse
    found = records(workdir)
    assert found["stage_1", 1]["indexer_loss"] < found["stage_1", 0]["indexer_loss"]
    # Whole again, and free to select
    assert model.has_indexer and model.indexer_loss == "none"
    ours, theirs = map(flatten_dict, (indexers_of(params).frozen, load_orbax(start)[1]))
    moved = {path for path, leaf in ours.items() if np.any(leaf != theirs[path])}
    # Nothing moves the bias: its speed is 0
    assert {path[-1] for path in ours.keys() - moved} == {"router_bias"}


@pytest.mark.slow
def test_what_the_warm_up_freezes_stays_as_it_is(start, tmp_path):
    """Oracle: the checkpoint, bit for bit, with the router's bias; every indexer's weights are new ones."""
    config = sparse_config(start)
    del config.stages["stage_2"]
    config.stages.stage_1.num_steps = 1
    _, params = run(tmp_path, config)
    part = indexers_of(params)
    jax.tree.map(np.testing.assert_array_equal, part.frozen, load_orbax(start)[1])
    random = indexers_of(
        random_params(build_model(config.model), one_device(), config.seed)
    ).trained
    same = jax.tree.map(np.array_equal, part.trained, random)
    assert not any(jax.tree.leaves(same))
    assert any("mtp_0" in name for name in part.trained)


@pytest.mark.slow
def test_the_dense_twin_is_the_dense_model(start, tmp_path):
    """Oracle: the dense model's own second stage: the same parameters but for rounding."""
    twin, dense = sparse_config(start, "dense"), dense_config()
    dense.init_from = str(start)
    dense.stages.stage_1.optimizer = dict(learning_rate=1e-30, max_grad_norm=1e9)
    (_, ours), (_, theirs) = run(tmp_path / "twin", twin), run(tmp_path / "dense", dense)

    def near(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)

    jax.tree.map(near, indexers_of(ours).frozen, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 3])
def test_a_stopped_run_goes_on_to_the_same_end(start, whole, tmp_path, updates):
    """Oracle: the run that nothing stopped, bit for bit: stopped in the warm-up, and in the sparse stage."""
    with pytest.raises(SystemExit):
        run(tmp_path, sparse_config(start), stop_after(updates))
    _, params = run(tmp_path, sparse_config(start))
    jax.tree.map(np.testing.assert_array_equal, params, whole[2])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            dict(trains="all"),
            "has no indexers, and random ones select keys at random; set stages.stage_1",
        ),
        (dict(indexer_loss="sparse"), "random ones select keys at random; set stages.stage_1"),
        (
            dict(bias_update_speed=0.001),
            "bias_update_speed=0.001 moves what trains='indexer' freezes",
        ),
        (dict(balance_weight=0.1), "balance_weight=0.1 moves what trains='indexer' freezes"),
        (
            dict(mtp_weight=0.0),
            "leaves the indexers of the model's num_nextn_predict_layers=1 modules",
        ),
    ],
)
def test_a_warm_up_that_cannot_be_is_refused(start, tmp_path, fields, words):
    """Oracle: the words a reader needs, and an empty work directory."""
    with pytest.raises(ValueError) as error:
        run(tmp_path, sparse_config(start, **fields))
    assert_names(error, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(indexer_loss="dense"), "set indexer_loss to 'none'"),
        (dict(trains="indexer"), "trains='indexer' and indexer_loss='none' train nothing"),
    ],
)
def test_training_an_indexer_without_one_is_refused(tmp_path, fields, words):
    """Oracle: the words a reader needs: the stage's block and the field."""
    with pytest.raises(ValueError) as error:
        run(tmp_path, small_config(**fields))
    assert "config.stages.stage_1" in str(error.value) and words in str(error.value)


def test_a_base_has_no_stage_for_its_indexers():
    """Oracle: the words a reader needs: a base is trained in one stage."""
    base = dict(r1_small.get_config().base, indexer_loss="dense")
    with pytest.raises(ValueError, match="indexer_loss='dense' is of the stages"):
        build(BaseSettings, base, "config.base")


def test_an_indexer_that_no_loss_reads_yet_is_not_missed():
    """Oracle: by hand: while mtp_weight is 0 the modules, and the indexers in them, get no gradient."""
    model = build_model(dict(dense_config().model) | INDEXER | dict(indexer_loss="dense"))
    untrained = []
    for weight in (0.3, ((0, 0.0), (1, 0.3))):
        block = dict(dense_config().stages.stage_1, trains="indexer", mtp_weight=weight)
        untrained.append(_checks(model, build(StageSettings, block, "stage"), None).untrained)
    assert untrained == [(), ("mtp_",)]
