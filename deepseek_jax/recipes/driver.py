"""The one driver: a recipe is a list of stages, which is checked, planned, run and resumed here.

A kind of stage is a file of recipes.kinds. A recipe adds a Job: its list, and what its stages share.
"""

import dataclasses

from deepseek_jax.costs.chips import GIB
from deepseek_jax.costs.program import Program, argument_bytes
from deepseek_jax.errors import at
from deepseek_jax.files import read_json
from deepseek_jax.parallel.host_memory import device_bytes
from deepseek_jax.progress import waiting_for
from deepseek_jax.recipes.job import Job, Work
from deepseek_jax.recipes.start import check_slots
from deepseek_jax.training.run import leave_if_asked


def check(job: Job):
    """Raise ValueError where a stage's settings do not fit the mesh or its model."""
    with at("config"):
        check_slots(job.settings, job.sampling_mesh())
        job.begin()
    for work in job.works():
        with work.at():
            work.stage.kind.check(work)


def plan(job: Job) -> list[Program]:
    """The programs of all stages in their order, those that measure last, and once, though many stages do."""
    check(job)
    planned = {}
    for work in sorted(job.works(), key=lambda work: work.stage.kind.is_measure):
        with work.at():
            programs = work.stage.kind.compiles(work)
        for program in programs:
            own = dataclasses.replace(
                program,
                settings=work.settings,
                path=job.path_of(work.stage),
                model_path=job.model_path_of(work.stage),
            )
            planned.setdefault(program.name, own)
    return list(planned.values())


def _when_checked(work: Work):
    """Data that are learned before those that are measured, and last what writes a dataset."""
    return work.stage.kind.builds_data, work.stage.kind.is_measure


def describe(job: Job):
    """Open what a run opens before its first stage: -> what its data are, in words. Raises ValueError as
    check_whole does.
    """
    with job.opened:
        check_whole(job)
        with at("config"):
            return job.describe_data()


def held_out_scores(job: Job):
    """{measurement: {score: [mean, low, high]}} of what a run has measured so far, in order.

    The last measurement of a complete run is of what it leaves.
    """
    files = {name: job.run.folder / file for name, file in job.measurements().items()}
    return {name: job.scores_of(read_json(file)) for name, file in files.items() if file.exists()}


def check_memory(job: Job):
    """Raise ValueError, naming the fields, where what a program is called with exceeds a device's memory.

    It is a part of what the program needs, and known without an array: the plan's own shapes.
    """
    room = device_bytes()
    try:
        programs = plan(type(job)(job.settings, job.mesh)) if room else []
    # The run's own check follows, and says in its words what is wrong
    except ValueError:
        return
    for program in programs:
        # What an earlier program returns is in that one's arguments, or is smaller
        state, *batch = program.arguments if not program.needs else ((),)
        parts = argument_bytes(state), argument_bytes(batch), program.beside_bytes
        if sum(parts) > room:
            held, rows, others = (f"{part / GIB:,.2f} GiB" for part in parts)
            path = ".".join(filter(None, ("config", program.path)))
            raise ValueError(
                f"{path}: {program.name!r} does not fit in a device's {room / GIB:,.2f} GiB: parameters and "
                f"optimizer state take {held}, the batch {rows}, and what waits meanwhile {others}; lower "
                f"the sizes of config.{program.model_path}, the rows and lengths of a batch, such as "
                "batch_size, or split them over more devices by config.mesh"
            )


def check_whole(job: Job):
    """Raise ValueError for all that can be known to be wrong before the first stage runs: of the memory, the
    settings, the checkpoints, the rewards and the data, which it opens. Within job.opened.
    """
    with waiting_for("checking the settings and the model"):
        check(job)
    # A plan takes settings that fit each other
    with waiting_for("checking the memory that the programs need"):
        check_memory(job)
    for work in sorted(job.works(), key=_when_checked):
        leave_if_asked("the start")
        with work.at(), waiting_for(f"checking the data of {work.name}"):
            work.stage.kind.check_data(work)
    with at("config"):
        job.check_shared_data()


def run(job: Job):
    """Check all stages before the first one runs; run those that are left, in order; report."""
    if not job.is_complete():
        with job.opened:
            # A mistake must be named before anything is written
            with waiting_for("checking the config, the data and the checkpoints"):
                check_whole(job)
            works, scores = job.works(), held_out_scores(job)
            for number, work in enumerate(works, start=1):
                leave_if_asked(f"stage {work.name}")
                with waiting_for(_in_words(work.stage, number, len(works))):
                    job.keep(work)
                # A stage that is not run again has measured nothing new
                if work.stage.kind.is_measure and (found := held_out_scores(job)) != scores:
                    scores = found
                    job.run.writer.write_scores(scores)
        job.run.writer.close()
        with waiting_for("saving what the run leaves"):
            job.finish()
    with waiting_for("drawing up the report"):
        job.report()


def _in_words(stage, number, stages):
    title = f" ({stage.title})" if stage.title else ""
    return f"running stage {number} of {stages}, {stage.name}{title}"
