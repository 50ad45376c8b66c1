"""Group Relative Policy Optimisation (arXiv:2402.03300), from a base model or a checkpoint, told in order.

base -> measure on held-out questions -> sample groups, reward, update -> measure again -> report.
"""

import contextlib
import functools

import numpy as np
from rich.console import Console

from deepseek_jax.checkpoint import is_orbax, save_orbax
from deepseek_jax.data.questions import read_questions
from deepseek_jax.data.tasks import gsm8k_task
from deepseek_jax.errors import at
from deepseek_jax.evaluation.held_out import evaluate
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.recipes.pretrain.run import train_base
from deepseek_jax.recipes.start import ending_turns, starting_policy
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.scenarios import ScenarioRewards, scenario_questions, scenario_rewards
from deepseek_jax.reinforce.update import (
    check_length,
    check_rows,
    fitting,
    reinforce,
    with_prompts,
)
from deepseek_jax.reports.tables import before_after_table, plot_curves, sample_panel
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.remembered import remembered
from deepseek_jax.worlds.registry import find_questions

PHASE = "grpo"


def run(config, mesh, workdir, should_stop):
    """Run the recipe in workdir, or what is left of it. config: ConfigDict of GrpoSettings' fields.

    Leaves the policy in workdir/params, which launch/evaluate.py and launch/convert.py read.
    """
    settings = build(GrpoSettings, config, "config")
    with at("config"):
        check_rows(settings, mesh)
    writer = MetricsWriter(workdir)
    with at("config.reward_models"):
        models = load_model_rewards(settings.reward_models, mesh)
    with contextlib.ExitStack() as opened:
        with at("config"):
            paid = opened.enter_context(scenario_rewards(settings, models))
        task, rewards, general = _task(settings), paid["reasoning"], []
        with at("config.rewards"):
            rewards.check([*task.train, *task.held_out])
        if settings.general is not None:
            with at("config.general"):
                general = read_questions(settings.general.path)
            with at("config.general.rewards"):
                paid["general"].check(general)
        policy, params, tokenizer = starting_policy(settings, mesh)
        with at("config.data"):
            policy = ending_turns(policy, tokenizer, settings.data.template)
        train = _asked(settings, tokenizer, task.train, "training")
        held_out = _asked(settings, tokenizer, task.held_out, "held-out")
        if general:
            general = _asked(settings, tokenizer, general, "general")
        with at("config.rollout"):
            check_length(settings.rollout.longest(), policy, train + held_out + general)
        if params is None:
            params = train_base(
                policy,
                settings.base,
                tokenizer,
                mesh,
                workdir,
                seed=settings.seed,
                writer=writer,
                should_stop=should_stop,
            )
        measure = functools.partial(_measure, settings, policy, tokenizer, held_out, rewards)
        before = remembered(workdir / "before.json", lambda: measure(params))
        params = reinforce(
            settings,
            policy,
            tokenizer,
            params,
            scenario_questions(settings, train, general),
            ScenarioRewards(paid),
            mesh,
            workdir / PHASE,
            phase=PHASE,
            writer=writer,
            should_stop=should_stop,
        )
        after = remembered(workdir / "after.json", lambda: measure(params))
    writer.close()
    if not is_orbax(workdir / "params"):
        save_orbax(workdir / "params", policy, params)
    _report(workdir, before, after)


def _task(settings):
    data = settings.data
    with at("config.data"):
        if data.path is not None:
            return gsm8k_task(data.path, data.num_held_out, seed=settings.seed)
        _, questions = find_questions(data.task)
        return questions.make(settings.seed, data.num_held_out)


def _asked(settings, tokenizer, examples, kind):
    """The examples with their prompt_ids, but for those whose prompt is too long."""
    with at("config.data"):
        prompted = with_prompts(examples, tokenizer, settings.data.template)
    with at("config.rollout"):
        return fitting(prompted, settings.rollout, kind)


def _measure(settings, policy, tokenizer, held_out, rewards, params):
    """Answer the held-out questions, sampled as training does in the end and greedily."""
    last = settings.rollout.temperature_at(settings.num_steps)
    return {
        name: evaluate(
            policy,
            params,
            tokenizer,
            [example["prompt_ids"] for example in held_out],
            held_out,
            rewards,
            accuracy=settings.accuracy,
            max_completion_length=settings.rollout.longest(),
            temperature=temperature,
            eos_ids=(tokenizer.eos_id, *policy.eos_ids),
            seed=settings.seed,
            slots=settings.rollout.slots,
        )
        for name, temperature in (("sampled", last), ("greedy", 0.0))
    }


def _report(workdir, before, after):
    """Print the table and samples, draw the curves. Process 0 alone."""
    if not first_process():
        return
    plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", phase=PHASE)
    forms = {
        name: ".1f" if name == "completion_length" else ".2f" if name == "reward" else ".1%"
        for name in after["sampled"]["scores"]
    }
    console = Console()
    scores = [{way: measured["scores"] for way, measured in m.items()} for m in (before, after)]
    console.print(before_after_table(forms, *scores))
    pairs = zip(before["sampled"]["samples"], after["sampled"]["samples"], strict=True)
    console.print(
        sample_panel(
            [
                {
                    "prompt": old["prompt"],
                    "before": old["completion"],
                    "before_reward": np.nan if old["reward"] is None else old["reward"],
                    "after": new["completion"],
                    "after_reward": np.nan if new["reward"] is None else new["reward"],
                }
                for old, new in pairs
            ]
        )
    )
    console.print(
        f"complete; params, metrics, curves.png, tensorboard and checkpoints are in {workdir}"
    )
