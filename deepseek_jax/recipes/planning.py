"""What the plans of several recipes share. A plan reads no checkpoint, no tokenizer and no data."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.layouts import Layout
from deepseek_jax.costs.program import Program, beside, forward_work, moments_of, update_program
from deepseek_jax.data.batches import TOTALS, abstract_rows
from deepseek_jax.data.tokenizer import checkpoint_path
from deepseek_jax.errors import CannotPlan, at
from deepseek_jax.losses.next_token import parts_trained, target_logprobs
from deepseek_jax.models import (
    ModelConfig,
    RunSettings,
    build_model,
    how_to_run,
    names_architecture,
)
from deepseek_jax.models.adapters import AdapterSettings
from deepseek_jax.parallel.mesh import size_name
from deepseek_jax.recipes.pretrain.settings import BaseSettings, StageSettings, switched_on
from deepseek_jax.recipes.pretrain.train import jitted
from deepseek_jax.recipes.settings import PolicyRun
from deepseek_jax.recipes.sft.run import fine_tuning_loss
from deepseek_jax.recipes.sft.settings import FineTuneSettings
from deepseek_jax.recipes.start import check_rows
from deepseek_jax.rollout.policy import AnswerOptions
from deepseek_jax.rollout.programs import Asked, rollout_programs
from deepseek_jax.settings import build
from deepseek_jax.training.loop import jitted_fit

# Tokens of the longest prompt where only the data say: a config limits the prompts of reinforcement alone
PROMPT_LENGTH = 1024


def planned_model(block: dict, checkpoint: str | Path | None):
    """The ModelConfig of a config's block `model`, for a plan. checkpoint: that the run starts from, or None.

    Raises CannotPlan where the block does not name the architecture and the checkpoint is not there either.
    """
    if checkpoint is None or names_architecture(block):
        return build_model(block)
    how = dataclasses.asdict(build(RunSettings, how_to_run(block), "model"))
    path = checkpoint_path(checkpoint)
    if path.suffix == ".gguf" or (path / "config.json").exists():
        return dataclasses.replace(read_any_config(path), **how)
    raise CannotPlan(
        f"model={block!r} does not name the architecture of {checkpoint}, and the checkpoint is not there: a "
        "plan needs one of them; set model to one of configs/models.py"
    )


def planned_policy(settings: PolicyRun):
    """The ModelConfig of the policy that a run trains."""
    with at("config"):
        return planned_model(settings.model, settings.init_from)


def layout_fields(config, updates: list[Program], layout: Layout):
    """{dotted field of an experiment's config: value} that lay its updates out so.

    config: the ConfigDict, or a mapping. Where an update has its sizes follows from its program's name.
    """
    mesh = {size_name(axis): size for axis, size in layout.mesh.items()}
    fields = {f"mesh.{name}": size for name, size in mesh.items()}
    for update in updates:
        block, model = _blocks(config, update.name)
        rows = max(len(leaf) for leaf in update.arguments[1].values() if leaf.shape)
        if config["recipe"] == "pretrain" or update.name.endswith("pretrain"):
            # Pre-training counts the rows of a micro-batch, not the micro-batches
            fields[f"{block}micro_batch_size"] = rows // layout.micro_batches
        else:
            fields[f"{block}micro_batches"] = layout.micro_batches
        fields[f"{model}model.remat"] = layout.remat
    return fields


def steps_of(settings, config, update: str):
    """The steps of a run that make an update, by its program's name. settings: built from config."""
    block, _ = _blocks(config, update)
    for name in filter(None, block.split(".")):
        settings = settings[name] if isinstance(settings, Mapping) else getattr(settings, name)
    # Pre-training's stages are blocks until they are checked
    return settings["num_steps"] if isinstance(settings, Mapping) else settings.num_steps


def _blocks(config, name: str):
    """(the block of an update's settings, the block that holds its model), by its program's name: dotted
    prefixes.
    """
    owner, _, kind = name.rpartition(": ")
    if config["recipe"] == "pretrain":
        return f"stages.{name}.", ""
    if config["recipe"] != "distill":
        base = "base." if kind == "pretrain" else ""
        return (f"{owner}." if owner else "") + base, ""
    if owner == "teacher":
        return ("teacher.base." if kind == "pretrain" else "teacher.fine_tune."), "teacher."
    if kind == "pretrain":
        return f"starts.{owner}.base.", f"starts.{owner}."
    group = "students" if owner in config["students"] else "reinforced"
    return f"{group}.{owner}.", f"starts.{config[group][owner]['start']}."


def base_programs(config: ModelConfig, base: BaseSettings | None, mesh: Mesh):
    """The update that pre-trains a base, where there is one: [Program]."""
    if base is None:
        return []
    with at("config.base"):
        base.check(config, mesh)
    return [stage_program("pretrain", config, base, mesh)]


def stage_program(name: str, config: ModelConfig, stage: StageSettings, mesh: Mesh):
    """The update of a stage of pre-training, at its largest batch."""
    params = stage.learns(abstract_tree(config, mesh))
    create, step = jitted(config, stage, params, mesh)
    rows = max(rows for _, rows in stage.batch_sizes())
    scalars = (*TOTALS, "mtp_weight") if switched_on(stage.mtp_weight) else TOTALS
    batch = abstract_rows(mesh, rows, stage.sequence_length, scalars=scalars)
    state = create.eval_shape(params)
    flops = rows * stage.sequence_length * stage.flops_per_token(config)
    return update_program(name, step(rows), state, batch, config=config, mesh=mesh, flops=flops)


def fine_tuning_programs(
    name: str,
    settings: FineTuneSettings,
    config: ModelConfig,
    mesh: Mesh,
    adapter: AdapterSettings | None = None,
):
    """The update of fine-tuning, and its held-out loss: [Program]. name: a prefix of their names."""
    check_rows(settings, mesh, config.pipeline_micro_batches)
    params = abstract_tree(config, mesh, adapter=adapter)
    rows, length = settings.batch_size, settings.sequence_length
    batch = abstract_rows(mesh, rows, length, weighed=True)
    create, step = jitted_fit(
        settings, fine_tuning_loss(config), params, mesh, parts_trained(config)
    )
    state = create.eval_shape(params)
    update = update_program(f"{name}update", step, state, batch, config=config, mesh=mesh)
    score = jax.jit(functools.partial(target_logprobs, config))
    work = forward_work(config, rows, length)
    held_out = Program(f"{name}held-out loss", score, (params, batch), mesh, **work)
    return [update, *beside([held_out], moments_of(state))]


def answer_programs(
    name: str,
    config: ModelConfig,
    mesh: Mesh,
    options: AnswerOptions,
    *,
    prompts: int,
    n: int = 1,
    prompt_length: int = PROMPT_LENGTH,
    **params: str | AdapterSettings | None,
):
    """The programs that answer questions, where a model has room for prompts of prompt_length: [Program].

    params: dtype and adapter of checkpoint.tree.abstract_tree.
    """
    room = config.max_position_embeddings - options.max_completion_length
    asked = Asked(prompts, min(prompt_length, room), n)
    return rollout_programs(config, mesh, options, asked, name=name, **params)
