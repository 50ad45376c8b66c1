"""A stage of reinforcement by GRPO (arXiv:2402.03300), rewarded by rules and by reward models."""

import jax
from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import (
    Amount,
    Held,
    Program,
    beside,
    moments_of,
    policy_params,
    update_program,
)
from deepseek_jax.errors import at
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.recipes.job import Work
from deepseek_jax.recipes.kinds.paying import (
    PlannedReward,
    Scored,
    held_models,
    planned_rewards,
    scoring_programs,
)
from deepseek_jax.recipes.stage import Kind
from deepseek_jax.reinforce.batch import longest_batch, update_flops
from deepseek_jax.reinforce.grpo import reinforce
from deepseek_jax.reinforce.scenarios import ScenarioRewards
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.reinforce.update import (
    check_routing,
    check_rows,
    jitted_score,
    jitted_update,
    reference_places,
)
from deepseek_jax.rollout.policy import check_room
from deepseek_jax.rollout.programs import Asked, rollout_programs
from deepseek_jax.rollout.settings import AnswerOptions


def _check(work: Work):
    check_rows(work.settings, work.mesh)
    check_routing(work.settings, work.config, work.mesh)
    rollout, positions = work.settings.rollout, work.config.max_position_embeddings
    with at("rollout"):
        check_room(work.config, (), rollout.longest())
        if rollout.max_prompt_length > positions:
            raise ValueError(
                f"max_prompt_length={rollout.max_prompt_length} is beyond the model's "
                f"max_position_embeddings={positions}; lower it"
            )


def _check_data(work: Work):
    work.job.check_rewards(work)
    work.job.questions(work)


def _covers(work: Work):
    questions = work.job.asked(work)
    data = [questions["reasoning"], questions["general"]]
    return {"settings": work.job.about(work.settings), "data": data}


def _compiles(work: Work):
    paying = planned_rewards(work.job.models(work), work.config)
    return reinforcement_programs(
        work.prefix, work.settings, work.config, work.mesh, work.adapter, paying
    )


def _run(work: Work):
    """The policy after its reinforcement."""
    with work.at():
        questions = work.job.questions(work)
    with work.job.rewards(work) as paid:
        rewards = ScenarioRewards(paid) if questions["general"] else paid["reasoning"]
        policy = work.start()
        params = reinforce(
            work.settings,
            policy,
            questions["reasoning"],
            rewards,
            work.phase,
            questions["general"],
        )
    return policy.at(params)


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
    params = abstract_tree(config, mesh, adapter=adapter)
    batch = longest_batch(settings, config, mesh)
    create, step = jitted_update(settings, config, params, mesh)
    state, models = create.eval_shape(params), held_models(paying or {}, mesh)
    moments, (reference, read) = moments_of(state), _references(settings, config, mesh, adapter)
    # A reference that follows the policy is in the update's state
    follows = bool(reference) and settings.reference_every is not None
    if follows:
        state = state.replace(reference=reference[0].tree)
    update = update_program(
        f"{name}update",
        step,
        state,
        batch,
        amount_of(config, batch, adapter is not None),
        config=config,
        mesh=mesh,
        times=settings.minibatches * settings.epochs,
    )
    paid = scoring_programs(name, paying or {}, _completions(settings), mesh)
    return [
        *beside(_rolled(name, settings, config, mesh, adapter), moments, *reference, *models),
        *beside(paid, policy_params(params), moments, *reference),
        *beside(_scored(name, settings, config, mesh, params, batch), moments, *read, *models),
        *beside([update], *([] if follows else reference), *models),
    ]


def _rolled(name, settings, config, mesh, adapter):
    """The programs of a step's rollout."""
    rollout = settings.rollout
    return rollout_programs(
        config,
        mesh,
        AnswerOptions(max_completion_length=rollout.longest(), slots=rollout.slots),
        Asked(
            prompts=settings.prompts_per_step + settings.extra_prompts,
            prompt_length=rollout.max_prompt_length,
            n=settings.group_size,
            continued=settings.extra_prompts * settings.group_size,
            keeps_routing=settings.keep_routing,
            candidates=rollout.top_k,
            turns=settings.most_turns(),
        ),
        adapter=adapter,
        name=name,
    )


def _completions(settings):
    """What the reward models score in a step."""
    answered = settings.prompts_per_step + settings.extra_prompts
    rollout = settings.rollout
    return Scored(answered * settings.group_size, rollout.max_prompt_length, rollout.longest())


def _references(settings, config, mesh, adapter):
    """([Held], [Held]) of a stored reference, as it waits and as it is read; ([], []) without one."""
    # With an adapter the frozen policy is the reference
    if not settings.loss.kl_coef or adapter is not None:
        return [], []
    tree = abstract_tree(config, mesh, settings.reference_dtype)
    places = reference_places(settings, tree)
    stored = jax.tree.map(lambda x, place: x.update(sharding=place), tree, places)
    fields = "reference_memory='host', or reference_dtype='bfloat16'"
    # While it is read, it is on the devices beside the policy, in whatever memory it waits
    read = Held("the reference", tree, "reference_dtype='bfloat16'")
    return [Held("the reference", stored, fields)], [read]


def _scored(name, settings, config, mesh, params, batch):
    """The program that scores before the updates, in a list; [] where the loss needs no such scores."""
    scored = settings.scored()
    if not scored:
        return []
    own = {key: leaf for key, leaf in batch.items() if key not in scored}
    amount = amount_of(config, batch)
    # A forward pass is a third of an update of all weights
    amount = amount._replace(flops=amount.flops / 3)
    times = settings.minibatches * len(scored)
    score = jitted_score(config)
    return [Program(f"{name}score", score, (params, own), mesh, *amount, times=times)]


def amount_of(config: ModelConfig, batch: dict, frozen: bool = False):
    """The Amount of an update of config with the longest batch. frozen: see costs.flops.training_flops."""
    rows, s = batch["prompt_ids"].shape
    completions, t = batch["completion_ids"].shape
    each = completions // rows
    flops = rows * update_flops(config, [s], [t] * each, frozen)
    shape = f"{s:,} + {each} x {t:,}" if each > 1 else f"{s:,} + {t:,}"
    return Amount(rows * s + completions * t, flops, f"{rows:,} rows x {shape}")


REINFORCE = Kind(_check, _compiles, _run, _covers, _check_data)
