"""The driver of all recipes: it checks, plans, runs and resumes a list of stages.

A recipe is a module with SETTINGS, with `stages(settings)`, which reads no data, and with
`page(results)` and `report(results)`, which take a results.Results.

A run's folder has a folder for each stage. In it are:

- stage.json: the hashes of everything that the stage depends on;
- checkpoints of its training;
- params or adapter, written once;
- scores.json, for a measurement.

run.json in the run's folder names the stage that produces the run's policy.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jax.sharding import Mesh

from deepseek_jax.checkpoint import is_adapter, is_orbax, save_adapter, save_orbax
from deepseek_jax.checkpoint.left import RUN
from deepseek_jax.costs.chips import GIB
from deepseek_jax.costs.program import Program, argument_bytes
from deepseek_jax.errors import CannotPlan, at
from deepseek_jax.files import write_whole
from deepseek_jax.models import ModelConfig, count_params
from deepseek_jax.models.adapter_modules import adapter_axes
from deepseek_jax.models.adapters import Adapted
from deepseek_jax.named_code import code_digests
from deepseek_jax.parallel.host_memory import device_bytes
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.progress import waiting_for
from deepseek_jax.recipes.checks import check_slots, largest_batch
from deepseek_jax.recipes.kinds.paying import Paid
from deepseek_jax.recipes.page import write_page
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.stage import SCORES, Context, Stage
from deepseek_jax.recipes.workdir import Claim
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.lineage import (
    CHECKPOINTS,
    RECORD,
    Inputs,
    Standing,
    renew,
    run_stage,
    standing,
)
from deepseek_jax.training.run import Run, leave_if_asked
from deepseek_jax.training.settings import LoopSettings

# The check of memory traces every program. It is skipped if a device has room for this many float32
# copies of the largest model's parameters and of the largest batch
SMALL = 256


def configs_of(stages: list[Stage]) -> dict[str, ModelConfig]:
    """Return the ModelConfig of the policy that each stage produces.

    It reads only the config and small files.

    Returns:
        {name of the stage: ModelConfig}, without stages that have no policy.
    """
    found = {}
    for stage in stages:
        if not stage.start and stage.origin is None:
            continue
        config = found[stage.start] if stage.start else stage.origin.config()
        with stage.at():
            found[stage.name] = stage.leaves(config)
    return found


def _model(stage: Stage, left: Mapping[str, ModelConfig]) -> ModelConfig | None:
    """Return the ModelConfig that a stage works with; None for a stage without a policy."""
    config = left.get(stage.start or stage.name)
    return None if config is None else stage.model(config)


def check(stages: list[Stage], mesh: Mesh) -> dict[str, ModelConfig]:
    """Raise ValueError if settings do not fit the mesh or their model.

    Returns:
        The result of configs_of(stages).
    """
    left = configs_of(stages)
    # Training stages first: a measurement may take its settings from them
    for stage in sorted(stages, key=lambda stage: stage.measures):
        with stage.at():
            config = _model(stage, left)
            check_slots(stage.settings, stage.sampling_mesh(mesh))
            if stage.adapter is not None:
                with at("adapter"):
                    # Raises for a target that the model does not have
                    adapter_axes(config, stage.adapter.targets)
            stage.check(config, mesh)
    return left


def plan(recipe: ModuleType, settings: Any, mesh: Mesh) -> list[Program]:
    """Return the programs that a run of the recipe compiles.

    They are in the order of the stages, with measurements last. A program that several stages share
    is listed once.
    """
    stages = recipe.stages(settings)
    return _programs(stages, mesh, check(stages, mesh))


def _programs(stages, mesh, left):
    planned, roots = {}, {}
    for stage in stages:
        roots[stage.name] = roots[stage.start] if stage.start else stage.origin
    for stage in sorted(stages, key=lambda stage: stage.measures):
        with stage.at():
            programs = stage.programs(_model(stage, left), mesh, left)
        root = roots[stage.name]
        for program in programs:
            own = dataclasses.replace(
                program,
                settings=stage.settings,
                path=stage.config_path.removeprefix("config").lstrip("."),
                model_path=".".join(filter(None, (root.path if root else "", "model"))),
            )
            planned.setdefault(program.name, own)
    return list(planned.values())


def check_memory(programs: list[Program]):
    """Raise ValueError, naming the fields, if a program's arguments exceed a device's memory.

    The arrays that wait on the device meanwhile count too. This is only a part of what a program
    needs, but it is known without creating an array.
    """
    room = device_bytes()
    for program in programs:
        # Results of an earlier program do not count here: that program's arguments contain them, or
        # are larger
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


class _Running:
    """A run in progress: its stages, and what they share."""

    def __init__(self, recipe: ModuleType, settings: Any, run: Run):
        self.recipe, self.run = recipe, run
        self.stages = recipe.stages(settings)
        self.opened, self.memo, self.held = contextlib.ExitStack(), {}, {}
        self.policies: dict[str, Policy] = {}
        self.results = Results(settings, self.stages, run.folder)

    def context(self, stage: Stage) -> Context:
        """Return the Context of a stage."""
        return Context(
            stage,
            self.run.of(stage.name, self.run.folder / stage.name / CHECKPOINTS),
            self.run.folder,
            {each.name: each for each in self.stages},
            self.policies,
            self.opened,
            self.memo,
            self.held,
        )

    def check_settings(self):
        """Raise ValueError if settings do not fit the mesh, their model or the checkpoint.

        Of the checkpoint it reads only small files. Call it within self.opened.
        """
        with waiting_for("checking the settings and the model"):
            for stage in self.stages:
                if not stage.start and stage.origin is None:
                    continue
                found = self.policies
                policy = found[stage.start] if stage.start else stage.origin.policy(self.opened)
                with stage.at():
                    config = stage.leaves(policy.config)
                found[stage.name] = dataclasses.replace(policy, config=config)
            self.left = check(self.stages, self.run.mesh)

    def check_data(self):
        """Raise ValueError for other mistakes that show before the first stage runs.

        They are mistakes in memory, rewards and data. It opens the rewards and the data. Call it
        within self.opened.
        """
        if self._may_not_fit(device_bytes()):
            # If no plan is possible, the checks below say what is wrong
            with (
                waiting_for("checking the memory that the programs need"),
                contextlib.suppress(CannotPlan),
            ):
                check_memory(_programs(self.stages, self.run.mesh, self.left))
        # Training data before the data of measurements
        for stage in sorted(self.stages, key=lambda stage: stage.measures):
            leave_if_asked("the start")
            with stage.at(), waiting_for(f"checking the data of {stage.name}"):
                stage.check_data(self.context(stage))

    def _may_not_fit(self, room):
        sources = (source for stage in self.stages for source in stage.sources)
        if not self.left or any(isinstance(each, Paid) and each.models() for each in sources):
            return bool(room)
        params = max(map(count_params, {*self.left.values()}))
        tokens = max(largest_batch(stage.settings) for stage in self.stages)
        return room and SMALL * 4 * (params + tokens) > room

    def inputs(self, stage: Stage, hashes: Mapping[str, str]) -> Inputs:
        """Return what a stage's result depends on: the one rule for all stages.

        Args:
            stage: The stage.
            hashes: {name: hash} of the earlier stages.
        """
        context, settings = self.context(stage), stage.settings
        hashed = {
            "settings": [type(stage).__name__, settings, stage.seed, stage.adapter],
            "code": code_digests(settings, stage.config_path),
            "data": [source.covers(context) for source in stage.sources],
        }
        about = {"start": stage.start}
        if stage.start:
            hashed["parent"] = hashes[stage.start]
        elif stage.origin is not None:
            hashed["origin"] = stage.origin.covers()
            about["checkpoint"] = stage.origin.checkpoint
        hashed |= {name: hashes[name] for name in stage.reads}
        if stage.measures or not isinstance(settings, LoopSettings):
            return Inputs(hashed, about=about)
        return Inputs(hashed, settings.num_steps, settings.continues(), about)

    def standings(self, folder: Path | None = None) -> dict[str, tuple[Inputs, Standing]]:
        """Return {stage: (its inputs, its Standing)}.

        Args:
            folder: The folder with the stages' records; by default the run's folder.
        """
        hashes, found = {}, {}
        for stage in self.stages:
            with stage.at():
                inputs = self.inputs(stage, hashes)
            stands = standing(folder or self.run.folder, stage.name, inputs)
            hashes[stage.name], found[stage.name] = stands.record["hash"], (inputs, stands)
        return found

    def check_drops(self, standings: Mapping[str, tuple[Inputs, Standing]], claim: Claim, folder):
        """Raise ValueError, listing the stages, if a run would delete results of an earlier one."""
        grown = {name for name, (_, stands) in standings.items() if stands.grows}
        dropped = []
        for stage in self.stages:
            stands = standings[stage.name][1]
            follows = stage.measures and stage.start in grown and stands.changed == ["parent"]
            # Nothing is lost if the stage has written only its record
            files = {path.name for path in (folder / stage.name).glob("*")}
            if stands.drops and not follows and files != {RECORD}:
                state = "complete" if stands.before["complete"] else "begun"
                dropped.append(f"{stage.name} ({state}): {', '.join(stands.changed)}")
        if dropped:
            fields = "".join(f"\n  {field}" for field in claim.differences)
            raise ValueError(
                f"{folder} has stages that are of other inputs, and is left as it is:"
                + "".join(f"\n  {stage}" for stage in dropped)
                + (f"\nchanged fields:{fields}" if fields else "")
                + "\ngive --redo to run these stages anew and keep the others, set these fields back, or "
                "give another --workdir"
            )

    def go(self, standings):
        """Run, in order, the stages that are not complete."""
        scores = self.results.scores()
        for number, stage in enumerate(self.stages, start=1):
            leave_if_asked(f"stage {stage.name}")
            title = f" ({stage.title})" if stage.title not in ("", stage.name) else ""
            place = f"running stage {number} of {len(self.stages)}, {stage.name}{title}"
            if not stage.start:
                # A stage without a start reads nothing that is on the devices
                self.held.clear()
            with waiting_for(place):
                self._keep(stage, standings[stage.name][0])
            # A stage that was complete has no new scores
            if stage.measurements() and (found := self.results.scores()) != scores:
                scores = found
                self.run.writer.write_scores(scores)
                # Written now, so that the page can be read before the run ends
                if first_process():
                    write_page(self.results, self.recipe.page(self.results))

    def _keep(self, stage, inputs):
        context = self.context(stage)

        def make(folder):
            # A run that is resumed after a kill may call make again, with everything saved
            if stage.is_left(folder):
                return
            result = stage.run(context)
            if stage.measures and first_process():
                write_whole(folder / SCORES, json.dumps(result, indent=1))
            elif isinstance(result, Policy):
                with waiting_for(f"saving the parameters of {stage.name}"):
                    _save(context, result)
                self.held[stage.name, True] = result

        run_stage(self.run.folder, stage.name, inputs, make)


def _save(context: Context, policy: Policy):
    """Save the policy that a stage's run returned; with an adapter, only the adapter."""
    if isinstance(policy.params, Adapted):
        base, target = context.path_of(context.stage.start), context.own / "adapter"
        if not is_adapter(target):
            save_adapter(target, policy.config, policy.params, base, policy.files())
    elif not is_orbax(context.own / "params"):
        save_orbax(context.own / "params", policy.config, policy.params, policy.files())


def describe(
    recipe: ModuleType, settings: Any, run: Run, claim: Claim, folder: Path, redo: bool = False
) -> str:
    """Check a run in the way it checks itself before its first stage, and describe its data.

    Args:
        recipe: The recipe's module.
        settings: The settings of the config.
        run: A Run with a folder for the check.
        claim: The claim on the folder of the run that is checked.
        folder: The folder of the run that is checked.
        redo: True if the run may delete the results of changed stages.

    Returns:
        A description of the run's data, in words.

    Raises:
        ValueError: The run would raise it before its first stage.
    """
    running = _Running(recipe, settings, run)
    with running.opened:
        running.check_settings()
        running.check_data()
        if not redo and _has_begun(running.stages, folder):
            running.check_drops(running.standings(folder), claim, folder)
        return _described(running)


def describe_data(recipe: ModuleType, settings: Any, folder: Path) -> str:
    """Describe the data of a run in words, without a device and without the run's checkpoints."""
    running = _Running(recipe, settings, Run(None, folder, None))
    with running.opened, at("config"):
        return _described(running)


def _described(running):
    sources = [(s, running.context(stage)) for stage in running.stages for s in stage.sources]
    found = [source.describe(context) for source, context in sources]
    return "; ".join(filter(None, dict.fromkeys(found)))


def _has_begun(stages, folder):
    return any((folder / stage.name / RECORD).exists() for stage in stages)


def run(
    recipe: ModuleType, settings: Any, run: Run, claim: Claim | None = None, redo: bool = False
):
    """Run a recipe: check all stages, run those that are not complete, in order, and report.

    All checks come before the first stage runs.

    Args:
        recipe: The recipe's module.
        settings: The settings of the config.
        run: The Run; its folder has the stages' folders.
        claim: The claim on the run's folder. The folder is marked once it is clear that no results
            will be deleted, or that redo allows it. None for a folder without a mark.
        redo: True to delete, and run again, the stages with changed inputs.
    """
    claim = Claim([], lambda: None) if claim is None else claim
    running = _Running(recipe, settings, run)
    with running.opened:
        # A mistake must be named before anything is written
        with waiting_for("checking the config, the data and the checkpoints"):
            running.check_settings()
            begun = _has_begun(running.stages, run.folder)
            standings = running.standings() if begun else {}
            complete = begun and all(stands.complete for _, stands in standings.values())
            if not complete:
                running.check_data()
                standings = standings or running.standings()
            if not redo:
                running.check_drops(standings, claim, run.folder)
        claim.accept()
        if not complete:
            # Dependent stages first: an interruption here must leave no stage without its inputs
            for name, (_, stands) in reversed(standings.items()):
                if stands.changed:
                    renew(run.folder, name, stands)
            if first_process():
                about = {"stage": left_by(running.stages)}
                write_whole(run.folder / RUN, json.dumps(about) + "\n")
            running.go(standings)
    run.writer.close()
    with waiting_for("drawing up the report"):
        recipe.report(running.results)
        if first_process():
            # Again: the page may show what the report has computed
            write_page(running.results, recipe.page(running.results))


def left_by(stages: list[Stage]) -> str | None:
    """Return the name of the stage that the run is for; None if there are several.

    It is the training stage that no other training stage begins from or reads. Stages that produce
    no policy count only if all such stages produce none.
    """
    trains = [stage for stage in stages if not stage.measures]
    used = {stage.start for stage in trains} | {name for stage in trains for name in stage.reads}
    ends = [stage for stage in trains if stage.name not in used]
    names = [stage.name for stage in ends if stage.leaves_policy] or [stage.name for stage in ends]
    return names[0] if len(names) == 1 else None
