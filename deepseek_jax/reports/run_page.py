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
# Most steps of a phase with completions on the page, spread evenly
STEPS = 100
# Number of groups of a step that the part about what was rewarded shows
REWARDED = 2
# The steps of a phase that this part shows
PLACES = "first step", "middle step", "last step"


def write_report(workdir: Path, page: Page, headings: dict[str, str]) -> None:
    """Write workdir/report.html: the page, with the curves and the completions of training.

    Only process 0 writes it.

    Args:
        headings: Phase -> its title, in order; other phases belong to a base.
    """
    if not first_process():
        return
    phases = read_phases(workdir / "metrics.jsonl")
    samples = training_samples(workdir / FILE, headings, phases)
    note = f"Of training, up to {STEPS} steps of each phase, spread evenly." if samples else ""
    page = dataclasses.replace(
        page,
        curves={title: phases[phase] for phase, title in headings.items() if phase in phases},
        base_curves={phase: records for phase, records in phases.items() if phase not in headings},
        samples=[*samples, *page.samples],
        samples_note=f"{note} {page.samples_note}".strip(),
    )
    # A reader never meets half a page
    write_whole(workdir / "report.html", report_page(page))


def training_samples(path: Path, headings: dict[str, str], metrics: dict[str, list[dict]]):
    """Build Page.samples from the completions of each phase's steps, at most STEPS of them.

    The first REWARDED groups of the first, the middle and the last step have a `place`; groups
    that differ in their rewards come first.

    Args:
        path: A file of completions.
        headings: Phase -> its title; a missing phase keeps its name.
        metrics: The result of training.metrics.read_phases.
    """
    groups_by_phase: dict[str, dict[int, list[dict]]] = {}
    for group in read_completions(path):
        groups_by_phase.setdefault(group["phase"], {}).setdefault(group["step"], []).append(group)
    samples = []
    for phase, groups_by_step in groups_by_phase.items():
        steps = sorted(groups_by_step)
        last = len(steps) - 1
        places = dict(zip((steps[last], steps[last // 2], steps[0]), PLACES[::-1], strict=True))
        indices = {round(i * last / (STEPS - 1)) for i in range(STEPS)} if last else {0}
        shown_steps = {steps[i] for i in indices} | places.keys()
        records = {record["step"]: record for record in metrics.get(phase, ())}
        for step in sorted(shown_steps):
            groups = [_training_group(g, headings.get(phase, phase)) for g in groups_by_step[step]]
            if step in places:
                groups.sort(key=_is_equal)
                mark = {"place": places[step], "remark": _remark(records.get(step, {}))}
                groups[:REWARDED] = [group | mark for group in groups[:REWARDED]]
            samples += groups
    return samples


def _is_equal(group):
    """Return True if a group's rewards are all equal, so that training learns nothing from it."""
    return not any(completion["advantage"] for completion in group["completions"])


def _remark(record):
    """Describe the rewards of a whole step from its metrics."""
    texts = {"reward": "mean reward {:.2f}", "all_equal_share": "{:.0%} of groups without a signal"}
    return " · ".join(
        text.format(record[name]) for name, text in texts.items() if record.get(name) is not None
    )


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
