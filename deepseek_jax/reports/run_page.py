"""Writes report.html: what a recipe says of its run, with what is in the files of every run."""

import dataclasses

from etils.epath import Path

from deepseek_jax.files import read_json, write_whole
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.reports.html_report import report_page
from deepseek_jax.reports.page import Page
from deepseek_jax.training.completions import FILE, read_completions
from deepseek_jax.training.lineage import content_hash
from deepseek_jax.training.metrics import read_phases

# The input in a stage.json that is the stage whose parameters it begins from; others have the stage's name
PARENT = "parent"
# The groups of a step of training on the page
OF_STEP = 4


def write_report(workdir: Path, page: Page, headings: dict[str, str]) -> None:
    """Write workdir/report.html: the page, with the curves and the completions of training. Process 0 alone.

    headings: phase -> its title, in order; other phases are those of a base.
    """
    if not first_process():
        return
    phases = read_phases(workdir / "metrics.jsonl")
    page = dataclasses.replace(
        page,
        curves={title: phases[phase] for phase, title in headings.items() if phase in phases},
        base_curves={phase: of for phase, of in phases.items() if phase not in headings},
        samples=[*page.samples, *training_samples(workdir / FILE, headings)],
    )
    # Whole: a reader of the page never meets half of it
    write_whole(workdir / "report.html", report_page(page))


def training_samples(path: Path, headings: dict[str, str]):
    """Page.samples of the first, the middle and the last step that each phase has logged completions of."""
    steps = {}
    for group in read_completions(path):
        steps.setdefault(group["phase"], {}).setdefault(group["step"], []).append(group)
    shown = []
    for phase, of_phase in steps.items():
        logged = sorted(of_phase)
        chosen = sorted({logged[0], logged[(len(logged) - 1) // 2], logged[-1]})
        shown += [
            _training_group(group, headings.get(phase, phase))
            for step in chosen
            for group in of_phase[step][:OF_STEP]
        ]
    return shown


def _training_group(group, phase):
    completions = [{"total": each["reward"]} | each for each in group["completions"]]
    return {
        "stage": "training",
        "phase": phase,
        "step": group["step"],
        "prompt": group["prompt"],
        "answer": group["answer"],
        "completions": completions,
    }


def lineage(workdir: Path, stages: dict[str, str]):
    """Page.stages: the content of each stage.json, with the stage that made each input.

    stages: name of each stage -> its title; a stage comes after those that it is made from. A stage is
    outdated if one that it is made from was run again since, or is outdated itself.
    """
    records = {name: _read(workdir / name / "stage.json") for name in stages}
    found = {name: record for name, record in records.items() if record is not None}
    by_hash = {content_hash(record["hash"]): name for name, record in found.items()}
    shown = {}
    for name, title in stages.items():
        record = records[name] or {"hash": None, "inputs": {}, "complete": False}
        inputs = {key: (digest, by_hash.get(digest)) for key, digest in record["inputs"].items()}
        shown[name] = dict(name=name, title=title, hash=record["hash"], inputs=inputs)
        made_from = [made for key, (_, made) in inputs.items() if key == PARENT or key in stages]
        shown[name]["state"] = _state(records[name], made_from, shown)
    return list(shown.values())


def is_measured(workdir: Path, measurement: str, stage: dict):
    """Whether a measurement, a folder below workdir, is of a stage of `lineage` as it is now."""
    record = _read(workdir / measurement / "stage.json")
    if stage["state"] != "complete" or record is None or not record["complete"]:
        return False
    # A record holds hashes of its inputs, and here the input is itself a hash, the stage's
    return record["inputs"][PARENT] == content_hash(stage["hash"])


def _state(record, made_from, earlier):
    """The state of a stage in words. made_from: the names of its inputs that are stages, None for one that is
    there no more. earlier: the stages before this one, by name.
    """
    if record is None:
        return "not begun"
    if not record["complete"]:
        return "not finished"
    # None: no stage has the hash of this input any more, so that stage was run again
    if any(name is None or earlier[name]["state"] != "complete" for name in made_from):
        return "outdated"
    return "complete"


def _read(path):
    return read_json(path) if path.exists() else None
