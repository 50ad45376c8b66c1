"""The problems of an evaluation, from files and worlds, and the rules that judge the answers."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from deepseek_jax.data.questions import read_questions
from deepseek_jax.data.records import READERS
from deepseek_jax.data.texts import joined, picked
from deepseek_jax.errors import at, suggest
from deepseek_jax.evaluation.consensus import majority
from deepseek_jax.files import as_path
from deepseek_jax.hub import hub_id
from deepseek_jax.named_code import is_code
from deepseek_jax.parallel.processes import in_shares, say
from deepseek_jax.worlds.registry import all_rules, find_questions, open_rewards, question_names

# Number of problems of a world if num_problems is not set
NUM_OF_A_WORLD = 256


def load_problems(settings) -> list[dict]:
    """Load the problems of settings.data (EvaluateSettings), in order.

    A problem is a dict: example, as in data.questions, its question and answer, and task, rule,
    template and asked: the example with the instruction after its question. A toy world has one
    task for each kind of question in each language. A file is one task, and so are the questions of
    a function (named_code).

    Raises:
        ValueError: As in data.records; if num_problems is more than there are; and for a task of
            one problem.
    """
    problems: list[dict] = []
    counts: Counter[str] = Counter()
    for name in settings.data:
        is_task = name in question_names() or is_code(name)
        with at("data"):
            is_data = is_task or _may_be_data(name)
        if not is_data:
            raise ValueError(
                f"data={name!r} is neither a path nor a task; {suggest(name, question_names())}"
            )
        task_problems = (_of_world if is_task else _of_file)(name, settings)
        new_counts = Counter(problem["task"] for problem in task_problems)
        if new_counts & counts:
            raise ValueError(
                f"data={name!r} repeats the task {list(new_counts & counts)[0]}; give it once"
            )
        problems, counts = problems + task_problems, counts + new_counts
    single_tasks = [task for task, count in counts.items() if count < 2]
    if single_tasks:
        raise ValueError(
            f"num_problems={settings.num_problems} leaves {single_tasks[0]!r} a single problem, and an "
            "interval needs 2; raise it"
        )
    return problems


def _may_be_data(name):
    """Return whether a name is data, here or on the hub, or ends as a file of data does."""
    path = as_path(name)
    return hub_id(name) is not None or path.suffix in READERS or path.exists()


def _of_world(name, settings):
    (world, questions), number = find_questions(name), settings.num_problems or NUM_OF_A_WORLD
    rule = settings.accuracy or questions.rule
    if rule is None:
        raise ValueError(f"data={name!r} has no rule of its own; set accuracy to one")
    template = settings.template or ("chat" if world is None else world.template)
    return [
        _problem(example, _kind(name, example), rule, template)
        for example in questions.make(0, number).held_out
    ]


def _problem(example, task, rule, template, instruction=""):
    instructed_example = example
    if instruction:
        text = f"{example['question']}\n{instruction}"
        instructed_example = example | {"question": text}
        if example.get("messages"):
            *earlier_messages, last_message = example["messages"]
            instructed_example["messages"] = [*earlier_messages, last_message | {"content": text}]
    question_fields = {key: example[key] for key in ("question", "answer")}
    rule_fields = {"task": task, "rule": rule, "template": template}
    return {"example": example, "asked": instructed_example, **question_fields, **rule_fields}


def _kind(name, example):
    return f"{example['kind']} {example['language']}" if "kind" in example else name


def _of_file(name, settings):
    with at("data", "path"):
        examples = read_questions(name, settings.split, settings.columns)
    number = len(examples) if settings.num_problems is None else settings.num_problems
    if not 2 <= number <= len(examples):
        raise ValueError(
            f"num_problems={number} must be within 2..{len(examples)}, the questions of {name}"
        )
    # The fixed seed gives every evaluation of the file the same questions
    indices = sorted(np.random.default_rng(0).permutation(len(examples))[:number])
    # Leave the commit out of a hub name, so that the task keeps its name. If the problems change,
    # their questions show it
    hub_data = hub_id(name)
    path = (
        Path(name).with_suffix("")
        if hub_data is None
        else Path(hub_data.repo, hub_data.subset or "")
    )
    task, template = "/".join(path.parts[-2:]), settings.template or "chat"
    problems = []
    for example in (examples[i] for i in indices):
        has_cases = example.get("test_cases") is not None
        rule = settings.accuracy or ("program" if has_cases else "math_verify")
        # The instruction is about a final answer, which a program does not have
        instruction = "" if rule == "program" else settings.instruction
        problems.append(_problem(example, task, rule, template, instruction))
    return problems


class Rules(contextlib.ExitStack):
    """The rules of some problems, each as a Rewards; a context manager that ends their workers.

    Args:
        problems: Each names its rule.
        models: {name: reward} that a problem's rule may name, in addition to the rules; see
            Rewards.

    Raises:
        ValueError: If a rule lacks its package or a sandbox, or a problem lacks a field that its
            rule reads.
    """

    def __init__(self, problems: list, models: Mapping[str, Any] = MappingProxyType({})):
        super().__init__()
        self._rewards, self._rules = {}, all_rules()
        for rule in sorted({problem["rule"] for problem in problems}):
            rule_models = {rule: models[rule]} if rule in models else {}
            self._rewards[rule] = self.enter_context(open_rewards({rule: 1.0}, rule_models))
            self._rewards[rule].check([p["example"] for p in problems if p["rule"] == rule])

    def judge(
        self,
        problems: list[dict],
        groups: Sequence[Sequence[str]],
        ids: Sequence[Sequence[int]],
        examples: Sequence[dict] | None = None,
    ) -> list[dict]:
        """Judge each group of completions: a list of dicts, one per problem.

        Args:
            ids: The tokens of all completions, in order.
            examples: One per completion, for conversations; by default the problems' own.

        Returns:
            Dicts with these keys. answers (str or None) and correct: one per completion. majority:
            the most frequent answer. agreed: whether it is right. Both are None if the rule reads
            no answers; majority is also None, and agreed False, without any answer. unscored:
            number of completions without a verdict; they count as wrong, so that every problem has
            the same number of samples.
        """
        judgements = [
            self._vote(problem, answers)
            for problem, answers in zip(problems, self._answers(problems, groups), strict=True)
        ]
        ends = np.cumsum([len(group) for group in groups]).tolist()
        spans = list(zip([0, *ends], ends, strict=False))
        ids_by_group = [picked(ids, range(start, end)) for start, end in spans]
        if examples is None:
            pairs = zip(problems, groups, strict=True)
            examples = [problem["example"] for problem, group in pairs for _ in range(len(group))]
        for rule, rewards in self._rewards.items():
            indices = [i for i, problem in enumerate(problems) if problem["rule"] == rule]
            # Score the most frequent answers after the completions, as if they were completions
            majority_indices = [i for i in indices if judgements[i]["majority"] is not None]
            texts = [groups[i] for i in indices] + [
                [_marked(judgements[i]["majority"])] for i in majority_indices
            ]
            scored_examples = [example for i in indices for example in examples[slice(*spans[i])]]
            scored_examples += [problems[i]["example"] for i in majority_indices]
            # The most frequent answer was not sampled in this form, so it has no tokens
            tokens = joined([ids_by_group[i] for i in indices] + [[[]] for _ in majority_indices])
            scores = rewards.score_together(scored_examples, joined(texts), tokens)
            for message in scores.messages:
                say(f"{message} It counts as wrong.")
            values = iter(scores.total.tolist())
            for i in indices:
                verdicts = [next(values) for _ in range(len(groups[i]))]
                # NaN means no verdict. It equals nothing, so it counts as wrong
                judgements[i]["correct"] = [verdict == 1 for verdict in verdicts]
                judgements[i]["unscored"] = int(np.isnan(verdicts).sum())
            for i in majority_indices:
                judgements[i]["agreed"] = next(values) == 1
        return judgements

    def _answers(self, problems, groups):
        """Return the answers (str or None) in each group's completions.

        Every process reads a share of the completions.
        """
        texts, group_sizes = joined(groups), [len(group) for group in groups]
        text_problems = [
            p for p, size in zip(problems, group_sizes, strict=True) for _ in range(size)
        ]
        readings = [self._reading(problem["rule"]) for problem in text_problems]
        questions = [problem["example"]["question"] for problem in text_problems]

        def find(rows):
            return [
                None if readings[i] is None else readings[i].find(texts[i], questions[i])
                for i in rows
            ]

        answers = iter(in_shares(find, len(texts)))
        return [[next(answers) for _ in range(size)] for size in group_sizes]

    def _reading(self, rule):
        """Return how a rule reads an answer; None for a rule that reads none, as functions do."""
        return self._rules[rule].reading if rule in self._rules else None

    def _vote(self, problem, answers):
        reading = self._reading(problem["rule"])
        if reading is None:
            return {"answers": answers, "majority": None, "agreed": None}
        question = problem["example"]["question"]
        keys = [None if answer is None else reading.key(answer, question) for answer in answers]
        majority_key = majority(keys)
        if majority_key is None:
            return {"answers": answers, "majority": None, "agreed": False}
        return {"answers": answers, "majority": answers[keys.index(majority_key)], "agreed": False}


def _marked(answer):
    """Write a completion that states the answer and nothing else."""
    return f"<answer>{answer}</answer>"
