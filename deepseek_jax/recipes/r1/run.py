"""R1-Zero, and R1 in its four stages (arXiv:2501.12948), from one base model, on a toy world or on a user's
own data.

base -> R1-Zero: reinforcement alone, rewarded for right answers and their layout
base -> 1 cold-start fine-tuning on R1-Zero's readable traces -> Dev1
     -> 2 reasoning reinforcement, rewarded for a single language too -> Dev2
        -> rejection sampling: reasoning answers by rules, general ones by a judge (the base, fine-tuned)
base -> 3 fine-tuning on the accepted answers and on good answers to general questions -> Dev3
        Dev3 -> two reward models, of helpfulness and of safety
     -> 4 reinforcement for all scenarios, rewarded by rules and by the reward models -> R1
or (V4's last stage, arXiv:2606.19348), or also, to compare the two:
        Dev3 -> specialists, each reinforced on the questions of one task
     -> 4 distillation from a teacher of each task on the student's own samples -> R1, distilled
Every policy is measured on held-out questions.
"""

import dataclasses

from deepseek_jax.files import read_json
from deepseek_jax.parallel.processes import say
from deepseek_jax.recipes.job import Work
from deepseek_jax.recipes.kinds.accept import ACCEPT
from deepseek_jax.recipes.kinds.judge import TRAIN_JUDGE
from deepseek_jax.recipes.kinds.learn_from import LEARN_FROM
from deepseek_jax.recipes.kinds.measure import MEASURE
from deepseek_jax.recipes.kinds.prefer import PREFER
from deepseek_jax.recipes.kinds.pretrain import GIVEN, PRETRAIN
from deepseek_jax.recipes.kinds.reinforce import REINFORCE
from deepseek_jax.recipes.kinds.tune import TUNE
from deepseek_jax.recipes.page import write_page
from deepseek_jax.recipes.r1.findings import TABLE_WIDTH, report_sweep
from deepseek_jax.recipes.r1.job import MEASURED, R1Job
from deepseek_jax.recipes.r1.samples import side_by_side, stage_groups
from deepseek_jax.recipes.r1.scores import FORMS
from deepseek_jax.recipes.r1.settings import R1Settings
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.preferences import reward_model_table
from deepseek_jax.reports.tables import stages_table
from deepseek_jax.training.lineage import own_seed

SETTINGS = R1Settings
R1 = (
    Stage("base", PRETRAIN, title="base"),
    Stage("zero", REINFORCE, "base", title="R1-Zero"),
    Stage("traces", ACCEPT, "zero", title="traces"),
    Stage("cold_start", TUNE, "base", ("traces",), "Dev1"),
    Stage("reasoning", REINFORCE, "cold_start", title="Dev2"),
    Stage("judge", TRAIN_JUDGE, "base", title="judge"),
    Stage("rejection", ACCEPT, "reasoning", title="accepted"),
    Stage("judged", ACCEPT, "reasoning", ("judge",), "judged"),
    Stage("sft", TUNE, "base", ("rejection", "judged"), "Dev3"),
    Stage("helpfulness_model", PREFER, "sft", title="helpfulness"),
    Stage("safety_model", PREFER, "sft", title="safety"),
    Stage("scenarios", REINFORCE, "sft", ("helpfulness_model", "safety_model"), "R1"),
    Stage("reasoning_teacher", REINFORCE, "sft", title="reasoning teacher"),
    Stage(
        "general_teacher",
        REINFORCE,
        "sft",
        ("helpfulness_model", "safety_model"),
        "general teacher",
    ),
    Stage("distilled", LEARN_FROM, "sft", tuple(R1Settings.teaching()), "R1, distilled"),
)


class Job(R1Job):
    """R1 as a config wants it, with its page."""

    page_title = "R1"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.stages = tuple(stages_of(self.settings))

    def seed_of(self, stage: Stage):
        # The base draws as that of any recipe does, and all policies answer alike
        if stage.kind in (PRETRAIN, GIVEN, MEASURE):
            return self.settings.seed
        return own_seed(self.settings.seed, stage.name)

    def ended(self, work: Work):
        if work.stage.kind.is_measure:
            # After every stage, so that the page can be read before the run ends
            write_page(self)
        elif work.stage.kind in (PREFER, TRAIN_JUDGE):
            make_console().print(reward_model_table(f"{work.name}, held out", work.folder))

    def describe_data(self):
        return f"world {self.world.name}: {len(self.task('reasoning').train)} reasoning questions"

    def report(self):
        """Print the scores and the findings."""
        folder = self.run.folder
        scores = {
            self.row_of(name): self.scores_of(made.result)
            for name, made in self.made.items()
            if made.result is not None
        }
        # A world may lack scores, such as one whose questions name no language
        forms = {n: form for n, form in FORMS.items() if any(n in s for s in scores.values())}
        make_console(width=TABLE_WIDTH).print(stages_table(scores, forms, self._score_names()))
        # Over this run alone; launch/sweep.py tests the findings over several seeds
        report_sweep(folder, [folder], self.settings.last_stages())
        # Again, because the page has the findings too
        write_page(self)
        say(
            f"complete; report.html, and a folder of each stage's lineage and params, are in {folder}"
        )

    def _score_names(self):
        samples = self.settings.evaluation.samples
        return {name: name.replace("@k", f"@{samples}") for name in FORMS}

    def row_of(self, measurement):
        return self.titles()[measurement.removeprefix(MEASURED)]

    def page(self, page, measured):
        samples = {self.row_of(name): found["samples"] for name, found in measured.items()}
        titles = self.titles()
        ends = [titles[name] for name in self.settings.last_stages() if titles[name] in samples]
        # Before the last stage has ended: the latest one
        ends, first = ends or list(samples)[1:][-1:], list(samples)[:1]
        path = self.run.folder / "findings.json"
        complete = all(stage["state"] == "complete" for stage in page.stages)
        findings = read_json(path) if path.exists() and complete else None
        return dataclasses.replace(
            page,
            forms=FORMS,
            names=self._score_names(),
            compared=[(start, end) for start in first for end in ends] or page.compared,
            pairs=side_by_side({title: samples[title] for title in first + ends}),
            samples=stage_groups(samples),
            findings=findings and (findings["heads"], findings["rows"]),
        )


def stages_of(settings: R1Settings):
    """The stages of R1 that a config has, each policy measured after it: [Stage]."""
    blocks = {stage.name: getattr(settings, stage.block or stage.name) for stage in R1}
    there = {name for name, block in blocks.items() if name == "base" or block is not None}
    found = []
    for stage in R1:
        if stage.name not in there:
            continue
        if stage.name == "base" and settings.base is None:
            stage = dataclasses.replace(stage, kind=GIVEN)
        reads = tuple(name for name in stage.reads if name in there)
        if stage.kind is REINFORCE:
            # Those that its rewards name
            paying = settings.models_for(stage.block or stage.name)
            reads = tuple(name for name in reads if name in paying)
        if stage.kind is LEARN_FROM:
            teachers = {teacher.stage for teacher in settings.distilled.teachers.values()}
            reads = tuple(name for name in reads if name in teachers)
        found.append(dataclasses.replace(stage, reads=reads))
        if stage.kind.is_policy:
            found.append(Stage(f"{MEASURED}{stage.name}", MEASURE, stage.name))
    return found


JOB = Job
