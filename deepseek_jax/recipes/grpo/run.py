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
from deepseek_jax.reinforce.effort import asked_with, check_lines, with_efforts
from deepseek_jax.reinforce.grpo import reinforce
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.scenarios import ScenarioRewards, scenario_rewards
from deepseek_jax.reinforce.update import check_routing, check_rows
from deepseek_jax.reports.answers import make_console, print_samples, print_table
from deepseek_jax.reports.efforts import report_efforts
from deepseek_jax.reports.tables import CURVES, plot_curves
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
            if settings.effort is not None:
                with at("effort"):
                    check_lines(settings.effort, policy)
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
        models = load_model_rewards(
            settings.reward_models, mesh, settings.model.get("expert_buffer")
        )
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
    """(train, held_out, general) with their prompt_ids, without prompts above rollout.max_prompt_length.
    With settings.effort each question is there once for each effort.
    """
    parts = {"training": task.train, "held-out": task.held_out, "general": general}
    limit, rollout = settings.rollout.max_prompt_length, settings.rollout
    ask, together = policy.with_prompts, 1
    if settings.effort is not None:
        ask = functools.partial(with_efforts, settings.effort, policy)
        # All efforts are measured on the same questions
        together = len(settings.effort.values)
    with at("data"):
        prompts = {kind: ask(examples) for kind, examples in parts.items()}
    with at("rollout"):
        fits = [
            fitting(part, limit, kind, together) if part else [] for kind, part in prompts.items()
        ]
        check_room(policy.config, sum(fits, []), rollout.longest())
    return fits


def _measure(settings: GrpoSettings, policy: Policy, held_out: list, rewards, params):
    """Answer the held-out questions twice: sampled at the last step's temperature, and greedily. With
    settings.effort: effort -> that.
    """
    rollout = settings.rollout
    options = AnswerOptions(
        max_completion_length=rollout.longest(),
        temperature=rollout.temperature_at(settings.num_steps),
        slots=rollout.slots,
    )
    how = dict(accuracy=settings.accuracy, seed=settings.seed)
    ask = functools.partial(evaluate_both, policy.at(params), options=options, **how)
    if settings.effort is None:
        return ask(held_out, rewards)
    # JSON has no numbers as keys
    return {str(b): ask(asked_with(b, held_out), rewards) for b in settings.effort.values}


def _report(settings: GrpoSettings, workdir: Path):
    """Print the table and samples, draw the curves. Process 0 alone draws."""
    console, (before, after) = make_console(), before_and_after(workdir)
    curves, pictures = CURVES, "curves.png"
    if settings.effort is not None:
        curves += tuple(f"completion_length_effort_{b}" for b in settings.effort.values)
        pictures += ", efforts.png"
    if first_process():
        plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", phase=PHASE, names=curves)
    if settings.effort is None:
        print_table(console, before, after)
        print_samples(console, before["sampled"], after["sampled"])
    else:
        report_efforts(console, before, after, workdir / "efforts.png")
    left = f"{left_in(settings)}, metrics, {pictures}, tensorboard and checkpoints"
    console.print(f"complete; {left} are in {workdir}")
