"""A stage of reinforcement by GRPO (arXiv:2402.03300), rewarded by rules and by reward models."""

import dataclasses

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
from deepseek_jax.recipes.conversing import try_environment
from deepseek_jax.recipes.kinds.paying import (
    PlannedReward,
    Scored,
    held_models,
    scoring_programs,
)
from deepseek_jax.recipes.paid import StageRewards
from deepseek_jax.recipes.stage import Context, Source, Stage
from deepseek_jax.reinforce.batch import longest_batch, update_flops
from deepseek_jax.reinforce.effort import check_lines, with_efforts
from deepseek_jax.reinforce.grpo import reinforce
from deepseek_jax.reinforce.scenarios import ScenarioRewards, say_deciding
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

# Scenario -> what messages call its questions
NAMES = {"reasoning": "training", "general": "general"}


class Questions(Source):
    """Questions with known answers."""

    def read(self, context: Context) -> dict[str, list[dict]]:
        """The examples to learn from, without prompts: {"reasoning": ..., "general": ...}, the latter [] for
        none.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class Reinforce(Stage):
    """Reinforcement by GRPO of the policy that it begins from."""

    settings: ReinforceSettings
    questions: Questions
    rewards: StageRewards

    def check(self, config, mesh):
        check_rows(self.settings, mesh)
        check_routing(self.settings, config, mesh)
        rollout, positions = self.settings.rollout, config.max_position_embeddings
        with at("rollout"):
            check_room(config, (), rollout.longest())
            if rollout.max_prompt_length > positions:
                raise ValueError(
                    f"max_prompt_length={rollout.max_prompt_length} is beyond the model's "
                    f"max_position_embeddings={positions}; lower it"
                )

    def check_data(self, context):
        super().check_data(context)
        examples = self.questions.read(context)
        with self.rewards.open(context, trained=False) as paid:
            if context.policy.tools is not None:
                try_environment(context.policy.tools.environments, examples["reasoning"])
            with at("rewards"):
                paid["reasoning"].check(examples["reasoning"])
            say_deciding(self.settings, paid["reasoning"])
        self.asked(context)

    def asked(self, context: Context) -> dict[str, list[dict]]:
        """The questions that fit, with their prompt_ids. With settings.effort each is there once for each
        effort.
        """
        return context.once((self, "asked"), lambda: self._asked(context))

    def _asked(self, context):
        policy, parts, effort = context.policy, self.questions.read(context), self.settings.effort
        if effort is not None:
            with at("effort"):
                check_lines(effort, policy.tokenizer, policy.template)
            parts = {kind: with_efforts(effort, examples) for kind, examples in parts.items()}
        together, limit = 1 if effort is None else len(effort.values), self.settings.rollout.limit()
        with at("rollout"):
            return {
                kind: policy.ask(examples, limit, NAMES[kind], together) if examples else []
                for kind, examples in parts.items()
            }

    def programs(self, config, mesh, others):
        paying = self.rewards.planned(config)
        return reinforcement_programs(
            self.prefix, self.settings, config, mesh, self.adapter, paying
        )

    def run(self, context):
        with self.at():
            questions = self.asked(context)
        with self.rewards.open(context) as paid:
            rewards = ScenarioRewards(paid) if questions["general"] else paid["reasoning"]
            policy = context.begin()
            params = reinforce(
                self.settings,
                policy,
                questions["reasoning"],
                rewards,
                context.run,
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
            prompts=settings.prompts_per_step,
            prompt_length=rollout.max_prompt_length,
            n=settings.group_size,
            keeps_routing=settings.keep_routing,
            candidates=rollout.top_k,
            turns=settings.most_turns(),
        ),
        adapter=adapter,
        name=name,
    )


def _completions(settings):
    """What the reward models score in a step."""
    rollout, completions = settings.rollout, settings.prompts_per_step * settings.group_size
    return Scored(completions, rollout.max_prompt_length, rollout.longest())


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
