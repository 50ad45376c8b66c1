"""Generate a data set with a teacher (arXiv:2501.12948, section 2.4 and appendix B.3.3).

questions -> add variants, by rule and by the teacher -> sample and score n answers to each
-> write the good ones as a dataset for recipes.sft -> report what each filter removed
"""

import dataclasses
import itertools
import json
from pathlib import Path

from deepseek_jax.files import read_json
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.recipes.generate.asking import QUESTIONS, Ask, Sift, Vary
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.recipes.generate.sources import AskedQuestions, MeasuredOn, SampleRewards
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.short import first_stage
from deepseek_jax.recipes.stage import Stage, StageFolder
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.page import Page
from deepseek_jax.reports.tables import fates_table
from deepseek_jax.synthesis.generated import dataset_folder
from deepseek_jax.synthesis.sift import FATES
from deepseek_jax.synthesis.teacher import read_rows

SETTINGS = GenerateSettings
# The page has the samples of this many prompts
ON_PAGE = 64


def stages(s: GenerateSettings) -> list[Stage]:
    """List the stages: a teacher, its questions with their variants, its samples, and the dataset.

    The teacher is a base or a checkpoint. The dataset has the samples that pass the filters; with
    other filters, a run filters the same samples again.
    """
    questions, rewards = AskedQuestions(s), SampleRewards(s)
    measured_on, teacher = (
        MeasuredOn(s, questions),
        first_stage(s, s.data.template, waiting=(rewards,), name="base"),
    )
    sample_settings = {"data": s.data, "sampling": s.sampling, "chunk_size": s.chunk_size}
    return [
        teacher,
        Vary(
            "questions",
            sample_settings | {"augment": s.augment},
            s,
            questions,
            measured_on,
            seed=s.seed,
            start=teacher.name,
            path="",
        ),
        Ask(
            "samples",
            sample_settings,
            s,
            questions,
            StageFolder("questions"),
            rewards,
            seed=s.seed,
            start=teacher.name,
            path="",
        ),
        Sift("dataset", {"keep": s.keep}, s, rewards, measured_on, StageFolder("samples"), path=""),
    ]


def page(results: Results) -> Page:
    """Build the page, with the samples of the first prompts."""
    rows = itertools.islice(read_rows(results.folder / "samples"), ON_PAGE)
    common_page = run_page(results, "Generation")
    return dataclasses.replace(common_page, samples=[_group(row) for row in rows])


def report(results: Results):
    """Print how many questions and completions each filter removed, and write report.json."""
    folder = results.folder
    if first_process():
        _report(folder, read_json(folder / "questions" / QUESTIONS)["fates"])
    say(f"set config.data.path of recipe 'sft' to {dataset_folder(folder / 'dataset')}")


def _group(row: dict):
    """Return one of Page.samples (reports.page) from a line of the samples."""
    names = {"text": "text", "reward": "total", "parts": "parts", "tokens": "length"}
    names["messages"] = "messages"
    completions = [
        {names[name]: value for name, value in sample.items() if name in names}
        | {"truncated": not sample["finished"]}
        for sample in row["samples"]
    ]
    example = row["example"]
    facts = {"kind": example.get("origin"), "answer": example.get("answer")}
    return facts | {"prompt": example["question"], "completions": completions}


def _report(workdir: Path, fates: dict):
    completions = read_json(workdir / "dataset" / FATES)
    report = {"questions": fates, "completions": completions}
    (workdir / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    console = make_console()
    for subject, counts in report.items():
        console.print(fates_table(f"what became of the {subject}", counts))
