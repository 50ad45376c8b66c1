"""Distillation of a teacher into students of other architectures (arXiv:2501.12948, section 2.4).

teacher, a checkpoint or trained first -> accept its right answers -> the students' starts -> train each
student on the accepted texts, by the terms of config.students.NAME.loss -> all policies answer held-out
questions. Students of config.reinforced learn from rewards alone, for comparison.
"""

import functools
import json
from pathlib import Path

from rich.console import Console

from deepseek_jax.checkpoint.hf_config import read_config
from deepseek_jax.distill import compute
from deepseek_jax.errors import at
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.recipes.distill.checks import check
from deepseek_jax.recipes.distill.findings import FILE, as_json, findings, findings_table
from deepseek_jax.recipes.distill.scores import answer_tasks, intervals
from deepseek_jax.recipes.distill.settings import DistillSettings
from deepseek_jax.recipes.distill.stages import DistillStages, Made
from deepseek_jax.recipes.distill.tasks import (
    file_tasks,
    texts_hash,
    transfer_tasks,
    world_tasks,
)
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.tables import plot_curves, stages_table
from deepseek_jax.training.run import Run
from deepseek_jax.worlds.registry import find_world

SETTINGS = DistillSettings
# A changed config may resume in the same workdir: stages that depend on the change run again (see lineage)
REDOES_WHAT_CHANGED = True
TABLE_WIDTH = 120  # columns
CURVES = ("loss", "held_out_loss", "soft", "hard", "on_policy")
FEWEST = 2  # held-out questions of the world where config.evaluation is None


def run(settings: DistillSettings, run: Run):
    """Run the recipe, or resume it.

    Each stage has a folder with stage.json, the hashes of its inputs (see lineage), and params, which
    launch/convert.py reads. answers.json has, for tasks with questions, answers: policy -> task -> each
    question's share of right answers; compute: student -> floating-point operations; comparisons: the
    config's.
    """
    with at("config"):
        check(settings, run.mesh)
    world, evaluation = find_world(settings.world), settings.evaluation
    number = FEWEST if evaluation is None else evaluation.num_questions
    questions = world_tasks(world, settings.seed, number)
    of_files = file_tasks(settings, run.folder / "data")
    stages = DistillStages(settings, questions[world.reasoning], run)
    teacher = None if settings.teacher is None else stages.teacher(world, questions)
    digest, accepted = (None, None) if settings.text is None else stages.text(world, teacher)
    tasks = transfer_tasks(settings, world, questions, accepted, of_files)
    texts = texts_hash(settings, digest), tasks
    starts = {name: stages.start(name) for name in settings.starts}
    made = {} if teacher is None else {"teacher": teacher}
    made |= {f"start {name}": start for name, start in starts.items()}
    answers = _measured(settings, stages, made, texts)
    students = {}
    for name, student in settings.seeded(settings.students).items():
        students[name] = stages.student(name, student, starts[student.start], texts, teacher)
        answers |= _measured(settings, stages, {name: students[name]}, texts)
    for name, student in settings.seeded(settings.reinforced).items():
        students[name] = stages.reinforced(name, student, starts[student.start])
        answers |= _measured(settings, stages, {name: students[name]}, texts)
    run.writer.close()
    if first_process():
        _plot(settings, run.folder)
        if answers:
            _conclude(settings, answers, students, teacher, tasks, run.folder)
    say(
        f"complete; metrics, curves, and a folder of each stage with its params are in {run.folder}"
    )


def check_data(settings: DistillSettings, mesh, folder: Path):
    """Read the data as a run does, with what it builds in `folder`: -> what there is, in words."""
    world = find_world(settings.world)
    questions = world_tasks(world, settings.seed, FEWEST)
    # The teacher's answers are not there yet
    tasks = transfer_tasks(settings, world, questions, None, file_tasks(settings, folder))
    return "; ".join(f"{name}: {len(task.train)} texts" for name, task in tasks.items())


def _conclude(
    settings: DistillSettings,
    answers: dict,
    students: dict[str, Made],
    teacher: Made | None,
    tasks: dict,
    folder: Path,
):
    """Write answers.json, print its table and the findings. Process 0 alone."""
    found = {"answers": answers, "compute": {}, "comparisons": settings.comparisons}
    if settings.comparisons:
        found["compute"] = _compute(settings, students, teacher, tasks, folder)
    (folder / FILE).write_text(json.dumps(found))
    _report(answers)
    if settings.comparisons:
        # Over this run alone; launch/sweep.py tests the comparisons over several seeds
        report_sweep(folder, [folder])


def report_sweep(folder: Path, workdirs: list[Path]):
    """Print the findings over finished runs, and write them to folder/findings.txt and findings.json."""
    if not first_process():
        return
    found = findings(workdirs)
    table = findings_table(found, len(workdirs))
    Console(width=TABLE_WIDTH).print(table)
    with (folder / "findings.txt").open("w") as file:
        Console(width=TABLE_WIDTH, file=file).print(table)
    (folder / "findings.json").write_text(json.dumps(as_json(found), indent=1) + "\n")


def _measured(settings: DistillSettings, stages: DistillStages, made: dict[str, Made], texts):
    """title -> answer_tasks' shares of that policy; {} where no task has questions. texts: (hash, tasks)."""
    answers, tasks = {}, texts[1]
    if not any(task.questions for task in tasks.values()):
        return answers
    for title, policy in made.items():
        measure = functools.partial(answer_tasks, settings.evaluation, tasks, seed=settings.seed)
        answers[title] = stages.measured(policy, texts, measure)
        shown = (f"{n} {mean:.1%}" for n, (mean, *_) in intervals(answers[title]).items())
        say(f"{title} answers right: {', '.join(shown)}")
    return answers


def _compute(
    settings: DistillSettings,
    students: dict[str, Made],
    teacher: Made | None,
    tasks: dict,
    workdir: Path,
):
    """student -> the floating-point operations of its training, with the teacher's and the sampling's."""
    taught, counts = teacher and read_config(teacher.path), {}
    texts = dict(texts=sum(len(task.train) for task in tasks.values()), answered=0)
    if settings.text is not None:
        asked = settings.text
        # An upper bound: the lengths of the completions are not saved
        texts["answered"] = (
            asked.num_prompts * asked.samples_per_prompt * asked.max_completion_length
        )
    for name, student in settings.students.items():
        config = read_config(students[name].path)
        counts[name] = compute.distilled(student, config, taught, **texts)
    for name, student in settings.reinforced.items():
        metrics, config = workdir / "metrics.jsonl", read_config(students[name].path)
        counts[name] = compute.reinforced(student, config, metrics, name)
    return counts


def _plot(settings: DistillSettings, workdir: Path):
    """Draw the curves of each distilled student in workdir/NAME.png."""
    for name in settings.students:
        path = workdir / f"{name}.png"
        plot_curves(workdir / "metrics.jsonl", path, phase=name, names=CURVES)


def _report(answers: dict):
    """Print the table of right answers."""
    rows = {title: intervals(found) for title, found in answers.items()}
    names = list(next(iter(rows.values())))
    forms, columns = dict.fromkeys(names, ".1%"), {name: name for name in names}
    title = "right answers to held-out questions; of requests, how far they help"
    how = dict(title=title, first_column="policy")
    make_console().print(stages_table(rows, forms, columns, **how))
