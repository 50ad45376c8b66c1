"""The programs of a step of reinforcement, for a plan."""

import jax
from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import Program, update_program
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.adapters import AdapterSettings
from deepseek_jax.reinforce.batch import abstract_batch_of, update_flops
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.reinforce.update import (
    check_routing,
    check_rows,
    jitted_score,
    jitted_update,
    reference_places,
)
from deepseek_jax.rollout.policy import AnswerOptions
from deepseek_jax.rollout.programs import Asked, rollout_programs


def reinforcement_programs(
    name: str,
    settings: ReinforceSettings,
    config: ModelConfig,
    mesh: Mesh,
    adapter: AdapterSettings | None = None,
):
    """The rollout, the scoring of its completions, and the update: [Program]. name: a prefix of their names.
    adapter: what is trained beside the policy, None for all of it.

    Every prompt and every completion counts as the longest.
    """
    check_rows(settings, mesh)
    check_routing(settings, config, mesh)
    rollout = settings.rollout
    rolled = rollout_programs(
        config,
        mesh,
        AnswerOptions(max_completion_length=rollout.longest(), slots=rollout.slots),
        Asked(
            prompts=settings.prompts_per_step + settings.extra_prompts,
            prompt_length=rollout.max_prompt_length,
            n=settings.group_size,
            continued=settings.extra_prompts * settings.group_size,
            keeps_routing=settings.keep_routing,
            candidates=settings.rollout.top_k,
        ),
        adapter=adapter,
        name=name,
    )
    params = abstract_tree(config, mesh, adapter=adapter)
    batch = abstract_batch_of(settings, config, mesh)
    work = _work(config, batch, adapter is not None)
    create, step = jitted_update(settings, config, params, mesh)
    state = create.eval_shape(params)
    reference = abstract_tree(config, mesh, settings.reference_dtype)
    if settings.reference_every is not None:
        places = reference_places(settings, reference)
        stored = jax.tree.map(lambda x, place: x.update(sharding=place), reference, places)
        state = state.replace(reference=stored)
    update = update_program(
        f"{name}update",
        step,
        state,
        batch,
        config=config,
        mesh=mesh,
        times=settings.minibatches * settings.epochs,
        **work,
    )
    scored = [key for key in ("old_logprobs", "ref_logprobs") if key in batch]
    if not scored:
        return [*rolled, update]
    own = {key: leaf for key, leaf in batch.items() if key not in scored}
    score = Program(
        f"{name}score",
        jitted_score(config),
        (params, own),
        mesh,
        times=settings.minibatches * len(scored),
        **work | {"flops": _work(config, batch, False)["flops"] / 3},
    )
    return [*rolled, score, update]


def _work(config, batch, frozen):
    """The fields tokens, flops and sizes of an update's Program."""
    rows, s = batch["prompt_ids"].shape
    completions, t = batch["completion_ids"].shape
    flops = update_flops(config, [s] * rows, [t] * completions, frozen)
    each = completions // rows
    shape = f"{s:,} + {each} x {t:,}" if each > 1 else f"{s:,} + {t:,}"
    return dict(tokens=rows * s + completions * t, flops=flops, sizes=f"{rows:,} rows x {shape}")
