"""Distillation of a teacher into students of other architectures (arXiv:2501.12948, section 2.4).

teacher, a checkpoint or trained first -> accept its right answers -> the students' starts -> train each
student on the accepted texts, by the terms of config.students.NAME.loss -> all policies answer held-out
questions. Students of config.reinforced learn from rewards alone, for comparison.
"""

import json
from pathlib import Path

from rich.console import Console

from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.distill import compute
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.recipes.distill.findings import FILE, as_json, findings, findings_table
from deepseek_jax.recipes.distill.job import MEASURED, REINFORCED, STUDENTS, TEXT, DistillJob
from deepseek_jax.recipes.distill.policies import STARTS, TEACHER, TEACHER_BASE
from deepseek_jax.recipes.distill.scores import intervals
from deepseek_jax.recipes.distill.settings import DistillSettings
from deepseek_jax.recipes.kinds.accept import ACCEPT
from deepseek_jax.recipes.kinds.distil import DISTIL
from deepseek_jax.recipes.kinds.measure import MEASURE
from deepseek_jax.recipes.kinds.pretrain import GIVEN, PRETRAIN
from deepseek_jax.recipes.kinds.reinforce import REINFORCE
from deepseek_jax.recipes.kinds.tune import TUNE
from deepseek_jax.recipes.page import write_page
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.tables import plot_curves, stages_table

SETTINGS = DistillSettings
TABLE_WIDTH = 120  # columns
CURVES = ("loss", "held_out_loss", "soft", "hard", "on_policy")


class Job(DistillJob):
    """A distillation as a config wants it, with its report. answers.json has, for tasks with questions,
    answers: policy -> task -> each question's share of right answers; compute: student -> floating-point
    operations; comparisons: the config's.
    """

    page_title = "Distillation"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.stages = tuple(stages_of(self.settings))

    def ended(self, work):
        if work.stage.kind.is_measure:
            # After every stage, so that the page can be read before the run ends
            write_page(self)

    def describe_data(self):
        # The teacher's answers are not there yet
        return "; ".join(f"{name}: {len(task.train)} texts" for name, task in self.tasks.items())

    def report(self):
        """Draw the curves; write answers.json, print its table and the findings. Process 0 alone."""
        folder = self.run.folder
        if first_process():
            _plot(self.settings, folder)
            answers = {
                self.title_of(name.removeprefix(MEASURED)): made.result
                for name, made in self.made.items()
                if made.result is not None
            }
            if answers:
                self._conclude(answers)
            write_page(self)
        left = "report.html, metrics, curves, and a folder of each stage with its params"
        say(f"complete; {left} are in {folder}")

    def _conclude(self, answers: dict):
        folder, comparisons = self.run.folder, self.settings.comparisons
        found = {"answers": answers, "compute": {}, "comparisons": comparisons}
        if comparisons:
            found["compute"] = self._compute()
        (folder / FILE).write_text(json.dumps(found))
        _report(answers)
        if comparisons:
            # Over this run alone; launch/sweep.py tests the comparisons over several seeds
            report_sweep(folder, [folder])

    def _compute(self):
        """student -> the floating-point operations of its training, with the teacher's and the sampling's."""
        settings, counts, text = self.settings, {}, self.settings.text
        taught = None
        if settings.teacher is not None:
            taught = read_any_config(self.path_of_params(TEACHER))
        answered = 0
        if text is not None:
            # An upper bound: the lengths of the completions are not saved
            answered = text.num_prompts * text.samples_per_prompt * text.max_completion_length
        texts = sum(len(task.train) for task in self.tasks.values())
        for name, student in settings.students.items():
            config = read_any_config(self.path_of_params(f"{STUDENTS}{name}"))
            counts[name] = compute.distilled(
                student, config, taught, texts=texts, answered=answered
            )
        for name, student in settings.reinforced.items():
            config = read_any_config(self.path_of_params(f"{REINFORCED}{name}"))
            metrics = self.run.folder / "metrics.jsonl"
            counts[name] = compute.reinforced(student, config, metrics, name)
        return counts


def stages_of(settings: DistillSettings):
    """The teacher, its texts, the starts, then each student, with what they answer right: [Stage]."""
    found, teacher, text = [], settings.teacher, ()
    if teacher is not None and teacher.path is None:
        found += [Stage(TEACHER_BASE, PRETRAIN), Stage(TEACHER, TUNE, TEACHER_BASE)]
    elif teacher is not None:
        found.append(Stage(TEACHER, GIVEN))
    if settings.text is not None:
        found.append(Stage(TEXT, ACCEPT, TEACHER))
        text = (TEXT,)
    for name, start in settings.starts.items():
        found.append(Stage(f"{STARTS}{name}", GIVEN if start.init_from else PRETRAIN))
    policies = [
        stage.name for stage in found if stage.kind.is_policy and stage.name != TEACHER_BASE
    ]
    found += _measured(settings, policies)
    for name, student in settings.students.items():
        # A student whose loss needs no teacher must not be trained again for another teacher
        reads = (*text, TEACHER) if student.loss.asks_teacher() else text
        found.append(Stage(f"{STUDENTS}{name}", DISTIL, f"{STARTS}{student.start}", reads))
        found += _measured(settings, [found[-1].name])
    for name, student in settings.reinforced.items():
        found.append(Stage(f"{REINFORCED}{name}", REINFORCE, f"{STARTS}{student.start}"))
        found += _measured(settings, [found[-1].name])
    return found


def _measured(settings: DistillSettings, names: list[str]):
    """The stages that measure the policies of these stages; none where no task has questions."""
    asks = any(task.path is None or task.questions for task in settings.tasks.values())
    return [Stage(f"{MEASURED}{name}", MEASURE, name) for name in names if asks]


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
    make_console().print(stages_table(rows, forms, columns, title=title, first_column="policy"))


JOB = Job
