"""Report an evaluation: its scores, its page, and the comparison with another evaluation.

Tests: tests/recipes/evaluate/test_run.py.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path

from ml_collections import ConfigDict

from deepseek_jax.evaluation.problem_scores import ALL, compared_tasks, in_order, task_scores
from deepseek_jax.evaluation.problems import load_problems
from deepseek_jax.files import as_path
from deepseek_jax.recipes.evaluate.settings import EvaluateSettings
from deepseek_jax.recipes.page import model_text
from deepseek_jax.recipes.stage import SCORES
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.page import FORMS, Page
from deepseek_jax.reports.tables import comparison_table, stages_table
from deepseek_jax.settings import build

# In the folder of a run: the file with the answers
RESULTS = f"results/{SCORES}"
# The page shows this many problems of each task
ON_PAGE = 64
# In columns: room for six scores with their intervals
TABLE_WIDTH = 130


def print_problems(problems: list[dict], workdir: Path):
    """Print the scores of an evaluation, and where its files are.

    Args:
        problems: The problems with their answers, see evaluation.problem_scores.
        workdir: The folder of the run.
    """
    scores, console = task_scores(problems), make_console(width=TABLE_WIDTH)
    forms = {name: FORMS.get(name, ".1%") for intervals in scores.values() for name in intervals}
    names = {name: name for name in forms}
    console.print(
        stages_table(scores, forms, names, title="scores of problems", first_column="task")
    )
    num_unscored = sum(problem["unscored"] for problem in problems)
    if num_unscored:
        num_samples = sum(len(problem["correct"]) for problem in problems)
        console.print(f"{num_unscored} of {num_samples} answers had no verdict and count as wrong")
    console.print(f"prompts, completions and verdicts are in {workdir / RESULTS}")


def problems_page(page: Page, settings: EvaluateSettings, results: dict) -> Page:
    """Return the page with the scores of each task, and answers, wrong ones first.

    Args:
        page: The page so far.
        settings: The settings of the evaluation.
        results: The result of recipes.evaluate.run.Evaluate.run.
    """
    problems, scores = results["problems"], task_scores(results["problems"])
    samples, task_counts = [], Counter[str]()
    # sorted is stable: problems with equally many right answers keep their order
    for problem in sorted(problems, key=lambda problem: sum(problem["correct"])):
        task_counts[problem["task"]] += 1
        if task_counts[problem["task"]] <= ON_PAGE:
            samples.append(_group(problem))
    return dataclasses.replace(
        page,
        facts=_facts(settings, results) | page.facts,
        scores=scores,
        compared=[(None, ALL if ALL in scores else next(iter(scores)))],
        samples=samples,
        samples_note="Wrong answers first: of each task the problems with the fewest right ones, at "
        f"most {ON_PAGE}.",
        digests=page.digests | results["made_of"],
    )


def _facts(settings, results):
    facts = {"checkpoint": settings.checkpoint}
    if settings.adapter is not None:
        facts["adapter"] = settings.adapter
    # Results of an earlier version do not have the model
    if "model" in results:
        facts["model"] = model_text(**results["model"])
    num_problems = len(results["problems"])
    facts["data"] = f"{', '.join(settings.data)}, {num_problems} problems"
    top_p = f" with top_p {settings.top_p:g}" if settings.temperature > 0 else ", greedy"
    facts["temperature"] = f"{settings.temperature:g}{top_p}"
    return facts | {"samples": f"{settings.samples} of each problem"}


def _group(problem):
    names = {"completions": "text", "correct": "right", "lengths": "length"}
    names |= {name: name for name in ("truncated", "messages") if name in problem}
    values = (problem[name] for name in names)
    completions = [
        dict(zip(names.values(), completion, strict=True))
        for completion in zip(*values, strict=True)
    ]
    completions.sort(key=lambda completion: completion["right"])
    fields = {"task": problem["task"], "prompt": problem["question"], "answer": problem["gold"]}
    return fields | {"completions": completions}


def check_against(config: ConfigDict, path: str | Path):
    """Raise ValueError unless another evaluation's results are about this config's problems.

    Args:
        config: The config of an evaluation.
        path: The folder of the other run, or its file RESULTS.
    """
    problems = load_problems(build(EvaluateSettings, config, "config"))
    # in_order compares entries of RESULTS, where the answer is called gold
    in_order([problem | {"gold": problem["answer"]} for problem in problems], _read_problems(path))


def report_against(workdir: Path, path: str | Path):
    """Print how a finished run compares with another one on the same problems.

    Args:
        workdir: The folder of the finished run.
        path: As in check_against.

    Raises:
        ValueError: There are no results at path, or they are about other problems.
    """
    ours, theirs = map(_read_problems, (workdir / RESULTS, path))
    console = make_console(width=TABLE_WIDTH)
    console.print(comparison_table(compared_tasks(ours, theirs)))


def _read_problems(path):
    try:
        file = as_path(path)
        results = json.loads((file / RESULTS if file.is_dir() else file).read_text())
        if "made_of" in results and "problems" in results:
            return results["problems"]
        error: str | Exception = "it has no problems"
    except (OSError, ValueError) as cause:
        error = cause
    raise ValueError(f"{path} is not the results of an evaluation: {error}; correct the path")
