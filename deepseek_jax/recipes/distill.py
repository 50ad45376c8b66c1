"""Distillation of a teacher into students of other architectures (arXiv:2501.12948, section 2.4), in order.

teacher, a checkpoint or made first -> its right answers -> what students start from -> each student, after the
teacher's text and whatever else of it config.students.NAME.loss weighs -> the same questions answered by all.
Students that learn from rewards alone may stand beside them.
"""

import functools
import json

from deepseek_jax.evaluation.report import stages_table
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.recipes.answers import make_console
from deepseek_jax.recipes.distill_data import small_world, transfer_tasks
from deepseek_jax.recipes.distill_scores import answer_tasks, intervals
from deepseek_jax.recipes.distill_settings import DistillSettings
from deepseek_jax.recipes.distill_stages import DistillStages
from deepseek_jax.recipes.lineage import content_hash
from deepseek_jax.recipes.settings import build
from deepseek_jax.training.metrics import MetricsWriter

REDOES_WHAT_CHANGED = True  # and what follows from it: another config may go on in the same workdir


def run(config, mesh, workdir, should_stop):
    """Run the recipe in workdir, or what is left of it. config: ConfigDict of DistillSettings' fields.

    Each stage has a folder with stage.json, what it was made from (see lineage), and params, which
    launch/convert.py reads. answers.json: policy -> task -> the share of right answers of each question.
    """
    settings = build(DistillSettings, config, "config")
    world = small_world(settings.seed, settings.evaluation.num_questions)
    writer = MetricsWriter(workdir)
    stages = DistillStages(settings, world, mesh, workdir, writer, should_stop)
    teacher = None if settings.teacher is None else stages.teacher()
    accepted = None if settings.text is None else stages.text(teacher)
    tasks = transfer_tasks(settings, world, accepted and accepted[1], workdir / "data")
    texts = content_hash([settings.tasks, accepted and accepted[0], settings.seed]), tasks
    answers = {}

    def measured(made, title):
        measure = functools.partial(answer_tasks, settings, tasks)
        answers[title] = stages.measured(made, texts, measure)
        shown = (f"{n} {mean:.1%}" for n, (mean, *_) in intervals(answers[title]).items())
        say(f"{title} answers right: {', '.join(shown)}")

    scored = any(task.questions for task in tasks.values())
    measured = measured if scored else lambda made, title: None
    if teacher is not None:
        measured(teacher, "teacher")
    starts = {name: stages.start(name) for name in settings.starts}
    for name, start in starts.items():
        measured(start, f"start {name}")
    for name, student in settings.built_students().items():
        made = stages.student(name, student, starts[student.start], texts, teacher)
        measured(made, name)
    for name, student in settings.built_reinforced().items():
        measured(stages.reinforced(name, student, starts[student.start]), name)
    writer.close()
    if scored and first_process():
        (workdir / "answers.json").write_text(json.dumps(answers))
        _report(answers)
    say(
        f"complete; metrics.jsonl, and a folder of each stage's lineage and params, are in {workdir}"
    )


def _report(answers):
    """Print the table of right answers."""
    rows = {title: intervals(found) for title, found in answers.items()}
    names = list(next(iter(rows.values())))
    forms = dict.fromkeys(names, ".1%")
    title = "right answers to held-out questions"
    table = stages_table(
        rows, forms, dict(zip(names, names, strict=True)), title=title, first_column="policy"
    )
    make_console().print(table)
