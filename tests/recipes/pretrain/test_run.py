"""Pre-training in stages, shrunk until a test can run it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs.pretrain_small import get_config
from deepseek_jax.checkpoint import load_orbax, save_orbax
from deepseek_jax.checkpoint.hf_config import read_config
from deepseek_jax.data.packing import Rows, pack
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import RopeScaling, build_model, random_params
from deepseek_jax.recipes import driver
from deepseek_jax.recipes.kinds import pretrain as kind
from deepseek_jax.recipes.pretrain import run as pretrain
from deepseek_jax.recipes.pretrain.documents import open_corpus
from deepseek_jax.recipes.pretrain.settings import PretrainSettings
from deepseek_jax.recipes.workdir import claim_workdir
from deepseek_jax.settings import build
from deepseek_jax.worlds.registry import named_tokenizer
from tests.quick import others_slow
from tests.recipes.outcome import assert_names, scores_in, unlisted, without_group
from tests.recipes.pages import parts_of
from tests.recipes.small import one_device, run_recipe


def small_config(**fields):
    """Two stages of 4 and 2 updates; fields: others of the first stage."""
    config = get_config()
    sizes = dict(hidden_size=32, num_attention_heads=2, q_lora_rank=16, kv_lora_rank=16)
    sizes |= dict(intermediate_size=64, moe_intermediate_size=32, fp8=False)
    config.model.update(sizes)
    config.data.update(
        dict(sources=("arithmetic",), weights=(1.0,), num_documents=300, eval_batches=2)
    )
    optimizer = dict(phases=[dict(kind="constant", steps=4, to=1e-3)], moment_dtype="bfloat16")
    first = dict(batch_size=((0, 2), (2, 4)), sequence_length=64, num_steps=4, optimizer=optimizer)
    first |= dict(
        bias_update_speed=((0, 0.01), (3, 0.0)), mtp_weight=((0, 0.3), (2, 0.1)), micro_batch_size=2
    )
    config.stages["stage_1"].update(first)
    config.stages["stage_2_long"].update(dict(batch_size=2, sequence_length=96, num_steps=2))
    for stage in config.stages.values():
        stage.update(dict(log_every=1, save_every=1, eval_every=2))
    config.stages["stage_1"].update(fields)
    return config


def run(workdir, config, should_stop=lambda: False):
    mesh = one_device()
    with jax.set_mesh(mesh):
        run_recipe(pretrain, config, workdir, should_stop, mesh)
    *_, last = sorted(config.stages)
    return load_orbax(workdir / last / "params")


def stop_after(updates):
    """A should_stop that is True from its updates-th call on."""
    asked = iter(range(1000))
    return lambda: next(asked) >= updates - 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(workdir, small_config())


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {(r["phase"], r["step"]): r for r in map(json.loads, lines)}


@pytest.mark.slow
def test_every_metric_has_a_group_on_the_boards(whole):
    """Oracle: the names of the lines that a run leaves, against the table of groups."""
    assert without_group(whole[0]) == set()


@pytest.mark.slow
def test_the_guide_lists_every_file_of_the_run(whole):
    """Oracle: the files that the run left."""
    assert unlisted(whole[0]) == []


@pytest.mark.slow
@pytest.mark.parametrize("updates", others_slow([3, 5], 5))
def test_a_stopped_run_goes_on_to_the_same_end(whole, tmp_path, updates):
    """Oracle: the run that was never stopped, bit for bit: parameters, biases and losses; stopped within the
    larger batches, and within the second stage; evaluated twice as often, for that moves nothing.
    """
    config = small_config()
    for stage in config.stages.values():
        stage.eval_every = 1
    with pytest.raises(SystemExit):
        run(tmp_path, config, stop_after(updates))
    _, params = run(tmp_path, config)
    jax.tree.map(np.testing.assert_array_equal, params, whole[1][1])
    ours, theirs = records(tmp_path), records(whole[0])
    assert ours.keys() == theirs.keys()
    assert all(ours[key]["loss"] == theirs[key]["loss"] for key in theirs)


@pytest.mark.slow
def test_a_run_leaves_a_page(whole):
    """Oracle: the files of the run: each stage's held-out loss before and after, in order; its curves."""
    workdir, parts = whole[0], parts_of(whole[0])
    assert list(parts) == ["results", "curves", "lineage"]
    assert "3 of 3 stages are complete" in parts["lineage"]
    for name, said in (("stage_1", "stage 1"), ("stage_2_long", "stage 2 long")):
        old, new = (scores_in(workdir, f"{name}_{when}") for when in ("before", "after"))
        headline = f"held out loss {old[0]:.3f} → {new[0]:.3f} {said} before {old[1]:.3f} to"
        assert headline in parts["results"]
    curves = parts["curves"]
    assert curves.index("stage_1") < curves.index("stage_2_long")


@pytest.mark.slow
def test_a_stage_is_told_its_own_numbers(whole):
    """Oracle: by hand: rows 2, 2, 4, 4 of 64 tokens, then 2 of 96; the loss is the next token's, 0.3 or 0.1
    of multi-token prediction's and 1e-4 of the three layers' balance.
    """
    found = records(whole[0])
    assert sorted(found) == [("stage_1", i) for i in range(4)] + [
        ("stage_2_long", i) for i in (0, 1)
    ]
    for (phase, step), record in found.items():
        rows, length = ((2, 64), (4, 64))[step >= 2] if phase == "stage_1" else (2, 96)
        assert 0.7 * rows * length < record["tokens"] < rows * length
        weight = 0.3 if phase == "stage_1" and step < 2 else 0.1
        parts = (
            record["next_token_loss"] + weight * record["mtp_loss"] + 3e-4 * record["balance_loss"]
        )
        np.testing.assert_allclose(record["loss"], parts, rtol=1e-5)
        assert {
            "max_vio/moe_0",
            "max_vio/moe_1",
            "max_vio/mtp_0",
            "load_entropy/mtp_0",
        } <= record.keys()
        assert ("held_out_loss" in record) == (step % 2 == 0)


@pytest.mark.slow
def test_the_last_stage_reads_longer_rows_through_yarn(whole):
    """Oracle: the config's own numbers, in the model that was left behind."""
    _, (config, params) = whole
    assert config.rope_scaling.rope_type == "yarn" and config.rope_scaling.factor == 4
    assert params["mtp_0"]["block"]["ffn"]["router_bias"].any()


@pytest.mark.slow
def test_a_long_context_is_trained_under_its_own_scaling(tmp_path):
    """Oracle: the loss of the parameters that it starts from, on its first batch, by a forward pass of the
    model with YaRN's frequencies; the same without gives another. Large parameters, for attention to see
    positions.
    """
    config, mesh = small_config(), one_device()
    plain = build_model(dict(config.model, initializer_range=0.3))
    params = random_params(plain, mesh, 0)
    save_orbax(tmp_path / "start", plain, params)
    config.init_from, config.model = str(tmp_path / "start"), {}
    del config.stages["stage_1"]
    config.stages["stage_2_long"].update(dict(num_steps=1, mtp_weight=0.0))
    run(tmp_path, config)
    found = records(tmp_path)[("stage_2_long", 0)]["next_token_loss"]

    settings = build(PretrainSettings, config, "config")
    train, _ = open_corpus(settings.data, tmp_path / "data", settings.seed)
    rows = Rows(sequence_length=96, batch_size=2)
    how = dict(seed=settings.seed, fim_rate=0.1)
    batch = next(iter(pack(train, named_tokenizer("bytes"), rows, **how)))
    yarn = RopeScaling(**config.stages["stage_2_long"].rope_scaling)
    scaled = dataclasses.replace(plain, rope_scaling=yarn)
    loss = jax.jit(next_token_loss, static_argnums=0)
    losses = [float(loss(model, params, batch)[0]) for model in (scaled, plain)]
    np.testing.assert_allclose(found, losses[0], rtol=1e-5)  # float32, compiled apart
    assert abs(losses[1] - found) > 1e-3


@pytest.mark.slow
def test_what_was_trained_is_left_behind_though_drafting_fails(tmp_path, monkeypatch):
    """Oracle: the folder of the parameters after a failure; the run goes on from there, and drafts within the
    model's 48 positions, which have no room for 32 tokens of a prompt and 64 more.
    """
    config = small_config(sequence_length=48)
    config.model.max_position_embeddings = 48
    del config.stages["stage_2_long"]

    def fail(*arguments, **options):
        raise RuntimeError("no memory for caches")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no memory"):
        patch.setattr(pretrain, "generate", fail)
        run(tmp_path, config)
    assert load_orbax(tmp_path / "stage_1/params")[0].max_position_embeddings == 48
    assert not (tmp_path / "drafts/scores.json").exists()
    run(tmp_path, config)
    assert scores_in(tmp_path, "drafts")["tokens_per_step"] >= 1


@pytest.mark.slow
def test_a_run_starts_from_what_another_left(whole, tmp_path):
    """Oracle: the loss on the first batch, which the parameters left behind foresee better."""
    config = small_config()
    config.init_from = str(whole[0] / "stage_2_long")
    config.model = dict(num_nextn_predict_layers=1)
    run(tmp_path, config)
    ours, theirs = (records(w)[("stage_1", 0)]["next_token_loss"] for w in (tmp_path, whole[0]))
    assert ours < theirs - 0.1


ROOMS = ((0, 2.0), (3, 1.25))


def test_a_plan_has_the_update_of_each_expert_buffer():
    """Oracle: by hand: two rooms in the first stage, its last one first, at its largest batch; a stage
    without rooms of its own has the model's.
    """
    config = small_config(expert_buffer=ROOMS)
    config.model.expert_buffer = 1.5
    planned = driver.plan(pretrain, build(PretrainSettings, config, "config"), one_device())
    found = [(p.name, p.model.expert_buffer, len(p.arguments[1]["tokens"])) for p in planned]
    assert found == [
        ("stage_1", 1.25, 4),
        ("stage_1, before update 3", 2.0, 4),
        ("stage_2_long", 1.5, 2),
    ]


@pytest.mark.slow
def test_a_run_has_the_expert_buffer_of_each_update(whole, tmp_path, monkeypatch):
    """Oracle: the run without rooms, bit for bit, as one device exchanges nothing; the rooms of the updates
    that are traced, by hand: in rows of 2, of 4, of 4 from update 3 on; after a resumption there the last
    alone.
    """
    traced = []

    def loss(model, *arguments, **named):
        traced.append(model.expert_buffer)
        return next_token_loss(model, *arguments, **named)

    monkeypatch.setattr(kind, "next_token_loss", loss)
    config = small_config(expert_buffer=ROOMS)
    with pytest.raises(SystemExit):
        run(tmp_path / "stopped", config, stop_after(3))
    before = len(traced)
    assert set(traced) == {2.0}
    _, params = run(tmp_path / "stopped", config)
    assert traced[before] == 1.25 and 2.0 not in traced[before:]
    traced.clear()
    _, again = run(tmp_path / "whole", config)
    assert list(dict.fromkeys(traced)) == [2.0, 1.25, None]
    for ours in (params, again):
        jax.tree.map(np.testing.assert_array_equal, ours, whole[1][1])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            dict(expert_buffer=((0, 2.0), (2, 0.9))),
            "config.stages.stage_1.expert_buffer[1][1]=0.9 must be at least 1",
        ),
        (
            dict(sequence_length=2000),
            "config.stages.stage_1.sequence_length=2000 is beyond the model's max_position",
        ),
        (
            dict(micro_batch_size=3),
            "stage_1.micro_batch_size=3 does not divide batch_size=((0, 2), (2, 4))",
        ),
        (
            dict(eval_every=3, log_every=2),
            "stage_1.eval_every=3 falls on steps that are not logged",
        ),
        (dict(num_steps=5), "config.stages.stage_1.optimizer.phases=[4] take 4 updates in all"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(tmp_path, fields, words):
    """Oracle: the words a reader needs, and an empty work directory."""
    with pytest.raises(ValueError) as error:
        run(tmp_path, small_config(**fields))
    assert_names(error, words)
    assert not list(tmp_path.iterdir())


def test_a_long_context_without_a_start_is_refused_before_anything_is_written(tmp_path):
    """Oracle: the words a reader needs, and an empty work directory."""
    config = small_config()
    del config.stages["stage_1"]
    with pytest.raises(ValueError, match="config.init_from=None, and stages.stage_2_long.rope"):
        run(tmp_path, config)
    assert not list(tmp_path.iterdir())


def test_a_stages_own_scaling_is_named_by_its_block(tmp_path):
    """Oracle: the block and the words a reader needs, and an empty work directory."""
    config = small_config()
    config.stages["stage_2_long"].rope_scaling = dict(rope_type="yarn", factor=2.0)
    words = "^config.stages.stage_2_long.rope_scaling.rope_type='yarn' needs original_max_position"
    with pytest.raises(ValueError, match=words):
        run(tmp_path, config)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder of random parameters of small_config's model."""
    folder = tmp_path_factory.mktemp("start") / "params"
    model = build_model(small_config().model)
    save_orbax(folder, model, random_params(model, one_device(), 0))
    return folder


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (dict(rope_scaling=dict(rope_type="yarn", fctor=2.0)), "config.model.rope_scaling.fctor"),
        (dict(hidden_size=64), "has parameters of another size than model"),
        (dict(num_nextn_predict_layers=2), "parameter mtp_1/block/attention"),
    ],
)
def test_a_mistake_beside_a_checkpoint_is_named_and_leaves_nothing(
    checkpoint, tmp_path, block, words
):
    """Oracle: the words a reader needs, and an empty work directory."""
    config = small_config()
    config.init_from, config.model = str(checkpoint), block
    with pytest.raises(ValueError) as error, claim_workdir(tmp_path, config):
        run(tmp_path, config)
    assert_names(error, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_checkpoints_model_is_overridden_field_by_field(checkpoint):
    """Oracle: the block and the checkpoint's own numbers; a nested block becomes a dataclass, for which a
    program can be compiled, and not for a dict.
    """
    config = small_config()
    yarn = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=256)
    config.init_from, config.model = str(checkpoint), dict(dtype="bfloat16", rope_scaling=yarn)
    settings = build(pretrain.SETTINGS, config, "config")
    wanted = build_model(dict(small_config().model, dtype="bfloat16", rope_scaling=yarn))
    given = settings.overridden(read_config(checkpoint))
    assert given == wanted and hash(given) == hash(wanted)
    update, _ = driver.plan(pretrain, settings, one_device())
    assert update.name == "stage_1" and update.function.trace(*update.arguments)
