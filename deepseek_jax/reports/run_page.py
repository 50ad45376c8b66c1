"""Write report.html of a run: the recipe's part, and what the files of every run hold."""

import dataclasses

from etils.epath import Path

from deepseek_jax.files import read_json, write_whole
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.reports.html_report import report_page
from deepseek_jax.reports.page import Page
from deepseek_jax.training.completions import FILE, read_completions
from deepseek_jax.training.lineage import content_hash
from deepseek_jax.training.metrics import read_phases

# The input of a stage.json that names the stage it starts from; other inputs have their stage's
# name
PARENT = "parent"
# Number of a training step's groups on the page
OF_STEP = 4


def write_report(workdir: Path, page: Page, headings: dict[str, str]) -> None:
    """Write workdir/report.html: the page, with the curves and the completions of training.

    Only process 0 writes it.

    Args:
        headings: Phase -> its title, in order; other phases belong to a base.
    """
    if not first_process():
        return
    phases = read_phases(workdir / "metrics.jsonl")
    page = dataclasses.replace(
        page,
        curves={title: phases[phase] for phase, title in headings.items() if phase in phases},
        base_curves={phase: records for phase, records in phases.items() if phase not in headings},
        samples=[*page.samples, *training_samples(workdir / FILE, headings)],
    )
    # A reader never meets half a page
    write_whole(workdir / "report.html", report_page(page))


def training_samples(path: Path, headings: dict[str, str]):
    """Build Page.samples from each phase's completions at its first, middle and last logged step.

    Args:
        path: A file of completions.
        headings: Phase -> its title; a missing phase keeps its name.
    """
    groups_by_phase: dict[str, dict[int, list[dict]]] = {}
    for group in read_completions(path):
        groups_by_phase.setdefault(group["phase"], {}).setdefault(group["step"], []).append(group)
    samples = []
    for phase, groups_by_step in groups_by_phase.items():
        logged_steps = sorted(groups_by_step)
        chosen_steps = sorted(
            {logged_steps[0], logged_steps[(len(logged_steps) - 1) // 2], logged_steps[-1]}
        )
        samples += [
            _training_group(group, headings.get(phase, phase))
            for step in chosen_steps
            for group in groups_by_step[step][:OF_STEP]
        ]
    return samples


def _training_group(group, phase):
    completions = [
        {"total": completion["reward"]} | completion for completion in group["completions"]
    ]
    return {
        "stage": "training",
        "phase": phase,
        "step": group["step"],
        "prompt": group["prompt"],
        "answer": group["answer"],
        "completions": completions,
    }


def lineage(workdir: Path, stages: dict[str, str]) -> list[dict]:
    """Build Page.stages from each stage.json, with the stage that made each input.

    A stage is outdated if a stage that it is made from was run again since, or is outdated itself.

    Args:
        stages: Name of each stage -> its title; a stage comes after the stages that it is made
            from.
    """
    records = {name: _read(workdir / name / "stage.json") for name in stages}
    known_records = {name: record for name, record in records.items() if record is not None}
    by_hash = {content_hash(record["hash"]): name for name, record in known_records.items()}
    stage_rows = {}
    for name, title in stages.items():
        record = records[name] or {"hash": None, "inputs": {}, "complete": False}
        inputs = {key: (digest, by_hash.get(digest)) for key, digest in record["inputs"].items()}
        stage_rows[name] = dict(name=name, title=title, hash=record["hash"], inputs=inputs)
        made_from = [
            input_stage
            for key, (_, input_stage) in inputs.items()
            if key == PARENT or key in stages
        ]
        stage_rows[name]["state"] = _state(records[name], made_from, stage_rows)
    return list(stage_rows.values())


def is_measured(workdir: Path, measurement: str, stage: dict) -> bool:
    """Return whether a measurement is of a stage of `lineage` in its present state.

    Args:
        measurement: A folder in workdir.
        stage: One of `lineage`.
    """
    record = _read(workdir / measurement / "stage.json")
    if stage["state"] != "complete" or record is None or not record["complete"]:
        return False
    # A record has hashes of its inputs, and here the input is itself a hash: the stage's
    return record["inputs"][PARENT] == content_hash(stage["hash"])


def _state(record, made_from, earlier):
    """Return the state of a stage in words.

    Args:
        record: Its stage.json, or None.
        made_from: Names of its inputs that are stages; None for an input that is no longer there.
        earlier: The stages before this one, by name.
    """
    if record is None:
        return "not begun"
    if not record["complete"]:
        return "not finished"
    # None: no stage has the hash of this input any more, so its stage was run again
    if any(name is None or earlier[name]["state"] != "complete" for name in made_from):
        return "outdated"
    return "complete"


def _read(path):
    return read_json(path) if path.exists() else None
