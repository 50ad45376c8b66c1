"""Writes report.html from the files that a run of several stages left in its work directory."""

from etils.epath import Path

from deepseek_jax.files import read_json, write_whole
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.reports.html_report import report_page
from deepseek_jax.training.lineage import content_hash
from deepseek_jax.training.metrics import read_phases

# Inputs in a stage.json that are not stages
NOT_STAGES = ("settings", "data", "checkpoint")


def write_report(
    workdir: Path, title: str, stages: dict[str, str], forms: dict, names: dict
) -> None:
    """Write workdir/report.html from the files so far. Process 0 alone.

    stages: name of each stage -> its title; a stage comes after those that it is made from. forms, names: as
    in reports.tables.stages_table.
    """
    if not first_process():
        return
    page = report_page(title, **collect(workdir, stages), forms=forms, names=names)
    # Whole: a reader of the page never meets half of it
    write_whole(workdir / "report.html", page)


def collect(workdir: Path, stages: dict[str, str]):
    """Arguments of report_page: stages, scores, curves, samples, and findings once every stage is complete.

    A stage is outdated if one that it is made from was run again since, or is outdated itself. Scores and
    samples of an outdated stage, or of an earlier version of a stage, are left out.
    """
    shown = _lineage(workdir, stages)
    scores, samples = {}, []
    for stage in shown:
        folder = workdir / "measured" / stage["name"]
        record = _read(folder / "stage.json")
        if stage["state"] != "complete" or record is None or not record["complete"]:
            continue
        # Skip a measurement of an earlier version of the stage. A record holds hashes of its inputs, and here
        # the input is itself a hash, the stage's
        if record["inputs"]["parent"] != content_hash(stage["hash"]):
            continue
        measured = _read(folder / "scores.json")
        scores[stage["title"]] = measured["scores"]
        samples += [
            {"stage": stage["title"]} | group
            for groups in measured["samples"].values()
            for group in groups
        ]
    found = {
        "stages": shown,
        "scores": scores,
        "curves": _curves(workdir, shown),
        "samples": samples,
    }
    findings = _read(workdir / "findings.json")
    if findings is not None and all(stage["state"] == "complete" for stage in shown):
        found["findings"] = findings["heads"], findings["rows"]
    return found


def _lineage(workdir, stages):
    """report_page's stages: the content of each stage.json, with the stage that made each input."""
    records = {name: _read(workdir / name / "stage.json") for name in stages}
    found = {name: record for name, record in records.items() if record is not None}
    by_hash = {content_hash(record["hash"]): name for name, record in found.items()}
    shown = {}
    for name, title in stages.items():
        record = records[name] or {"hash": None, "inputs": {}, "complete": False}
        inputs = {key: (digest, by_hash.get(digest)) for key, digest in record["inputs"].items()}
        shown[name] = dict(name=name, title=title, hash=record["hash"], inputs=inputs)
        shown[name]["state"] = _state(records[name], inputs, shown)
    return list(shown.values())


def _curves(workdir, shown):
    """report_page's curves: heading -> records. Phases that have no stage's name come first."""
    phases = read_phases(workdir / "metrics.jsonl")
    headings = {}
    for stage in shown:
        outdated = ", outdated" if stage["state"] == "outdated" else ""
        headings[stage["name"].replace("/", "_")] = f"{stage['title']} ({stage['name']}{outdated})"
    curves = {phase: records for phase, records in phases.items() if phase not in headings}
    curves |= {headings[phase]: phases[phase] for phase in headings if phase in phases}
    return curves


def _state(record, inputs, earlier):
    """The state of a stage in words. earlier: the stages before this one, by name."""
    if record is None:
        return "not begun"
    if not record["complete"]:
        return "not finished"
    parents = [parent for key, (_, parent) in inputs.items() if key not in NOT_STAGES]
    # None: no stage has the hash of this input any more, so its parent was run again
    if any(parent is None or earlier[parent]["state"] != "complete" for parent in parents):
        return "outdated"
    return "complete"


def _read(path):
    return read_json(path) if path.exists() else None
