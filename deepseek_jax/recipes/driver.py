"""The driver of all recipes: it checks, plans, runs and resumes a list of stages.

A recipe is a module with SETTINGS, with `stages(settings)`, which reads no data, and with
`page(results)` and `report(results)`, which take a results.Results.

A run's folder has a folder for each stage. In it are:

- stage.json: the hashes of everything that the stage depends on;
- checkpoints of its training;
- params or adapter, written once;
- scores.json, for a measurement.

run.json in the run's folder names the stage that produces the run's policy, and what the run ran
with, see run_record. stages.log says when each stage was begun and complete, with its hash.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jax.sharding import Mesh

from deepseek_jax.checkpoint.adapter import is_adapter, save_adapter
from deepseek_jax.checkpoint.orbax_params import is_orbax, save_orbax
from deepseek_jax.costs.chips import GIB
from deepseek_jax.costs.program import Program, argument_bytes
from deepseek_jax.errors import CannotPlan, at
from deepseek_jax.files import write_whole
from deepseek_jax.models.adapter_modules import adapter_axes
from deepseek_jax.models.adapters import AdaptedParams
from deepseek_jax.models.network_config import Network, require_model_config
from deepseek_jax.models.params import count_params
from deepseek_jax.named_code import code_digests
from deepseek_jax.parallel.host_memory import device_bytes
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.progress import waiting_for
from deepseek_jax.recipes.checks import check_slots, largest_batch
from deepseek_jax.recipes.kinds.paying import RewardSource
from deepseek_jax.recipes.live_page import LivePage
from deepseek_jax.recipes.origin import Origin
from deepseek_jax.recipes.page import write_page
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.run_lines import say_end, say_plan, say_wrapped
from deepseek_jax.recipes.run_record import RunRecord, model_facts, start_facts
from deepseek_jax.recipes.stage import SCORES, Context, Stage
from deepseek_jax.recipes.time_left import TimeLeft
from deepseek_jax.recipes.workdir import Claim
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.lineage import (
    CHECKPOINTS,
    RECORD,
    Inputs,
    StageState,
    renew,
    run_stage,
    standing,
)
from deepseek_jax.training.run import Run, leave_if_asked
from deepseek_jax.training.settings import LoopSettings

# {stage: (its inputs, its StageState)}
Standings = Mapping[str, tuple[Inputs, StageState]]
# The check of memory traces every program. It is skipped if a device has room for this many float32
# copies of the largest model's parameters and of the largest batch
SMALL = 256


def configs_of(stages: list[Stage]) -> dict[str, Network]:
    """Return the Network of the policy that each stage produces.

    It reads only the config and small files.

    Returns:
        {name of the stage: Network}, without stages that have no policy.
    """
    configs: dict[str, Network] = {}
    for stage in stages:
        if stage.start:
            config = configs[stage.start]
        elif stage.origin is not None:
            config = stage.origin.config()
        else:
            continue
        with stage.at():
            configs[stage.name] = stage.leaves(config)
    return configs


def _model(stage: Stage, configs: Mapping[str, Network]) -> Network | None:
    """Return the Network that a stage works with; None for a stage without a policy."""
    config = configs.get(stage.start or stage.name)
    return None if config is None else stage.model(config)


def check(stages: list[Stage], mesh: Mesh) -> dict[str, Network]:
    """Raise ValueError if settings do not fit the mesh or their model.

    Returns:
        The result of configs_of(stages).
    """
    configs = configs_of(stages)
    # Training stages first: a measurement may take its settings from them
    for stage in sorted(stages, key=lambda stage: stage.measures):
        with stage.at():
            config = _model(stage, configs)
            check_slots(stage.settings, stage.sampling_mesh(mesh))
            if stage.adapter is not None:
                # An adapter is a part of a policy
                assert config is not None
                with at("adapter"):
                    # Raises for a target that the model does not have
                    adapter_axes(require_model_config(config, "an adapter"), stage.adapter.targets)
            stage.check(config, mesh)
    return configs


def plan(recipe: ModuleType, settings: Any, mesh: Mesh) -> list[Program]:
    """Return the programs that a run of the recipe compiles.

    They are in the order of the stages, with measurements last. A program that several stages share
    is listed once.
    """
    stages = recipe.stages(settings)
    return _programs(stages, mesh, check(stages, mesh))


def _programs(stages, mesh, configs):
    programs_by_name: dict[str, Program] = {}
    origins = _origins(stages)
    for stage in sorted(stages, key=lambda stage: stage.measures):
        with stage.at():
            programs = stage.programs(_model(stage, configs), mesh, configs)
        origin = origins[stage.name]
        for program in programs:
            stage_program = dataclasses.replace(
                program,
                settings=stage.settings,
                path=stage.config_path.removeprefix("config").lstrip("."),
                model_path=".".join(filter(None, (origin.path if origin else "", "model"))),
            )
            programs_by_name.setdefault(program.name, stage_program)
    return list(programs_by_name.values())


def _origins(stages):
    """Return {stage: the origin of the line of stages that it belongs to, or None}."""
    origins: dict[str, Origin | None] = {}
    for stage in stages:
        origins[stage.name] = origins[stage.start] if stage.start else stage.origin
    return origins


def check_memory(programs: list[Program]):
    """Raise ValueError, naming the fields, if a program's arguments exceed a device's memory.

    The arrays that wait on the device meanwhile count too. This is only a part of what a program
    needs, but it is known without creating an array.
    """
    room_bytes = device_bytes()
    if room_bytes is None:
        return
    for program in programs:
        # Results of an earlier program do not count here: that program's arguments contain them, or
        # are larger
        state, *batch = program.arguments if isinstance(program.arguments, tuple) else ((),)
        byte_counts = argument_bytes(state), argument_bytes(batch), program.beside_bytes
        if sum(byte_counts) > room_bytes:
            state_text, batch_text, waiting_text = (
                f"{num_bytes / GIB:,.2f} GiB" for num_bytes in byte_counts
            )
            path = ".".join(filter(None, ("config", program.path)))
            raise ValueError(
                f"{path}: {program.name!r} does not fit in a device's {room_bytes / GIB:,.2f} GiB: "
                f"parameters and optimizer state take {state_text}, the batch {batch_text}, and what waits "
                f"meanwhile {waiting_text}; lower the sizes of config.{program.model_path}, the rows and "
                "lengths of a batch, such as batch_size, or split them over more devices by config.mesh"
            )


class _Running:
    """A run in progress: its stages, and what they share."""

    def __init__(self, recipe: ModuleType, settings: Any, run: Run):
        self.recipe, self.run = recipe, run
        self.stages = recipe.stages(settings)
        self.opened = contextlib.ExitStack()
        self.memo: dict[Hashable, Any] = {}
        self.loaded_policies: dict[Hashable, Policy] = {}
        self.policies: dict[str, Policy] = {}
        self.results = Results(settings, self.stages, run.folder)
        self.record: RunRecord | None = None
        self.page = LivePage(self._write_page)

    def context(self, stage: Stage) -> Context:
        """Return the Context of a stage."""
        return Context(
            stage,
            self.run.of(stage.name, self.run.folder / stage.name / CHECKPOINTS),
            self.run.folder,
            {recipe_stage.name: recipe_stage for recipe_stage in self.stages},
            self.policies,
            self.opened,
            self.memo,
            self.loaded_policies,
        )

    def check_settings(self):
        """Raise ValueError if settings do not fit the mesh, their model or the checkpoint.

        Of the checkpoint it reads only small files. Call it within self.opened.
        """
        with waiting_for("checking the settings, and reading the tokenizer"):
            for stage in self.stages:
                if not stage.start and stage.origin is None:
                    continue
                policies = self.policies
                policy = policies[stage.start] if stage.start else stage.origin.policy(self.opened)
                with stage.at():
                    config = stage.leaves(policy.config)
                policies[stage.name] = dataclasses.replace(policy, config=config)
            self.configs = check(self.stages, self.run.mesh)

    def check_data(self):
        """Raise ValueError for other mistakes that show before the first stage runs.

        They are mistakes in memory, rewards and data. It opens the rewards and the data. Call it
        within self.opened.
        """
        if self._may_not_fit(device_bytes()):
            # If no plan is possible, the checks below say what is wrong
            with (
                waiting_for("checking that the programs fit in memory"),
                contextlib.suppress(CannotPlan),
            ):
                check_memory(_programs(self.stages, self.run.mesh, self.configs))
        # Training data before the data of measurements
        for stage in sorted(self.stages, key=lambda stage: stage.measures):
            leave_if_asked("the start")
            with stage.at(), waiting_for(f"checking the data of {stage.name}"):
                stage.check_data(self.context(stage))

    def _may_not_fit(self, room_bytes):
        sources = (source for stage in self.stages for source in stage.sources)
        if not self.configs or any(
            isinstance(reward_source, RewardSource) and reward_source.models()
            for reward_source in sources
        ):
            return bool(room_bytes)
        num_params = max(map(count_params, {*self.configs.values()}))
        num_tokens = max(largest_batch(stage.settings) for stage in self.stages)
        return room_bytes and SMALL * 4 * (num_params + num_tokens) > room_bytes

    def inputs(self, stage: Stage, hashes: Mapping[str, str]) -> Inputs:
        """Return what a stage's result depends on: the one rule for all stages.

        Args:
            stage: The stage.
            hashes: {name: hash} of the earlier stages.
        """
        context, settings = self.context(stage), stage.settings
        hash_inputs = {
            "settings": [type(stage).__name__, settings, stage.seed, stage.adapter],
            "code": code_digests(settings, stage.config_path),
            "data": [source.covers(context) for source in stage.sources],
        }
        start_fields: dict[str, str | None] = {"start": stage.start}
        if stage.start:
            hash_inputs["parent"] = hashes[stage.start]
        elif stage.origin is not None:
            hash_inputs["origin"] = stage.origin.covers()
            start_fields["checkpoint"] = stage.origin.checkpoint
        hash_inputs |= {name: hashes[name] for name in stage.reads}
        if stage.measures or not isinstance(settings, LoopSettings):
            return Inputs(hash_inputs, about=start_fields)
        return Inputs(hash_inputs, settings.num_steps, settings.continues(), start_fields)

    def standings(self, folder: Path | None = None) -> dict[str, tuple[Inputs, StageState]]:
        """Return {stage: (its inputs, its StageState)}.

        Args:
            folder: The folder with the stages' records; by default the run's folder.
        """
        hashes: dict[str, str] = {}
        standings: dict[str, tuple[Inputs, StageState]] = {}
        for stage in self.stages:
            with stage.at(), waiting_for(f"hashing the settings and the data of {stage.name}"):
                inputs = self.inputs(stage, hashes)
            stage_standing = standing(folder or self.run.folder, stage.name, inputs)
            hashes[stage.name], standings[stage.name] = (
                stage_standing.record["hash"],
                (inputs, stage_standing),
            )
        return standings

    def check_drops(self, standings: Standings, claim: Claim, folder: Path):
        """Raise ValueError, listing the stages, if a run would delete results of an earlier one."""
        growing_stages = {
            name for name, (_, stage_standing) in standings.items() if stage_standing.grows
        }
        dropped_stages = []
        for stage in self.stages:
            stage_standing = standings[stage.name][1]
            follows_start = (
                stage.measures
                and stage.start in growing_stages
                and stage_standing.changed == ["parent"]
            )
            # Nothing is lost if the stage has written only its record
            file_names = {path.name for path in (folder / stage.name).glob("*")}
            if stage_standing.drops and not follows_start and file_names != {RECORD}:
                # Only an earlier record has other inputs
                assert stage_standing.before is not None
                state = "complete" if stage_standing.before["complete"] else "begun"
                dropped_stages.append(
                    f"{stage.name} ({state}): {', '.join(stage_standing.changed)}"
                )
        if dropped_stages:
            fields = "".join(f"\n  {field}" for field in claim.differences)
            raise ValueError(
                f"{folder} has stages that are of other inputs, and is left as it is:"
                + "".join(f"\n  {stage}" for stage in dropped_stages)
                + (f"\nchanged fields:{fields}" if fields else "")
                + "\ngive --redo to run these stages anew and keep the others, set these fields back, or "
                "give another --workdir"
            )

    def go(self, standings: Standings):
        """Run, in order, the stages that are not complete."""
        scores, time_left = self.results.scores(), TimeLeft()
        self.run.writer.after_line = self.page.after_line
        for number, stage in enumerate(self.stages, start=1):
            title = f" ({stage.title})" if stage.title not in ("", stage.name) else ""
            label = f"stage {number} of {len(self.stages)}, {stage.name}{title}"
            leave_if_asked(label)
            if not stage.start:
                # A stage without a start reads nothing that is on the devices
                self.loaded_policies.clear()
            inputs, stage_standing = standings[stage.name]
            if stage_standing.complete:
                say(f"{label}: unchanged, not run again")
            else:
                unfinished = [
                    s for s in self.stages[number - 1 :] if not standings[s.name][1].complete
                ]
                say(", ".join(filter(None, [label, time_left.text(unfinished)])))
                if stage.expect:
                    say_wrapped(stage.expect, indent="  ")
            began = time.monotonic()
            with waiting_for(f"in {label}", soon=math.inf):
                try:
                    self._keep(stage, inputs)
                # A run that is stopped, or ends at a fault, has a page of so far
                except (Exception, SystemExit):
                    self.page.at_end()
                    raise
            if not stage_standing.complete:
                time_left.add(stage, time.monotonic() - began)
            # A stage that was complete has no new scores
            if stage.measurements() and (new_scores := self.results.scores()) != scores:
                scores = new_scores
                self.run.writer.write_scores(scores)
                self.page.draw()

    def begin_record(self, started_by: dict[str, str]):
        """Write run.json of a run that has stages to run."""
        if not first_process():
            return
        origins = _origins(self.stages)
        models = {}
        for name in _last_stages(self.stages):
            if name in self.configs:
                config, origin = self.configs[name], origins[name]
                checkpoint = None if origin is None else origin.checkpoint
                num_params = self.results.stage(name).num_params(config)
                models[name] = model_facts(config, num_params, checkpoint)
        start = start_facts(self.run.mesh, started_by)
        self.record = RunRecord(self.run.folder, left_by(self.stages), models, start)

    def _write_page(self):
        """Write report.html of the run so far, with its time."""
        if self.record is not None:
            self.record.save()
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
                self.loaded_policies[stage.name, True] = result

        run_stage(self.run.folder, stage.name, inputs, make)


def _save(context: Context, policy: Policy):
    """Save the policy that a stage's run returned; with an adapter, only the adapter."""
    if isinstance(policy.params, AdaptedParams):
        base, target = context.path_of(context.stage.start), context.stage_folder / "adapter"
        if not is_adapter(target):
            save_adapter(target, policy.config, policy.params, base, policy.files())
    elif not is_orbax(context.stage_folder / "params"):
        save_orbax(context.stage_folder / "params", policy.config, policy.params, policy.files())


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
    # A description needs neither a mesh nor a writer
    run = Run(None, folder, None)  # type: ignore[arg-type]
    running = _Running(recipe, settings, run)
    with running.opened, at("config"):
        return _described(running)


def _described(running):
    sources = [(s, running.context(stage)) for stage in running.stages for s in stage.sources]
    descriptions = [source.describe(context) for source, context in sources]
    return "; ".join(filter(None, dict.fromkeys(descriptions)))


def _has_begun(stages, folder):
    return any((folder / stage.name / RECORD).exists() for stage in stages)


def run(
    recipe: ModuleType,
    settings: Any,
    run: Run,
    claim: Claim | None = None,
    redo: bool = False,
    started_by: dict[str, str] | None = None,
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
        started_by: The argument of start_facts.
    """
    claim = Claim([], lambda: None) if claim is None else claim
    running, began = _Running(recipe, settings, run), time.monotonic()
    with running.opened:
        # A mistake must be named before anything is written
        running.check_settings()
        has_begun = _has_begun(running.stages, run.folder)
        standings = running.standings() if has_begun else {}
        is_complete = has_begun and all(
            stage_standing.complete for _, stage_standing in standings.values()
        )
        if not is_complete:
            say_plan(running.stages, running.configs)
            running.check_data()
            standings = standings or running.standings()
        if not redo:
            running.check_drops(standings, claim, run.folder)
        claim.accept()
        if not is_complete:
            # Dependent stages first: an interruption here must leave no stage without its inputs
            for name, (_, stage_standing) in reversed(standings.items()):
                if stage_standing.changed:
                    renew(run.folder, name, stage_standing)
            running.begin_record(started_by or {})
            try:
                running.go(standings)
            finally:
                # Also if the run stops or fails: it has worked until now
                if running.record is not None:
                    running.record.save()
    run.writer.close()
    with waiting_for("drawing up the report"):
        recipe.report(running.results)
        if first_process():
            # Again: the page may show what the report has computed
            running.page.draw()
            seconds = 0 if is_complete else time.monotonic() - began
            result = left_by(running.stages)
            say_end(running.stages, result, run.folder, recipe.page(running.results), seconds)


def left_by(stages: list[Stage]) -> str | None:
    """Return the name of the stage that the run is for; None if there are several."""
    names = _last_stages(stages)
    return names[0] if len(names) == 1 else None


def _last_stages(stages):
    """Return the names of the training stages that no other one begins from or reads.

    Stages that produce no policy count only if all such stages produce none.
    """
    training_stages = [stage for stage in stages if not stage.measures]
    used_names = {stage.start for stage in training_stages} | {
        name for stage in training_stages for name in stage.reads
    }
    last_stages = [stage for stage in training_stages if stage.name not in used_names]
    return [stage.name for stage in last_stages if stage.leaves_policy] or [
        stage.name for stage in last_stages
    ]
