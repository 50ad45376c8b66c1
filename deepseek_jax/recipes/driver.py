"""The one driver: a recipe is a list of stages, which is checked, planned, run and resumed here.

A recipe is a module with SETTINGS, `stages(settings)`, which reads no data, and `page(results)` and
`report(results)` of results.Results. A run has a folder for each stage: stage.json, the hashes of all that it
depends on; checkpoints; params or adapter, which are written once; scores.json of a measurement. run.json
names the stage whose policy the run is for.
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

# A run is not planned to see whether it fits, which traces every program, where this many float32 copies of
# its parameters and of its largest batch would
SMALL = 256


def configs_of(stages: list[Stage]) -> dict[str, ModelConfig]:
    """The ModelConfig of the policy that each stage leaves, as the config and small files say it."""
    found = {}
    for stage in stages:
        if not stage.start and stage.origin is None:
            continue
        config = found[stage.start] if stage.start else stage.origin.config()
        with stage.at():
            found[stage.name] = stage.leaves(config)
    return found


def _model(stage: Stage, left: Mapping[str, ModelConfig]) -> ModelConfig | None:
    """The ModelConfig with which a stage works; None where it has no policy."""
    config = left.get(stage.start or stage.name)
    return None if config is None else stage.model(config)


def check(stages: list[Stage], mesh: Mesh) -> dict[str, ModelConfig]:
    """Raise ValueError where settings do not fit the mesh or their model: -> configs_of(stages)."""
    left = configs_of(stages)
    # What is learned before what is measured, whose settings may be taken from it
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
    """The programs of all stages in their order, those that measure last, and once, though many stages do."""
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
    """Raise ValueError, naming the fields, where what a program is called with exceeds a device's memory.

    It is a part of what the program needs, and known without an array.
    """
    room = device_bytes()
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


class _Running:
    """A run under way: its stages, and what they share."""

    def __init__(self, recipe: ModuleType, settings: Any, run: Run):
        self.recipe, self.run = recipe, run
        self.stages = recipe.stages(settings)
        self.opened, self.memo, self.held = contextlib.ExitStack(), {}, {}
        self.policies: dict[str, Policy] = {}
        self.results = Results(settings, self.stages, run.folder)

    def context(self, stage: Stage) -> Context:
        """What a stage gets."""
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
        """Raise ValueError where settings do not fit the mesh, their model, or the checkpoint's small files.
        Within self.opened.
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
        """Raise ValueError for what else can be known to be wrong before the first stage runs: of the memory,
        the rewards and the data, which it opens. Within self.opened.
        """
        if self._may_not_fit(device_bytes()):
            # What cannot be planned says below what is wrong
            with (
                waiting_for("checking the memory that the programs need"),
                contextlib.suppress(CannotPlan),
            ):
                check_memory(_programs(self.stages, self.run.mesh, self.left))
        # Data that are learned before those that are measured
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
        """What a stage's result depends on: the one rule. hashes: of the stages before."""
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
        """{stage: (its inputs, how it stands)}. folder: where their records are; default the run's."""
        hashes, found = {}, {}
        for stage in self.stages:
            with stage.at():
                inputs = self.inputs(stage, hashes)
            stands = standing(folder or self.run.folder, stage.name, inputs)
            hashes[stage.name], found[stage.name] = stands.record["hash"], (inputs, stands)
        return found

    def check_drops(self, standings: Mapping[str, tuple[Inputs, Standing]], claim: Claim, folder):
        """Raise ValueError, with the list of the stages, where to run would drop what they have left."""
        grown = {name for name, (_, stands) in standings.items() if stands.grows}
        dropped = []
        for stage in self.stages:
            stands = standings[stage.name][1]
            follows = stage.measures and stage.start in grown and stands.changed == ["parent"]
            # One that was cut short before it left anything is no loss
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
        """Run the stages that are left, in order."""
        scores = self.results.scores()
        for number, stage in enumerate(self.stages, start=1):
            leave_if_asked(f"stage {stage.name}")
            title = f" ({stage.title})" if stage.title not in ("", stage.name) else ""
            place = f"running stage {number} of {len(self.stages)}, {stage.name}{title}"
            if not stage.start:
                # No stage that begins a line needs what is on the devices
                self.held.clear()
            with waiting_for(place):
                self._keep(stage, standings[stage.name][0])
            # A stage that is not run again has measured nothing new
            if stage.measurements() and (found := self.results.scores()) != scores:
                scores = found
                self.run.writer.write_scores(scores)
                # After every stage, so that the page can be read before the run ends
                if first_process():
                    write_page(self.results, self.recipe.page(self.results))

    def _keep(self, stage, inputs):
        context = self.context(stage)

        def make(folder):
            # A run that was killed after the last save calls make again
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
    """Save the policy that a stage's run returned; of one with an adapter the adapter alone."""
    if isinstance(policy.params, Adapted):
        base, target = context.path_of(context.stage.start), context.own / "adapter"
        if not is_adapter(target):
            save_adapter(target, policy.config, policy.params, base, policy.files())
    elif not is_orbax(context.own / "params"):
        save_orbax(context.own / "params", policy.config, policy.params, policy.files())


def describe(
    recipe: ModuleType, settings: Any, run: Run, claim: Claim, folder: Path, redo: bool = False
) -> str:
    """Open what a run opens before its first stage: -> what its data are, in words. Raises ValueError as a
    run does before it. run: in a folder for the check. folder, claim: of the run that is checked.
    """
    running = _Running(recipe, settings, run)
    with running.opened:
        running.check_settings()
        running.check_data()
        if not redo and _has_begun(running.stages, folder):
            running.check_drops(running.standings(folder), claim, folder)
        return _described(running)


def describe_data(recipe: ModuleType, settings: Any, folder: Path) -> str:
    """What the data of a run are, in words, on no device and without its checkpoints."""
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
    """Check all stages before the first one runs; run those that are left, in order; report.

    claim: of the run's folder, which is marked once it is clear that nothing is to be dropped; None for a
    folder that has no mark. redo: drop the stages whose inputs have changed.
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
            # Those that build on others first: a start that is cut short must leave none without its inputs
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
            # It may have what the report has found
            write_page(running.results, recipe.page(running.results))


def left_by(stages: list[Stage]) -> str | None:
    """The stage that a run is for: the one whose policy, or else whose result, no other stage begins from or
    reads; None where there are several.
    """
    trains = [stage for stage in stages if not stage.measures]
    used = {stage.start for stage in trains} | {name for stage in trains for name in stage.reads}
    ends = [stage for stage in trains if stage.name not in used]
    names = [stage.name for stage in ends if stage.leaves_policy] or [stage.name for stage in ends]
    return names[0] if len(names) == 1 else None
