"""Evaluate a checkpoint by the published protocol (arXiv:2501.12948, section 3 of version 1).

problems -> sample and judge k answers to each, some problems at a time -> scores by task.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import numpy as np
from etils.epath import Path

from deepseek_jax.checkpoint.adapter import adapter_scale
from deepseek_jax.checkpoint.left import left_in_run
from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.checkpoint.locate import check_checkpoint
from deepseek_jax.data.carried import carried_template
from deepseek_jax.data.chat import asked_messages, render_question
from deepseek_jax.data.columns import shown_columns
from deepseek_jax.errors import at
from deepseek_jax.evaluation.problem_scores import CONVERSED, task_scores
from deepseek_jax.evaluation.problems import Rules, load_problems
from deepseek_jax.files import below, is_remote, remove_folder
from deepseek_jax.hub import hub_id
from deepseek_jax.models import ModelConfig
from deepseek_jax.named_code import digest_of
from deepseek_jax.parallel.processes import first_process, say, total
from deepseek_jax.recipes.conversing import (
    conversing,
    open_environments,
    rewards_of,
    try_environment,
)
from deepseek_jax.recipes.evaluate.report import print_problems, problems_page
from deepseek_jax.recipes.evaluate.settings import MAX_COMPLETION_LENGTH, EvaluateSettings
from deepseek_jax.recipes.kinds.measure import PROMPT_LENGTH, Measure, scored_answer_programs
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.stage import Answering, Source, Stage
from deepseek_jax.reports.page import Page
from deepseek_jax.rollout.policy import Policy, check_room, find_source, load_policy
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.training.lineage import content_hash
from deepseek_jax.training.loop import STOPPED
from deepseek_jax.training.remembered import remembered

SETTINGS = EvaluateSettings
THINK = "<think>\n"


def stages(s: EvaluateSettings) -> list[Stage]:
    """One measurement."""
    return [Evaluate("results", s, Problems(s), seed=s.seed, path="", label="answers: ")]


@dataclasses.dataclass(frozen=True, eq=False)
class Problems(Source):
    """The problems of config.data, in the template of the checkpoint where the config has none."""

    settings: EvaluateSettings

    @functools.cached_property
    def problems(self) -> list[dict]:
        """See evaluation.problems.load_problems."""
        with at("config"):
            return load_problems(with_template(self.settings))

    def describe(self, context):
        return f"{len(self.problems)} problems, such as {self.problems[0]['question']!r}"

    def covers(self, context):
        return self.made_of

    @functools.cached_property
    def made_of(self) -> dict[str, str]:
        """What the results depend on, as hashes."""
        settings = self.settings
        with at("config"), at("checkpoint"):
            source = find_source(settings.checkpoint)
        found = {"checkpoint": checkpoint_hash(source.adapter or source.base)}
        found["problems"] = content_hash(self.problems)
        if settings.accuracy is not None:
            found["code of the rule"] = content_hash(digest_of(settings.accuracy))
        if settings.converses:
            code = *settings.tools, settings.environment
            found["code of tools and environment"] = content_hash([digest_of(n) for n in code])
        if source.adapter is not None:
            found["base"] = checkpoint_hash(source.base)
        if settings.adapter is not None:
            found["adapter"] = files_hash(settings.adapter, "config.adapter")
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluate(Measure):
    """Answers to all problems. What it finds: made_of, hashes of the checkpoint and of the problems;
    problems: for each one its prompt, completions, verdicts and majority answer, as evaluation.problem_scores
    reads them.
    """

    settings: EvaluateSettings
    problems: Problems

    def config(self) -> ModelConfig:
        """The ModelConfig of the checkpoint."""
        with at("config"), at("checkpoint"):
            check_checkpoint(self.settings.checkpoint)
            config = read_any_config(find_source(self.settings.checkpoint).base)
        return dataclasses.replace(config, dtype=self.settings.dtype)

    def check_data(self, context):
        """Raise ValueError where the problems or the checkpoint are not there, tools have another form, or an
        environment fails in its first conversation.
        """
        super().check_data(context)
        problems, environments = self.problems.problems, self._environments(context)
        try_environment(environments, [problem["example"] for problem in problems[:1]])
        self.problems.covers(context)

    def _environments(self, context):
        """The Environments of config.tools and config.environment; None for single turns."""
        return context.once(
            "environments", lambda: open_environments(self.settings, context.opened)
        )

    def programs(self, config, mesh, others):
        # The problems between two saves. The checkpoint's config has to be there; an adapter is left out
        config, settings = self.config(), self.settings
        longest = settings.max_completion_length
        if longest is None:
            longest = longest_completion(config, PROMPT_LENGTH)
        asked = Answering(
            AnswerOptions(max_completion_length=longest, slots=settings.slots),
            settings.save_every,
            settings.samples,
            dtype=settings.dtype,
            turns=settings.most_turns(),
        )
        return scored_answer_programs(self, config, mesh, asked)

    def run(self, context):
        problems, environments = self.problems.problems, self._environments(context)
        # Before the checkpoint is read: a rule without its package or sandbox raises at once
        with self.waiting(len(problems)), Rules(problems, rewards_of(environments)) as rules:
            policy = _policy(self.settings, context.mesh)
            if environments is not None:
                with at("config"):
                    policy = dataclasses.replace(policy, template=_only_template(problems))
                    policy = conversing(policy, environments, self.settings)
            parts, stop = context.own / "parts", context.run.should_stop
            answered = _answered(self.settings, policy, problems, rules, parts, stop)
        return {"made_of": self.problems.made_of, "problems": answered}

    def scores(self, found):
        # The scores of all tasks, where there are several, are the last
        tasks = reversed(task_scores(found["problems"]).items())
        return {f"{task} {name}": s for task, scores in tasks for name, s in scores.items()}


def page(results: Results) -> Page:
    """The page, with the first problems of each task."""
    shown = run_page(results, "Evaluation")
    return problems_page(shown, **results.found()["results"])


def report(results: Results):
    """Print the scores."""
    if first_process():
        # They are in the results
        remove_folder(results.folder / "results" / "parts")
    print_problems(results.found()["results"]["problems"], results.folder)


def checkpoint_hash(checkpoint: str | Path):
    """files_hash of a checkpoint; of one on the hub the hash of its name with its commit: another machine
    downloads the same files at another time.
    """
    if hub_id(checkpoint) is not None:
        return content_hash(str(checkpoint))
    return files_hash(checkpoint, "checkpoint")


def with_template(settings: EvaluateSettings):
    """The settings with the template that the checkpoint carries, where they have none. Raises ValueError as
    at "config".
    """
    if settings.template is not None:
        return settings
    with at("checkpoint"):
        template = carried_template(find_source(settings.checkpoint).carrier)
    return dataclasses.replace(settings, template=template)


def files_hash(path: str | Path, field: str):
    """A hash of the names, sizes and modification times of a checkpoint's files, not of their contents.

    field: of the config, for messages. Raises ValueError where the path does not exist.
    """
    with at(field):
        path = left_in_run(path)
    files = sorted(below(path)) if path.is_dir() else [path] if path.exists() else []
    if not files:
        raise ValueError(f"{field}={str(path)!r}: there is nothing at this path; correct it")
    found = [(str(f.relative_to(path)), *_size_and_time(f)) for f in files if f.is_file()]
    return content_hash(found)


def _size_and_time(path):
    """Bytes, and when the file was last modified: in ns, of a bucket in s."""
    if is_remote(path):
        stat = path.stat()
        return stat.length, stat.mtime
    # etils' stat has no ns
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def _policy(settings: EvaluateSettings, mesh):
    """The Policy to measure."""
    with at("config.checkpoint"):
        source = find_source(settings.checkpoint)
        # The folder of a run is named, before its tokenizer is missed
        read_any_config(source.base)
    with at("config.adapter"):
        if settings.adapter is not None:
            adapter_scale(settings.adapter)
            if source.adapter is not None:
                raise ValueError(f"config.checkpoint={settings.checkpoint!r} has one; leave it out")
    with at("config.checkpoint"):
        how = dict(dtype=settings.dtype)
        policy = load_policy(settings.checkpoint, how, mesh, template=settings.template)
    with at("config.adapter"):
        policy = policy.with_adapter_of(settings.adapter, mesh)
    return dataclasses.replace(policy, opening=THINK if settings.think else "")


def _answered(
    settings: EvaluateSettings,
    policy: Policy,
    problems: list,
    rules: Rules,
    parts: Path,
    should_stop: Callable[[], bool],
):
    """The entries of all problems. Saves every save_every of them in the folder `parts`."""
    problems = [problem | {"prompt_ids": _prompt(policy, problem)} for problem in problems]
    settings = _with_length(settings, policy.config, problems)
    parts.mkdir(parents=True, exist_ok=True)
    answered = []
    for first in range(0, len(problems), settings.save_every):
        some = problems[first : first + settings.save_every]
        path = parts / f"{first:07d}-{first + len(some):07d}.json"
        answered += remembered(path, lambda s=some: _answer(settings, policy, s, rules))
        share = np.mean([correct for problem in answered for correct in problem["correct"]])
        say(f"{len(answered)} of {len(problems)} problems: {share:.1%} of their answers are right")
        # A signal may reach one process alone, and all must stop after the same part
        if total(should_stop()) and len(answered) < len(problems):
            say(f"asked to stop; saved in {parts}. Run again to resume.")
            raise SystemExit(STOPPED)
    return answered


def _only_template(problems):
    """The template of all problems, as conversations have one."""
    templates = dict.fromkeys(problem["template"] for problem in problems)
    if len(templates) > 1:
        raise ValueError(
            f"template=None leaves each task its own, {', '.join(map(repr, templates))}, and conversations "
            "have one; set template"
        )
    return next(iter(templates))


def _prompt(policy: Policy, problem: dict):
    """The prompt_ids of a problem, in the template of its own task, with policy.opening at the end."""
    if policy.tools is not None:
        return policy.tools.prompt(problem["asked"], policy.opening)
    template = problem["template"]
    return render_question(
        policy.tokenizer, problem["asked"], template=template, opening=policy.opening
    )


def _with_length(settings: EvaluateSettings, config: ModelConfig, problems: list):
    """The settings with max_completion_length filled in. Raises ValueError where prompts and completions
    exceed the model's positions, and for a wrong temperature or top_p.
    """
    Sampling(settings.temperature, settings.top_p).check(config.vocab_size)
    longest = max(len(problem["prompt_ids"]) for problem in problems)
    if settings.max_completion_length is None:
        length = longest_completion(config, longest)
        settings = dataclasses.replace(settings, max_completion_length=length)
    with at("config"):
        check_room(config, problems, settings.max_completion_length)
    say(
        f"{len(problems)} problems, {settings.samples} samples of each, up to "
        f"{settings.max_completion_length} tokens"
    )
    return settings


def longest_completion(config: ModelConfig, prompt_length: int):
    """The published length of a completion; fewer tokens where the model has less room after the prompt."""
    # At least 1, so that check_room writes the message where the prompts alone fill the context
    return max(1, min(MAX_COMPLETION_LENGTH, config.max_position_embeddings - prompt_length))


def _answer(settings: EvaluateSettings, policy: Policy, problems: list, rules: Rules):
    """Answer some problems: -> their entries, a list of dicts."""
    options = AnswerOptions(
        max_completion_length=settings.max_completion_length,
        temperature=settings.temperature,
        top_p=settings.top_p,
        slots=settings.slots,
    )
    asked = list(map(_asked, problems))
    answers = policy.answer(asked, options, n=settings.samples, seed=settings.seed)
    texts, rollout, conversations = answers.texts, answers.rollout, answers.conversations
    lengths, truncated = rollout.completion_mask.sum(1).tolist(), rollout.truncated.tolist()
    rows = [slice(i, i + settings.samples) for i in range(0, len(texts), settings.samples)]
    judged = rules.judge(
        problems,
        answers.groups(),
        rollout.tokens(),
        answers.asked([p["example"] for p in problems]),
    )
    return [
        {
            "task": problem["task"],
            "question": problem["question"],
            "gold": problem["answer"],
            "columns": shown_columns(problem["example"]),
            "prompt": policy.tokenizer.decode(prompt),
            **verdict,
            "lengths": lengths[row],
            "truncated": truncated[row],
            **({} if conversations is None else _counts(conversations[row])),
            # Process 0 writes them, and no process reads them here
            "completions": list(texts[row]) if first_process() else None,
        }
        for problem, prompt, verdict, row in zip(
            problems, answers.prompts, judged, rows, strict=True
        )
    ]


def _asked(problem):
    """The example that the policy is asked: an environment gets the columns of the problem as they stand."""
    asked = {"messages": asked_messages(problem["asked"]), "prompt_ids": problem["prompt_ids"]}
    return problem["example"] | asked


def _counts(conversations):
    """What an entry has of its conversations: a value for each sample."""
    counts = [conversation.counts() for conversation in conversations]
    # Seconds of the clock would make each run's file another
    names = [name for name in CONVERSED if name in counts[0]]
    return {name: [each[name] for each in counts] for name in names} | {
        "get_reward": [c.reward for c in conversations],
        "messages": [c.messages for c in conversations],
    }
