"""Evaluate a checkpoint by the published protocol (arXiv:2501.12948, section 3 of version 1).

problems -> sample and judge k answers to each, some problems at a time -> scores by task
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import numpy as np
from etils.epath import Path
from typing_extensions import override

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
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.params import count_params
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
from deepseek_jax.recipes.run_record import model_facts
from deepseek_jax.recipes.stage import AnswerPlan, Source, Stage
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
    """List the stages: there is one, the measurement."""
    return [Evaluate("results", s, Problems(s), seed=s.seed, path="", label="answers: ")]


@dataclasses.dataclass(frozen=True, eq=False)
class Problems(Source):
    """The problems of config.data.

    If the config has no template, they have the template that the checkpoint carries.
    """

    settings: EvaluateSettings

    @functools.cached_property
    def problems(self) -> list[dict]:
        """The problems, see evaluation.problems.load_problems."""
        with at("config"):
            return load_problems(with_template(self.settings))

    @override
    def describe(self, context):
        return f"{len(self.problems)} problems, such as {self.problems[0]['question']!r}"

    @override
    def covers(self, context):
        return self.made_of

    @functools.cached_property
    def made_of(self) -> dict[str, str]:
        """Name -> hash of everything that the results depend on."""
        settings = self.settings
        with at("config"), at("checkpoint"):
            source = find_source(settings.checkpoint)
        hashes = {"checkpoint": checkpoint_hash(source.adapter or source.base)}
        hashes["problems"] = content_hash(self.problems)
        if settings.accuracy is not None:
            hashes["code of the rule"] = content_hash(digest_of(settings.accuracy))
        if settings.converses:
            code_names = *settings.tools, settings.environment
            hashes["code of tools and environment"] = content_hash(
                [digest_of(name or "") for name in code_names]
            )
        if source.adapter is not None:
            hashes["base"] = checkpoint_hash(source.base)
        if settings.adapter is not None:
            hashes["adapter"] = files_hash(settings.adapter, "config.adapter")
        return hashes


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluate(Measure):
    """A measurement of a checkpoint: its answers to all problems.

    The result of `run` has three fields. made_of is Problems.made_of. model is
    run_record.model_facts. problems has for each problem its prompt, completions, verdicts and
    majority answer, as evaluation.problem_scores reads them.
    """

    settings: EvaluateSettings
    problems: Problems

    def config(self) -> Network:
        """Return the Network of the checkpoint, with config.dtype."""
        with at("config"), at("checkpoint"):
            check_checkpoint(self.settings.checkpoint)
            config = read_any_config(find_source(self.settings.checkpoint).base)
        return dataclasses.replace(config, dtype=self.settings.dtype)

    def check_data(self, context):
        """Raise ValueError, before the stage runs, if it would fail later.

        That is if the problems or the checkpoint are missing, if tools have the wrong form, or if
        the environment fails in its first conversation.
        """
        super().check_data(context)
        problems, environments = self.problems.problems, self._environments(context)
        try_environment(environments, [problem["example"] for problem in problems[:1]])
        self.problems.covers(context)

    def _environments(self, context):
        """Return the Environments of config.tools and config.environment; None for single turns."""
        return context.once(
            "environments", lambda: open_environments(self.settings, context.opened)
        )

    @override
    def programs(self, config, mesh, others):
        # A plan is for the problems between two saves. It needs the checkpoint's config, and leaves
        # out an adapter
        config, settings = self.config(), self.settings
        completion_length = settings.max_completion_length
        if completion_length is None:
            completion_length = longest_completion(config, PROMPT_LENGTH)
        answering = AnswerPlan(
            AnswerOptions(max_completion_length=completion_length, slots=settings.slots),
            settings.save_every,
            settings.samples,
            dtype=settings.dtype,
            turns=settings.most_turns(),
        )
        return scored_answer_programs(self, config, mesh, answering)

    @override
    def run(self, context):
        problems, environments = self.problems.problems, self._environments(context)
        # Rules open before the checkpoint is read: one without its package or sandbox raises at
        # once
        with self.waiting(len(problems)), Rules(problems, rewards_of(environments)) as rules:
            policy = _policy(self.settings, context.mesh)
            if environments is not None:
                with at("config"):
                    policy = dataclasses.replace(policy, template=_only_template(problems))
                    policy = conversing(policy, environments, self.settings)
            parts_folder, should_stop = context.stage_folder / "parts", context.run.should_stop
            entries = _answered(self.settings, policy, problems, rules, parts_folder, should_stop)
        facts = model_facts(policy.config, count_params(policy.config))
        return {"made_of": self.problems.made_of, "model": facts, "problems": entries}

    @override
    def scores(self, contents):
        # With several tasks the scores of all of them come last, and the headline has to be first
        scores_by_task = reversed(task_scores(contents["problems"]).items())
        return {
            f"{task} {name}": interval
            for task, scores in scores_by_task
            for name, interval in scores.items()
        }


def page(results: Results) -> Page:
    """Build the page, with the first problems of each task."""
    return problems_page(
        run_page(results, "Evaluation"), results.settings, results.contents()["results"]
    )


def report(results: Results):
    """Print the scores, and remove the partial results."""
    if first_process():
        # The results have everything that the parts have
        remove_folder(results.folder / "results" / "parts")
    print_problems(results.contents()["results"]["problems"], results.folder)


def checkpoint_hash(checkpoint: str | Path) -> str:
    """Return a hash of a checkpoint.

    For a hub name it is the hash of the name with its commit, because each machine downloads the
    same files at another time. For other checkpoints it is their files_hash.
    """
    if hub_id(checkpoint) is not None:
        return content_hash(str(checkpoint))
    return files_hash(checkpoint, "checkpoint")


def with_template(settings: EvaluateSettings) -> EvaluateSettings:
    """Return the settings with the checkpoint's template if they have none.

    The template stays None if the checkpoint carries none.

    Raises:
        ValueError: The checkpoint cannot be read; the message has the field's path below `config`.
    """
    if settings.template is not None:
        return settings
    with at("checkpoint"):
        template = carried_template(find_source(settings.checkpoint).carrier)
    return dataclasses.replace(settings, template=template)


def files_hash(path: str | Path, field: str) -> str:
    """Return a hash of a checkpoint's files: their names, sizes and modification times.

    Their contents are not read.

    Args:
        path: The path of the checkpoint.
        field: The config's field with this path, for messages.

    Raises:
        ValueError: The path does not exist.
    """
    with at(field):
        path = left_in_run(path)
    files = sorted(below(path)) if path.is_dir() else [path] if path.exists() else []
    if not files:
        raise ValueError(f"{field}={str(path)!r}: there is nothing at this path; correct it")
    file_stats = [
        (str(file.relative_to(path)), *_size_and_time(file)) for file in files if file.is_file()
    ]
    return content_hash(file_stats)


def _size_and_time(path):
    """Return a file's size in bytes, and when it was last modified: in ns, or in s in a bucket."""
    if is_remote(path):
        stat = path.stat()
        return stat.length, stat.mtime
    # etils' stat has no ns
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def _policy(settings: EvaluateSettings, mesh):
    """Load the Policy to measure."""
    with at("config.checkpoint"):
        source = find_source(settings.checkpoint)
        # Raises for a run's folder without a single result; the error lists what the run has saved
        read_any_config(source.base)
    with at("config.adapter"):
        if settings.adapter is not None:
            adapter_scale(settings.adapter)
            if source.adapter is not None:
                raise ValueError(f"config.checkpoint={settings.checkpoint!r} has one; leave it out")
    with at("config.checkpoint"):
        model_fields = dict(dtype=settings.dtype)
        policy = load_policy(settings.checkpoint, model_fields, mesh, template=settings.template)
    with at("config.adapter"):
        policy = policy.with_adapter_of(settings.adapter, mesh)
    return dataclasses.replace(policy, opening=THINK if settings.think else "")


def _answered(
    settings: EvaluateSettings,
    policy: Policy,
    problems: list,
    rules: Rules,
    parts_folder: Path,
    should_stop: Callable[[], bool],
):
    """Answer all problems, and return their entries.

    Every save_every problems, their entries are saved in parts_folder; a run that is resumed
    reads them.

    Raises:
        SystemExit: With STOPPED, if the run was asked to stop; the finished parts are saved.
    """
    problems = [problem | {"prompt_ids": _prompt(policy, problem)} for problem in problems]
    options = _options(settings, policy.config, problems)
    parts_folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for start in range(0, len(problems), settings.save_every):
        part = problems[start : start + settings.save_every]
        path = parts_folder / f"{start:07d}-{start + len(part):07d}.json"
        answer = functools.partial(_answer, options, settings, policy, part, rules)
        entries += remembered(path, answer)
        share_right = np.mean([correct for entry in entries for correct in entry["correct"]])
        say(
            f"{len(entries)} of {len(problems)} problems: "
            f"{share_right:.1%} of their answers are right"
        )
        # A signal may reach only one process, but all must stop after the same part
        if total(should_stop()) and len(entries) < len(problems):
            say(f"asked to stop; saved in {parts_folder}. Run again to resume.")
            raise SystemExit(STOPPED)
    return entries


def _only_template(problems):
    """Return the template of all problems, because a conversation's policy has only one.

    Raises:
        ValueError: The problems have several templates.
    """
    templates = dict.fromkeys(problem["template"] for problem in problems)
    if len(templates) > 1:
        raise ValueError(
            f"template=None leaves each task its own, {', '.join(map(repr, templates))}, and conversations "
            "have one; set template"
        )
    return next(iter(templates))


def _prompt(policy: Policy, problem: dict):
    """Return a problem's prompt_ids in its task's template, with policy.opening at the end."""
    if policy.tools is not None:
        return policy.tools.prompt(problem["asked"], policy.opening)
    template = problem["template"]
    return render_question(
        policy.tokenizer, problem["asked"], template=template, opening=policy.opening
    )


def _options(settings: EvaluateSettings, config: Network, problems: list) -> AnswerOptions:
    """Return how the answers are sampled, by default up to the longest_completion.

    Raises:
        ValueError: Prompts and completions exceed the model's positions, or temperature or top_p is
            wrong.
    """
    Sampling(settings.temperature, settings.top_p).check(config.vocab_size)
    prompt_length = max(len(problem["prompt_ids"]) for problem in problems)
    completion_length = settings.max_completion_length
    if completion_length is None:
        completion_length = longest_completion(config, prompt_length)
    with at("config"):
        check_room(config, problems, completion_length)
    say(
        f"{len(problems)} problems, {settings.samples} samples of each, up to "
        f"{completion_length} tokens"
    )
    return AnswerOptions(
        max_completion_length=completion_length,
        temperature=settings.temperature,
        top_p=settings.top_p,
        slots=settings.slots,
    )


def longest_completion(config: Network, prompt_length: int) -> int:
    """Return the published length of a completion, or less if the model has less room.

    Args:
        config: The Network of the checkpoint.
        prompt_length: Tokens of the longest prompt.
    """
    # At least 1: if the prompts already fill the context, check_room raises the error
    return max(1, min(MAX_COMPLETION_LENGTH, config.max_position_embeddings - prompt_length))


def _answer(
    options: AnswerOptions,
    settings: EvaluateSettings,
    policy: Policy,
    problems: list,
    rules: Rules,
):
    """Answer some problems, judge the answers, and return the entries, a list of dicts."""
    examples = list(map(_asked, problems))
    answers = policy.answer(examples, options, n=settings.samples, seed=settings.seed)
    texts, rollout, conversations = answers.texts, answers.rollout, answers.conversations
    lengths, truncated = rollout.completion_mask.sum(1).tolist(), rollout.truncated.tolist()
    group_slices = [slice(i, i + settings.samples) for i in range(0, len(texts), settings.samples)]
    verdicts = rules.judge(
        problems,
        answers.groups(),
        rollout.tokens(),
        answers.per_answer([p["example"] for p in problems]),
    )
    return [
        {
            "task": problem["task"],
            "question": problem["question"],
            "gold": problem["answer"],
            "columns": shown_columns(problem["example"]),
            "prompt": policy.tokenizer.decode(prompt),
            **verdict,
            "lengths": lengths[group_slice],
            "truncated": truncated[group_slice],
            **({} if conversations is None else _counts(conversations[group_slice])),
            # Only process 0 writes the texts, and no process reads them here
            "completions": list(texts[group_slice]) if first_process() else None,
        }
        for problem, prompt, verdict, group_slice in zip(
            problems, answers.prompts, verdicts, group_slices, strict=True
        )
    ]


def _asked(problem):
    """Return the example for the policy; an environment gets the problem's columns unchanged."""
    prompt_fields = {
        "messages": asked_messages(problem["asked"]),
        "prompt_ids": problem["prompt_ids"],
    }
    return problem["example"] | prompt_fields


def _counts(conversations):
    """Return an entry's fields about its conversations, each with a value for every sample."""
    counts = [conversation.counts() for conversation in conversations]
    # Without times: they would make the files of two equal runs differ
    names = [name for name in CONVERSED if name in counts[0]]
    return {name: [count[name] for count in counts] for name in names} | {
        "get_reward": [c.reward for c in conversations],
        "messages": [c.messages for c in conversations],
    }
