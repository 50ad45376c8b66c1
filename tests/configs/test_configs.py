"""Every experiment and every named size is one that the code can run."""

import contextlib
import inspect
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import models, r1, v3_post_training
from deepseek_jax.models import build_model
from deepseek_jax.named_code import code_file
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.mesh import MeshSettings
from deepseek_jax.recipes import driver
from deepseek_jax.recipes.conversing import open_environments, rewards_of
from deepseek_jax.recipes.distill.settings import DistillSettings
from deepseek_jax.recipes.experiment import find_recipe
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.recipes.pretrain import run as pretrain
from deepseek_jax.recipes.pretrain.settings import PretrainSettings
from deepseek_jax.recipes.sft.settings import SftSettings
from deepseek_jax.reinforce.scenarios import scenario_rewards
from deepseek_jax.settings import build
from deepseek_jax.training.schedule import join_phases, number_at
from deepseek_jax.worlds.registry import open_rewards, question_names
from tests.experiments import CONFIGS, EXPERIMENTS, RUNS, SETTINGS, load

ONE_DEVICE = make_mesh(data=1, devices=jax.devices()[:1])
SIZES = sorted(name for name, _ in inspect.getmembers(models, inspect.isfunction) if name[0] != "_")


@pytest.mark.parametrize("path, arg", RUNS, ids=lambda given: getattr(given, "stem", given))
def test_an_experiments_numbers_are_its_recipes_settings(path, arg):
    """Oracle: the recipe's dataclass, which knows every field, its type and what goes together."""
    config = load(path, arg)
    settings = build(SETTINGS[config.recipe], config, "config")
    assert settings.seed == config.seed
    build(MeshSettings, settings.mesh, "config.mesh")
    if config.recipe == "grpo":
        with contextlib.ExitStack() as opened:
            models = dict.fromkeys(settings.reward_models)
            models |= rewards_of(open_environments(settings, opened))
            opened.enter_context(scenario_rewards(settings, models))
    if config.recipe in ("generate", "sft") and settings.rewards:
        open_rewards(settings.rewards, models=dict.fromkeys(settings.reward_models)).close()
    if config.recipe in ("generate", "grpo", "sft"):
        task = settings.data.task
        assert settings.data.path is not None or task in question_names() or code_file(task)
    if config.recipe == "pretrain":
        driver.check(pretrain.stages(settings), ONE_DEVICE)
    if config.recipe == "r1":
        for name, stage in settings.reinforced().items():
            with scenario_rewards(stage, dict.fromkeys(settings.models_for(name))):
                pass


@pytest.mark.parametrize("path, arg", RUNS, ids=lambda given: getattr(given, "stem", given))
def test_an_experiments_stages_are_listed_without_its_data(path, arg):
    """Oracle: by hand: paths of data are not there; a name is a stage's own, and what a stage begins from or
    reads comes before it.
    """
    config = load(path, arg)
    recipe = find_recipe(config.recipe)
    stages = recipe.stages(build(recipe.SETTINGS, config, "config"))
    before = set()
    for stage in stages:
        assert stage.name not in before and before >= {*filter(None, [stage.start]), *stage.reads}
        assert not stage.leaves_policy or bool(stage.start) != (stage.origin is not None)
        before.add(stage.name)
    assert stages


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_says_what_it_is_and_how_to_run_it(path):
    """Oracle: the command with its own path in the docstring, as a reader would paste it."""
    text = path.read_text()
    entry = "generate" if 'recipe="generate"' in text else "train"
    assert f"python launch/{entry}.py --config=configs/{path.name}" in text.split('"""')[1]


@pytest.mark.parametrize("size", SIZES)
def test_a_named_size_is_a_model(size):
    """Oracle: ModelConfig's own checks, and its numbers read back."""
    block = getattr(models, size)()
    config = build_model(block)
    assert all(
        getattr(config, name) == value for name, value in block.items() if name != "rope_scaling"
    )


def test_the_small_runs_seed_is_its_argument():
    """Oracle: by hand."""
    path = CONFIGS / "grpo_small.py"
    assert load(path).seed == 0 and load(path, "seed=3").seed == 3


def test_r1s_last_stage_is_its_argument():
    """Oracle: by hand: the blocks of each form; as many samples of either; the words a reader needs."""
    path = CONFIGS / "r1_small.py"
    blocks = {"reasoning_teacher", "general_teacher", "distilled"}
    first, second, both = (load(path, f"last={last}") for last in ("scenarios", "distill", "both"))
    assert load(path).to_json() == first.to_json() and not blocks & set(first)
    assert set(both) - set(first) == blocks and set(both) - set(second) == {"scenarios"}
    stage = second.distilled
    taught = stage.num_steps * stage.group_size * sum(stage.prompts_per_step.values())
    specialists = [second[name] for name in ("reasoning_teacher", "general_teacher")]
    sampled = [
        s.num_steps * s.group_size * s.prompts_per_step for s in (*specialists, first.scenarios)
    ]
    assert taught + sum(sampled[:2]) == sampled[2]
    with pytest.raises(ValueError, match="last='mixed' must be one of scenarios, distill, both"):
        load(path, "last=mixed")


@pytest.mark.parametrize("last", ["scenarios", "distill", "both"])
def test_quick_r1_has_every_block_and_fewer_steps(last):
    """Oracle: the long form of the same argument, block by block."""
    path = CONFIGS / "r1_small.py"
    long, quick = load(path, f"last={last}"), load(path, f"last={last},quick")
    assert list(quick) == list(long)
    steps = {name: block.num_steps for name, block in long.items() if "num_steps" in str(block)}
    fewer = {name for name, num in steps.items() if quick[name].num_steps < num}
    assert fewer >= {"base", "zero", "reasoning", "sft", "judge"} and steps.keys() >= fewer


def test_gsm8k_asks_for_longer_answers_and_pays_for_true_working():
    """Oracle: by hand."""
    path = CONFIGS / "grpo_smollm2.py"
    plain, gsm8k = load(path), load(path, "gsm8k")
    assert plain.rollout.max_completion_length < gsm8k.rollout.max_completion_length
    assert set(gsm8k.rewards) - set(plain.rewards) == {"true_equations"}


def test_v3s_run_is_the_published_one():
    """Oracle: arXiv:2412.19437, section 4.2, in tokens: warm-up of 2000 updates, the peak until 10T, a cosine
    to 14.3T, 333B at 2.2e-5 and 167B at 7.3e-6; the bias still from 14.3T on; 14.8T tokens in all, within one
    batch; and the 4K model knows nothing of YaRN.
    """
    path = CONFIGS / "pretrain_v3.py"
    config = load(path)
    settings = build(PretrainSettings, config, "config")
    driver.check(pretrain.stages(settings), ONE_DEVICE)
    stages = settings.in_order()
    ((_, first),) = stages
    sizes = [number_at(first.batch_sizes(), update) for update in range(first.num_steps)]
    tokens = 4096 * np.cumsum([0, *sizes])
    assert sizes[0] == 3072 and sizes[-1] == 15360
    assert 14.8e12 <= tokens[-1] < 14.8e12 + 4096 * 15360
    rate = join_phases(first.optimizer.phases, num_steps=first.num_steps)
    for position, wanted in (
        (0, 0.0),
        (2000, 2.2e-4),
        (np.searchsorted(tokens, 9.99e12), 2.2e-4),
        (np.searchsorted(tokens, 12.15e12), 1.21e-4),
        (np.searchsorted(tokens, 14.31e12), 2.2e-5),
        (np.searchsorted(tokens, 14.64e12), 7.3e-6),
    ):
        np.testing.assert_allclose(rate(position), wanted, rtol=1e-3)
    assert np.searchsorted(tokens, 14.3e12) == first.bias_update_speed[1][0]
    assert np.searchsorted(tokens, 10e12) == first.mtp_weight[1][0]
    assert build_model(config.model).rope_scaling is None
    for context, length, rows in (("32k", 32 * 1024, 1920), ("128k", 128 * 1024, 480)):
        longer = load(path, f"context={context}")
        chips = [longer.mesh.get(axis, 1) for axis in ("data", "fsdp", "expert", "context")]
        (stage,) = longer.stages.values()
        assert (stage.sequence_length, stage.batch_size, stage.num_steps) == (length, rows, 1000)
        assert stage.rope_scaling.factor == 40 and math.prod(chips) == 1024
        assert stage.micro_batch_size % math.prod(chips[:3]) == length % chips[3] == 0


def test_v3s_held_out_documents_are_enough_for_its_hosts():
    """Oracle: by hand: 1024 chips, 4 to a host: up to 256 hosts read documents of their own."""
    settings = build(PretrainSettings, load(CONFIGS / "pretrain_v3.py"), "config")
    assert settings.data.num_held_out >= math.prod(settings.mesh.values()) / 4 == 256


def test_r1_zeros_run_is_the_published_one():
    """Oracle: arXiv:2501.12948, section 2.1 and appendix A.3: 10,400 updates on 512 completions, 16 of a
    question; rollouts of 8,192 completions in 16 parts; the reference replaced every 400 updates; up to
    32,768 tokens until about update 8,200 and 65,536 from there on.
    """
    settings = build(GrpoSettings, load(CONFIGS / "r1_zero.py"), "config")
    sampled = settings.prompts_per_step * settings.group_size
    assert sampled == 8192 and sampled / settings.minibatches == 512 and settings.group_size == 16
    assert settings.num_steps * settings.minibatches * settings.epochs == 10_400
    assert settings.reference_every * settings.minibatches * settings.epochs == 400
    assert settings.optimizer.learning_rate == 3e-6 and settings.loss.kl_coef == 0.001
    lengths = settings.rollout.max_completion_length
    assert [(16 * step, length) for step, length in lengths] == [(0, 32_768), (8192, 65_536)]
    assert settings.rollout.temperature == 1.0
    assert set(settings.rewards.values()) == {1.0}
    parts = settings.mesh["data"] * settings.mesh["expert"]
    assert settings.prompts_per_step % (settings.minibatches * parts) == 0


def test_v32s_grpo_has_all_that_the_paper_adds():
    """Oracle: arXiv:2512.02556, section 3.1: no division by the standard deviation, an unbiased KL, masks of
    completions that the policy has left, the sampler's experts and candidates, a weaker KL for mathematics.
    """
    for name in ("v32_grpo", "v32_grpo_small"):
        settings = build(GrpoSettings, load(CONFIGS / f"{name}.py"), "config")
        loss = settings.loss
        assert not loss.normalizes_std() and loss.unbiased_kl and loss.off_policy_limit > 0
        assert settings.keep_routing and settings.rollout.truncates() and loss.kl_coef > 0
        assert 0 < settings.kl_weights["reasoning"] < 1


@pytest.mark.parametrize(
    "name, start, rate",
    [
        ("qwen_1_5b", "Qwen2.5-Math-1.5B", 1e-4),
        ("qwen_7b", "Qwen2.5-Math-7B", 8e-5),
        ("qwen_14b", "Qwen2.5-14B", 7e-5),
        ("qwen_32b", "Qwen2.5-32B", 6e-5),
        ("llama_8b", "Llama-3.1-8B", 5e-5),
        ("llama_70b", "Llama-3.3-70B-Instruct", 2e-5),
    ],
)
def test_a_distilled_students_run_is_the_published_one(name, start, rate):
    """Oracle: arXiv:2501.12948, appendices B.3.3 and B.4.3: 804,745 texts, 2 to 3 epochs, batches of 64, rows
    of 32,768 tokens, a cosine from the table's rate to a tenth of it, and of the teacher its text alone.
    """
    config = load(CONFIGS / f"distill_{name}.py")
    settings = build(DistillSettings, config, "config")
    (student,) = settings.students.values()
    assert settings.starts["start"].init_from.endswith(f"/{start}") and settings.teacher is None
    assert 2 <= student.num_steps * student.batch_size / 804_745 <= 3
    assert (student.batch_size, student.sequence_length) == (64, 32768)
    assert student.loss.weights == {"hard": 1.0}
    optimizer = student.optimizer
    assert (optimizer.schedule, optimizer.final_fraction) == ("cosine", 0.1)
    assert optimizer.learning_rate == rate and not settings.packing


def test_r1s_stages_are_the_published_ones():
    """Oracle: arXiv:2501.12948, by hand: sections 3.1 and 3.2, appendix B.4.2, table 5 (804,745 conversations
    of 5,355.3 tokens, two epochs); updates on 512 completions, 1,700 of them in stage 4 and the last 400 with
    general prompts, within one rollout of 16.
    """
    configs = {stage: r1.get_config(f"stage={stage}") for stage in r1.STAGES}
    sft, reasoning, last = (configs[name] for name in ("sft", "reasoning", "scenarios"))
    assert sft.batch_size == 128 and sft.sequence_length == 32_768
    tokens = sft.num_steps * sft.batch_size * sft.sequence_length
    np.testing.assert_allclose(tokens, 2 * 804_745 * 5355.3, rtol=1e-3)
    rates = build(SftSettings, sft, "config").optimizer
    assert rates.learning_rate == 5e-5 and rates.final_fraction * 5e-5 == pytest.approx(5e-6)
    for stage in (reasoning, last):
        assert stage.prompts_per_step * stage.group_size / stage.minibatches == 512
        assert (stage.loss.clip_eps, stage.loss.kl_coef) == (10.0, 0.001)
        assert stage.optimizer.learning_rate == 3e-6 and stage.rewards.language_consistency == 1.0
    assert (reasoning.rollout.temperature, last.rollout.temperature) == (1.0, 0.7)
    assert 0 <= 1700 - last.num_steps * last.minibatches < 16
    assert last.general.num_steps * last.minibatches == 400
    for kind, steps in (("helpfulness", 257), ("safety", 414)):
        model = configs[kind]
        assert (model.batch_size, model.num_steps, model.optimizer.learning_rate) == (
            256,
            steps,
            6e-6,
        )


def test_v3s_fine_tuning_is_the_published_one():
    """Oracle: arXiv:2412.19437, section 5.1: a cosine from 5e-6 to 1e-6."""
    rates = build(SftSettings, v3_post_training.get_config("stage=sft"), "config").optimizer
    assert rates.schedule == "cosine" and rates.learning_rate == 5e-6
    assert rates.learning_rate * rates.final_fraction == pytest.approx(1e-6)


def test_configs_do_without_jax():
    """Oracle: sys.modules of a fresh interpreter that has read every experiment."""
    names = ", ".join(f"configs.{path.stem}" for path in EXPERIMENTS)
    program = f"import sys, {names}; sys.exit('jax' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], cwd=CONFIGS.parent, timeout=60).returncode
        == 0
    )
