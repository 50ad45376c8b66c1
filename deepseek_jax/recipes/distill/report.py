"""Print a distillation's answers and comparisons, and build its page.

Slow tests: tests/recipes/distill/test_findings.py.
"""

import dataclasses
import json
from pathlib import Path

from rich.console import Console

from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.distill import compute
from deepseek_jax.files import read_json
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.distill.findings import FILE, as_json, findings, findings_table
from deepseek_jax.recipes.distill.measure import SAMPLES
from deepseek_jax.recipes.distill.scores import first_answers, intervals
from deepseek_jax.recipes.distill.tasks import file_tasks, transfer_tasks
from deepseek_jax.recipes.kinds.accept import accepted_by
from deepseek_jax.recipes.kinds.distil import Distil
from deepseek_jax.recipes.kinds.reinforce import Reinforce
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.results import Results
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.page import Page
from deepseek_jax.reports.tables import plot_curves, stages_table

TEACHER = "teacher"
# In columns
TABLE_WIDTH = 120
CURVES = ("loss", "held_out_loss", "soft", "hard", "on_policy")
# The page shows the answers of this many policies side by side
BESIDE = 4


def _learners(results):
    """Return the stages that train the students, in order."""
    return [stage for stage in results.stages if isinstance(stage, Distil | Reinforce)]


def page(results: Results) -> Page:
    """Build the page: each student next to its start, and answers of several policies."""
    common_page, titles = run_page(results, "Distillation"), results.titles()
    pairs = [(titles[stage.start], stage.title) for stage in _learners(results)]
    compared_pairs = [pair for pair in pairs if set(pair) <= common_page.scores.keys()]
    samples = {
        results.row(name): read_json(results.folder / name / SAMPLES)
        for name in results.contents()
        if (results.folder / name / SAMPLES).exists()
    }
    groups = [
        {"stage": title} | group
        for title, policy_groups in samples.items()
        for group in policy_groups
    ]
    policy_titles = dict.fromkeys([TEACHER, *(title for pair in compared_pairs for title in pair)])
    return dataclasses.replace(
        common_page,
        compared=compared_pairs or common_page.compared,
        pairs=first_answers({t: samples[t] for t in list(policy_titles)[:BESIDE] if t in samples}),
        samples=groups,
    )


def report(results: Results):
    """Draw the curves, write answers.json, and print its table and the findings.

    Only process 0 does so. answers.json is written if tasks have questions. It has these keys:

    - answers: policy -> task -> each question's share of right answers;
    - compute: student -> floating-point operations;
    - comparisons: config.comparisons.
    """
    folder = results.folder
    if first_process():
        for stage in _learners(results):
            if isinstance(stage, Distil):
                picture = folder / f"{stage.title}.png"
                plot_curves(folder / "metrics.jsonl", picture, phase=stage.name, names=CURVES)
        answers = {results.row(name): shares for name, shares in results.contents().items()}
        if answers:
            _conclude(results, answers)


def _conclude(results, answers: dict):
    folder, comparisons = results.folder, results.settings.comparisons
    content = {"answers": answers, "compute": {}, "comparisons": comparisons}
    if comparisons:
        content["compute"] = _compute(results)
    (folder / FILE).write_text(json.dumps(content))
    _print_answers(answers)
    if comparisons:
        # Over this run only; launch/sweep.py tests the comparisons over several seeds
        report_sweep(folder, [folder])


def _compute(results):
    """Return {student: floating-point operations of its training}.

    They include the teacher's operations for it and the sampling, see distill.compute.
    """
    settings, operations, text = results.settings, {}, results.settings.text

    def config_of(name):
        return read_any_config(results.path_of(name))

    teacher_config = None if settings.teacher is None else config_of(TEACHER)
    answered_tokens = 0
    if text is not None:
        # An upper bound, because the lengths of the completions are not saved
        answered_tokens = text.num_prompts * text.samples_per_prompt * text.max_completion_length
    for stage in _learners(results):
        config = config_of(stage.name)
        if isinstance(stage, Distil):
            operations[stage.title] = compute.distilled(
                stage.settings,
                config,
                teacher_config,
                texts=_number_of_texts(results),
                answered=answered_tokens,
            )
        else:
            metrics = results.folder / "metrics.jsonl"
            operations[stage.title] = compute.reinforced(
                stage.settings, config, metrics, stage.name
            )
    return operations


def _number_of_texts(results):
    """Return the number of texts in the students' training set."""
    texts = next(stage.texts for stage in results.stages if isinstance(stage, Distil))
    accepted_answers = accepted_by(results.folder, texts.accepted) if texts.accepted else None
    questions, tasks_with_files = (
        texts.questions,
        file_tasks(results.settings, results.folder / "data"),
    )
    tasks = transfer_tasks(
        results.settings, questions.world, questions.tasks, accepted_answers, tasks_with_files
    )
    return sum(len(task.train) for task in tasks.values())


def report_sweep(folder: Path, workdirs: list[Path]):
    """Print the findings over finished runs, and write them to findings.txt and findings.json.

    Args:
        folder: The folder for both files.
        workdirs: The folders of the runs.

    Raises:
        ValueError: As `findings` does.
    """
    if not first_process():
        return
    sweep_findings = findings(workdirs)
    table = findings_table(sweep_findings, len(workdirs))
    Console(width=TABLE_WIDTH).print(table)
    with (folder / "findings.txt").open("w") as file:
        Console(width=TABLE_WIDTH, file=file).print(table)
    (folder / "findings.json").write_text(json.dumps(as_json(sweep_findings), indent=1) + "\n")


def _print_answers(answers: dict):
    """Print the table of right answers."""
    rows = {title: intervals(shares) for title, shares in answers.items()}
    names = list(next(iter(rows.values())))
    formats, columns = dict.fromkeys(names, ".1%"), {name: name for name in names}
    title = "right answers to held-out questions; of requests, how far they help"
    make_console().print(stages_table(rows, formats, columns, title=title, first_column="policy"))
