"""The programs of a step of reinforcement, for a plan."""

import jax
from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import (
    Held,
    Program,
    beside,
    moments_of,
    policy_params,
    update_program,
)
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.adapters import AdapterSettings
from deepseek_jax.reinforce.batch import abstract_batch_of, update_flops
from deepseek_jax.reinforce.model_reward_programs import (
    PlannedReward,
    Scored,
    held_models,
    scoring_programs,
)
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
    paying: dict[str, PlannedReward] | None = None,
):
    """The rollout, what reward models make of its completions, their log-probabilities, and the update:
    [Program]. name: a prefix of their names. adapter: what is trained beside the policy, None for all of it.
    paying: the reward models and judges in use, by name.

    Every prompt and every completion counts as the longest. The training state, a reference and the reward
    models lie on the devices all the time, beside the programs that do not read them.
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
    state, models = create.eval_shape(params), held_models(paying or {}, mesh)
    moments, reference, read = moments_of(state), [], []
    # With an adapter the frozen policy is the reference
    if settings.loss.kl_coef and adapter is None:
        tree = abstract_tree(config, mesh, settings.reference_dtype)
        places = reference_places(settings, tree)
        stored = jax.tree.map(lambda x, place: x.update(sharding=place), tree, places)
        fields = "reference_memory='host', or reference_dtype='bfloat16'"
        reference = [Held("the reference", stored, fields)]
        # While it is read, it is on the devices beside the policy, in whatever memory it waits
        read = [Held("the reference", tree, "reference_dtype='bfloat16'")]
        if settings.reference_every is not None:
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
    # A reference that follows the policy is in the update's state
    own = reference if settings.reference_every is None else []
    (update,) = beside([update], *own, *models)
    answered = settings.prompts_per_step + settings.extra_prompts
    sizes = Scored(answered * settings.group_size, rollout.max_prompt_length, rollout.longest())
    paid = scoring_programs(name, paying or {}, sizes, mesh)
    planned = [
        *beside(rolled, moments, *reference, *models),
        *beside(paid, policy_params(params), moments, *reference),
    ]
    scored = [key for key in ("old_logprobs", "ref_logprobs") if key in batch]
    if not scored:
        return [*planned, update]
    own = {key: leaf for key, leaf in batch.items() if key not in scored}
    score = Program(
        f"{name}score",
        jitted_score(config),
        (params, own),
        mesh,
        times=settings.minibatches * len(scored),
        **work | {"flops": _work(config, batch, False)["flops"] / 3},
    )
    return [*planned, *beside([score], moments, *read, *models), update]


def _work(config, batch, frozen):
    """The fields tokens, flops and sizes of an update's Program."""
    rows, s = batch["prompt_ids"].shape
    completions, t = batch["completion_ids"].shape
    flops = update_flops(config, [s] * rows, [t] * completions, frozen)
    each = completions // rows
    shape = f"{s:,} + {each} x {t:,}" if each > 1 else f"{s:,} + {t:,}"
    return dict(tokens=rows * s + completions * t, flops=flops, sizes=f"{rows:,} rows x {shape}")
