"""The page of a run: what its measurements found, with what every run records."""

from deepseek_jax.files import read_json, read_object
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.job import Job
from deepseek_jax.recipes.kinds.pretrain import PRETRAIN
from deepseek_jax.recipes.workdir import BESIDE, MARKER
from deepseek_jax.reports.page import Page
from deepseek_jax.reports.run_page import is_measured, lineage, write_report
from deepseek_jax.training.lineage import content_hash


def write_page(job: Job) -> None:
    """Write report.html of what a run has left so far. Process 0 alone."""
    if not first_process():
        return
    folder = job.run.folder
    stages = {stage["name"]: stage for stage in lineage(folder, job.titles())}
    measured = _measured(job, stages)
    scores = {job.row_of(name): job.scores_of(found) for name, found in measured.items()}
    rows = list(scores)
    marker = folder / MARKER
    config = read_object(marker) if marker.exists() else {}
    digests = {name: config.pop(name) for name in BESIDE if name in config}
    page = Page(
        f"{job.page_title} in {folder.name}",
        scores=scores,
        compared=[(rows[0] if len(rows) > 1 else None, rows[-1])] if rows else [],
        config=config,
        stages=list(stages.values()),
        digests={"config": content_hash(config)} | digests if config else {},
    )
    write_report(folder, job.page(page, measured), _headings(job, stages))


def _measured(job, stages):
    """{measurement: what it found}, without those of an earlier version of a stage."""
    starts = {stage.name: stage.start for stage in job.stages if stage.kind.is_measure}
    found = {}
    for name, file in job.measurements().items():
        path, start = job.run.folder / file, stages.get(starts.get(name))
        if path.exists() and (start is None or is_measured(job.run.folder, name, start)):
            found[name] = read_json(path)
    return found


def _headings(job, stages):
    """{phase: its title} of the stages that train, but for the pre-training of a base."""
    titles, headings = job.titles(), {}
    bases = [stage for stage in job.stages if stage.kind is PRETRAIN and not stage.start]
    of_bases = {job.phase_of(stage).phase for stage in bases}
    for stage in job.stages:
        phase, title = job.phase_of(stage).phase, titles.get(stage.name, stage.name)
        if stage.kind.is_measure or phase in of_bases:
            continue
        state = stages.get(stage.name, {}).get("state")
        said = [
            name
            for name in (stage.name, "outdated" if state == "outdated" else title)
            if name != title
        ]
        headings[phase] = f"{title} ({', '.join(said)})" if said else title
    return headings
