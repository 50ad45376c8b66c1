"""The plan's verdict on runs before they are submitted."""

import json

import jax
import pytest

from configs import (
    distill_small,
    grpo_small,
    pretrain_small,
    r1_small,
    sft_small,
    sft_smollm2,
)
from deepseek_jax.costs.chips import GPUS
from deepseek_jax.costs.program import GENERATION, REWARD, SYNC, TRAINING
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.experiment import find_recipe
from deepseek_jax.settings import build
from launch.planning.topology import recipes_programs
from launch.sweeps.folder import Folder
from launch.sweeps.prune import able_runs, run_seconds, verdict
from launch.sweeps.runs import Run

# The plan's words for a run of `elsewhere`
UNKNOWN = "does not name the architecture of elsewhere, and the checkpoint is not there"


def elsewhere(**fields):
    """A config of which no plan can be made here, with more fields."""
    config = sft_smollm2.get_config()
    config.init_from = "elsewhere"
    return plain(config) | fields


def programs_of(config):
    """(the config's settings, its programs on one device)."""
    settings = build(find_recipe(config.recipe).SETTINGS, config, "config")
    return settings, recipes_programs(config, make_mesh(devices=jax.devices()[:1]))


def plain(config):
    return json.loads(config.to_json())


def test_the_seconds_of_a_run_are_those_of_its_steps():
    """Oracle: by hand: 600 updates of the base and 80 of fine-tuning; answers and held-out loss left out."""
    config = sft_small.get_config()
    settings, programs = programs_of(config)
    seconds = {program.name: 1000.0 for program in programs} | {"pretrain": 2.0, "update": 0.5}
    assert run_seconds(programs, seconds) == 600 * 2.0 + 80 * 0.5


def test_a_step_of_reinforcement_is_its_rollout_and_its_updates():
    """Oracle: by hand: 680 updates of the base, and 100 steps, each of which is the time of every program of
    training, generation and synchronisation.
    """
    config = grpo_small.get_config()
    settings, programs = programs_of(config)
    seconds = {program.name: 1.0 for program in programs}
    step = [p for p in programs if ": " not in p.name and p.name != "pretrain"]
    assert {program.part for program in step} == {TRAINING, GENERATION, SYNC}
    assert len(step) > 3 and run_seconds(programs, seconds) == 680 + 100 * len(step)


def test_a_step_of_reinforcement_has_its_reward_models():
    """Oracle: the same run without one, and 100 steps of its scores, by hand 5 s each; a judge's alike."""
    config = grpo_small.get_config()
    config.unlock()
    config.rewards.liked = 1.0
    # On the way nothing is measured, which reward models would score too
    config.eval_every = 0
    config.reward_models = dict(liked=dict(path="nowhere"))
    settings, programs = programs_of(config)
    (scores,) = [program for program in programs if program.part == REWARD]
    seconds = {program.name: 1.0 for program in programs} | {scores.name: 5.0}
    others = [program for program in programs if program is not scores]
    assert run_seconds(programs, seconds) == run_seconds(others, seconds) + 100 * 5.0


@pytest.mark.slow
@pytest.mark.parametrize("module", [pretrain_small, r1_small, distill_small])
def test_every_update_of_a_recipe_has_steps(module):
    """Oracle: at least one second a step of the longest update, where each program takes one."""
    config = module.get_config()
    settings, programs = programs_of(config)
    seconds = run_seconds(programs, {program.name: 1.0 for program in programs})
    assert seconds is not None and seconds >= 100


@pytest.mark.slow
def test_gpus_are_counted_at_their_peak():
    """Oracle: by hand: FLOPs needed over the peak of the GPUs, times steps; in hours of both chips."""
    config = sft_small.get_config()
    # Little to trace
    config.model.num_hidden_layers, config.base.bias_update_speed = 1, 0.0
    config.mesh = dict(data=2)
    settings = build(find_recipe("sft").SETTINGS, config, "config")
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    flops = {program.name: program.flops for program in recipes_programs(config, mesh)}
    total = settings.base.num_steps * flops["pretrain"] + settings.num_steps * flops["update"]
    run = Run("a", {}, plain(config))
    ((_, found),) = verdicts([run], "h100:2")
    assert found.reason is None
    assert found.chip_hours == pytest.approx(total / GPUS["h100"].flops_per_second / 3600)


def verdicts(runs, topology):
    from launch.sweeps import prune

    return list(prune.verdicts(runs, topology, None))


@pytest.mark.slow
def test_what_cannot_run_is_left_out_with_its_reason(tmp_path, capsys):
    """Oracle: the words a reader needs: 15 rows do not split over 2 devices, in the recipe's own message; a
    run whose checkpoint is not there is not planned, and may run.
    """
    config = sft_small.get_config()
    runs = [Run("fits", {}, plain(config))]
    config.batch_size = 15
    runs.append(Run("odd", {}, plain(config)))
    runs.append(Run("asks", {}, elsewhere()))
    folder = Folder(tmp_path, {})
    able = able_runs(folder, runs, "h100:2", None)
    out = capsys.readouterr().out
    assert [run.name for run in able] == ["fits", "asks"]
    assert "odd: cannot run on h100:2, and is left out: config.batch_size=15" in out
    assert "asks: chip-hours unknown (" in out and UNKNOWN in out
    assert "in all: about" in out and "unknown for 1 of 2 runs" in out
    with pytest.raises(ValueError, match="--topology=h100:2: none of the 1 runs can run there"):
        able_runs(folder, runs[1:2], "h100:2", None)


def test_without_a_topology_nothing_is_left_out_and_no_number_is_made_up(tmp_path, capsys):
    """Oracle: the runs as they are, and the word."""
    runs = [Run("a", {}, {})]
    assert able_runs(Folder(tmp_path, {}), runs, None, None) == runs
    assert "chip-hours are unknown without --topology" in capsys.readouterr().out


def test_an_unknown_topology_is_one_message(tmp_path):
    """Oracle: the words of a plan."""
    with pytest.raises(ValueError, match="--topology=v9:2x2 is unknown to libtpu"):
        able_runs(Folder(tmp_path, {}), [Run("a", {}, {})], "v9:2x2", None)


def small_pretraining(rows):
    """A config with one program, the update of so many rows of 256 tokens."""
    config = pretrain_small.get_config("fp8=False")
    sizes = dict(hidden_size=32, num_attention_heads=2, q_lora_rank=16, kv_lora_rank=16)
    config.model.update(sizes | dict(intermediate_size=64, moe_intermediate_size=32))
    stage = dict(config.stages["stage_1"]) | dict(batch_size=rows, num_steps=100, mtp_weight=0.0)
    stage |= dict(optimizer=dict(learning_rate=1e-3), bias_update_speed=0.0)
    config.stages = {"only": stage}
    return config


@pytest.mark.slow
def test_a_run_that_does_not_fit_a_tpu_is_left_out_and_another_has_chip_hours():
    """Oracle: the float32 logits of 65,536 rows x 256 tokens x 259 bytes are 16.2 GiB, a v5e has 15.75; 100
    steps of at most a hundredth of a second.
    """
    runs = [Run(str(rows), {}, plain(small_pretraining(rows))) for rows in (65536, 8)]
    (_, large), (_, little) = verdicts(runs, "v5e:1x1")
    assert "only: " in large.reason and large.chip_hours is None
    assert little.reason is None and 0 < little.chip_hours < 1 / 3600


@pytest.mark.slow
def test_a_plan_that_ends_its_process_says_nothing_of_the_run(monkeypatch):
    """Oracle: a process that is killed, as a compiler that aborts; the next run is planned all the same."""
    runs = [
        Run("kills", {}, elsewhere(kill=True)),
        Run("b", {}, elsewhere()),
    ]
    from launch.sweeps import prune

    monkeypatch.setattr(prune, "verdict", killing)
    (_, first), (_, second) = list(prune.verdicts(runs, "h100:2", None))
    assert first == prune.Verdict(note="its plan ended its process")
    assert UNKNOWN in second.note


def killing(config, topology, cache):
    """prune.verdict, but for a config that ends its process."""
    if config.get("kill"):
        import os

        os._exit(3)
    return verdict(config, topology, cache)
