"""The policy that a run starts from, a checkpoint or a base with its documents; and what a run of one policy
leaves.
"""

import contextlib
import dataclasses
import functools
from pathlib import Path

import jax
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.checkpoint import is_adapter, is_orbax, save_adapter, save_orbax
from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.checkpoint.locate import checkpoint_path
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.errors import CannotPlan, at
from deepseek_jax.models import (
    ModelConfig,
    RunSettings,
    build_model,
    how_to_run,
    names_architecture,
)
from deepseek_jax.models.adapter_modules import adapter_axes
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.adapters import with_adapter
from deepseek_jax.models.quantized import quantized
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.parallel.shard import check_batch
from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.recipes.settings import AdapterRun, PolicyRun
from deepseek_jax.rollout import requests
from deepseek_jax.rollout.policy import Policy, check_vocabulary, ending_turns, load_policy
from deepseek_jax.rollout.weights import cast
from deepseek_jax.settings import build
from deepseek_jax.training.run import Run
from deepseek_jax.worlds.registry import find_corpus, named_tokenizer


def planned_model(block: dict, checkpoint: str | Path | None, field: str = "init_from"):
    """The ModelConfig of a config's block `model`, as small files say it. checkpoint: of the start, which
    `field` names, or None.

    Raises CannotPlan where the block does not name the architecture and the checkpoint is not there either.
    """
    if checkpoint is None or names_architecture(block):
        return build_model(block)
    how = dataclasses.asdict(build(RunSettings, how_to_run(block), "model"))
    with at(field):
        path = checkpoint_path(checkpoint, weights=False)
    if path.suffix == ".gguf" or path.exists():
        with at(field):
            return dataclasses.replace(read_any_config(path), **how)
    raise CannotPlan(
        f"model={block!r} does not name the architecture of {checkpoint}, and the checkpoint is not there: a "
        "plan needs one of them; set model to one of configs/models.py"
    )


def starting_policy(settings: PolicyRun, mesh, template: str):
    """The Policy of settings.init_from, or of settings.base, whose params are None until it is trained.

    Raises ValueError where this model or mesh cannot run settings.base.
    """
    if settings.init_from is not None:
        policy = _checkpoint(settings, mesh, template)
    else:
        policy = _base(settings, mesh, template)
    if not settings.trains_whole():
        with at("adapter"):
            # Raises for a target that the model does not have
            adapter_axes(policy.config, settings.adapter.targets)
    # Raises here, before anything is trained, where the tokenizer lacks the chat template
    with at("data"):
        config = ending_turns(policy.config, policy.tokenizer, template)
    return dataclasses.replace(policy, config=config)


def _checkpoint(settings: PolicyRun, mesh, template: str):
    load = functools.partial(load_policy, settings.init_from, settings.model, template=template)
    with at("init_from"):
        if settings.trains_whole():
            return load(mesh, trained=True)
        return frozen(load, settings.adapter, mesh)


def frozen(load, adapter: AdapterSettings, mesh):
    """The Policy that load(mesh) reads, which stays as it is beside an adapter. adapter.quantize: in int8."""
    if adapter.quantize is None:
        return load(mesh)
    if mesh.size > 1:
        policy = load(mesh)
        return policy.at(quantized(policy.params))
    # In the host's memory, because a single device may not hold the weights before they are quantized
    host = make_mesh(devices=jax.local_devices(backend="cpu")[:1])
    with jax.set_mesh(host):
        policy = load(host)
        params = quantized(policy.params)
    return policy.at(jax.device_put(params, NamedSharding(mesh, PartitionSpec())))


def _base(settings: PolicyRun, mesh, template: str):
    config, tokenizer = build_model(settings.model), named_tokenizer(settings.base.corpus)
    check_vocabulary(config, tokenizer)
    return Policy(config, None, tokenizer, template)


def ready_to_train(policy: Policy, settings: AdapterRun, run: Run):
    """The policy, with a new adapter if settings.adapter asks for one: training then changes that alone.

    A base that was just pre-trained is saved in run.folder/base, and takes the form that stays beside the
    adapter.
    """
    if settings.trains_whole():
        return policy
    config, params = policy.config, policy.params
    if settings.init_from is None:
        # An adapter is of no use without what it was trained beside
        if not is_orbax(run.folder / "base"):
            save_orbax(run.folder / "base", config, params, policy.files())
        params = jax.jit(cast, static_argnums=0, donate_argnums=1)(config, params)
        params = params if settings.adapter.quantize is None else quantized(params)
    return policy.at(with_adapter(config, params, settings.adapter, run.mesh, settings.seed))


def is_trained(settings: AdapterRun, folder: Path):
    """Whether save_trained has written what a run leaves, which it does last."""
    target = folder / left_in(settings)
    return is_orbax(target) if settings.adapter is None else is_adapter(target)


def save_trained(settings: AdapterRun, folder: Path, policy: Policy):
    """Write folder/params; of a policy with an adapter folder/adapter alone."""
    target, config, params = folder / left_in(settings), policy.config, policy.params
    if settings.adapter is None:
        save_orbax(target, config, params, policy.files())
    else:
        save_adapter(target, config, params, base_path(settings, folder), policy.files())


def left_in(settings: AdapterRun):
    """The folder that save_trained writes."""
    return "params" if settings.adapter is None else "adapter"


def base_path(settings: PolicyRun, folder: Path):
    """The frozen parameters beside an adapter: the checkpoint, or folder/base."""
    return folder / "base" if settings.init_from is None else settings.init_from


def check_rows(settings, mesh, pipeline_micro_batches: int | None = None):
    """Raise ValueError, naming the fields, unless a step's rows split over the mesh."""
    rows, length = settings.batch_size, settings.sequence_length
    with at(f"batch_size={rows}, sequence_length={length}"):
        check_batch(
            mesh,
            rows,
            length,
            micro_batches=settings.micro_batches,
            pipeline_micro_batches=pipeline_micro_batches,
        )


def check_slots(settings, mesh):
    """Raise ValueError, naming the field, where slots in the settings do not split over the mesh."""
    for path, slots in _slots(settings):
        with at(path) if path else contextlib.nullcontext():
            requests.check_slots(slots, mesh.size)


def _slots(block):
    """(path of the block, its slots) of every block of the settings that has slots."""
    if dataclasses.is_dataclass(block):
        block = {field.name: getattr(block, field.name) for field in dataclasses.fields(block)}
    for name, value in block.items():
        if name == "slots":
            yield "", value
        elif dataclasses.is_dataclass(value) or isinstance(value, dict):
            for path, slots in _slots(value):
                yield f"{name}.{path}".rstrip("."), slots


def check_positions(settings, config: ModelConfig):
    """Raise ValueError where sequence_length exceeds the model's max_position_embeddings."""
    if settings.sequence_length > config.max_position_embeddings:
        raise ValueError(
            f"sequence_length={settings.sequence_length} is beyond the model's "
            f"max_position_embeddings={config.max_position_embeddings}; lower it"
        )


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents to train on, and how they are read and packed. documents: a source of data.sources, or a
    Mixture. packing, fim_rate, readers: see data.packing.
    """

    documents: object
    tokenizer: Tokenizer
    packing: bool = True
    fim_rate: float = 0.0
    readers: int = 1


def base_corpus(settings: BaseSettings, tokenizer: Tokenizer, folder: Path, seed: int):
    """The Corpus of a base, a world's, which is built in the folder data beside that of its checkpoints."""
    _, documents = find_corpus(settings.corpus)
    found = documents(folder.parent / "data", num_documents=settings.num_documents, seed=seed)
    return Corpus(found, tokenizer)
