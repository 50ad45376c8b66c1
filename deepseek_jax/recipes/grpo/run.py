"""Group Relative Policy Optimisation (arXiv:2402.03300), from a base model or a checkpoint.

base -> measure on held-out questions -> sample groups, reward, update -> measure again -> report.
"""

import contextlib
import functools
from pathlib import Path

from deepseek_jax.data.questions import read_questions
from deepseek_jax.data.tasks import Task, gsm8k_task
from deepseek_jax.errors import at
from deepseek_jax.evaluation.held_out import evaluate_both
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.recipes.start import (
    adapted,
    check_slots,
    is_trained,
    left_in,
    pretrained,
    save_trained,
    starting_policy,
)
from deepseek_jax.reinforce.grpo import reinforce
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.scenarios import ScenarioRewards, scenario_rewards
from deepseek_jax.reinforce.update import check_routing, check_rows
from deepseek_jax.reports.answers import make_console, print_samples, print_table
from deepseek_jax.reports.tables import plot_curves
from deepseek_jax.rollout.policy import AnswerOptions, Policy, check_room, fitting
from deepseek_jax.training.remembered import before_and_after, remembered
from deepseek_jax.training.run import Run
from deepseek_jax.worlds.registry import find_questions

SETTINGS = GrpoSettings
PHASE = "grpo"


def run(settings: GrpoSettings, run: Run):
    """Run the recipe, or resume it. Leaves the policy in run.folder/params, or its adapter in
    run.folder/adapter, for launch/evaluate.py and launch/convert.py. A complete run is reported alone.
    """
    if not is_trained(settings, run.folder):
        _train(settings, run)
    _report(settings, run.folder)


def check_data(settings: GrpoSettings, mesh, folder: Path):
    """Read the data as a run does, with what it builds in `folder`: -> what there is, in words."""
    with at("config"):
        task, general = _read(settings)
    counts = (
        f"{len(task.train)} questions, {len(task.held_out)} held out, {len(general)} general ones"
    )
    return f"{counts}, such as {task.train[0]['question']!r}"


def _train(settings: GrpoSettings, run: Run):
    """Everything up to what the run leaves."""
    folder = run.folder
    with contextlib.ExitStack() as opened:
        # A wrong config raises here, before anything is trained
        with at("config"):
            check_rows(settings, run.mesh)
            check_slots(settings, run.mesh)
            paid = _rewards(settings, run.mesh, opened)
            task, general = _questions(settings, paid)
            policy = starting_policy(settings, run.mesh, settings.data.template)
            check_routing(settings, policy.config, run.mesh)
            train, held_out, general = _prompts(settings, policy, task, general)
        policy = adapted(pretrained(policy, settings, run), settings, run.mesh)
        measure = functools.partial(_measure, settings, policy, held_out, paid["reasoning"])
        # Before reinforce, which donates policy.params
        remembered(folder / "before.json", lambda: measure(policy.params))
        rewards = ScenarioRewards(paid) if general else paid["reasoning"]
        params = reinforce(settings, policy, train, rewards, run.of(PHASE), general)
        remembered(folder / "after.json", lambda: measure(params))
    run.writer.close()
    save_trained(settings, folder, policy.config, params)


def _rewards(settings: GrpoSettings, mesh, opened: contextlib.ExitStack):
    """scenario -> its Rewards, which `opened` closes."""
    with at("reward_models"):
        models = load_model_rewards(settings.reward_models, mesh)
    return opened.enter_context(scenario_rewards(settings, models))


def _questions(settings: GrpoSettings, paid: dict):
    """(Task, general questions). Raises ValueError where the rewards of their scenario cannot score them."""
    task, general = _read(settings)
    with at("rewards"):
        paid["reasoning"].check([*task.train, *task.held_out])
    if general:
        with at("general.rewards"):
            paid["general"].check(general)
    return task, general


def _read(settings: GrpoSettings):
    """(Task, general questions, [] without settings.general)."""
    data, general = settings.data, []
    with at("data"):
        if data.path is not None:
            task = gsm8k_task(data.path, data.num_held_out, seed=settings.seed)
        else:
            task = find_questions(data.task)[1].make(settings.seed, data.num_held_out)
    if settings.general is not None:
        with at("general"):
            general = read_questions(settings.general.path)
    return task, general


def _prompts(settings: GrpoSettings, policy: Policy, task: Task, general: list):
    """(train, held_out, general) with their prompt_ids, without prompts above rollout.max_prompt_length."""
    parts = {"training": task.train, "held-out": task.held_out, "general": general}
    limit, rollout = settings.rollout.max_prompt_length, settings.rollout
    with at("data"):
        prompts = {kind: policy.with_prompts(examples) for kind, examples in parts.items()}
    with at("rollout"):
        fits = [fitting(part, limit, kind) if part else [] for kind, part in prompts.items()]
        check_room(policy.config, sum(fits, []), rollout.longest())
    return fits


def _measure(settings: GrpoSettings, policy: Policy, held_out: list, rewards, params):
    """Answer the held-out questions twice: sampled at the last step's temperature, and greedily."""
    rollout = settings.rollout
    options = AnswerOptions(
        max_completion_length=rollout.longest(),
        temperature=rollout.temperature_at(settings.num_steps),
        slots=rollout.slots,
    )
    how = dict(accuracy=settings.accuracy, seed=settings.seed)
    return evaluate_both(policy.at(params), held_out, rewards, options, **how)


def _report(settings: GrpoSettings, workdir: Path):
    """Print the table and samples, draw the curves. Process 0 alone draws."""
    console, (before, after) = make_console(), before_and_after(workdir)
    if first_process():
        plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", phase=PHASE)
    print_table(console, before, after)
    print_samples(console, before["sampled"], after["sampled"])
    left = f"{left_in(settings)}, metrics, curves.png, tensorboard and checkpoints"
    console.print(f"complete; {left} are in {workdir}")
