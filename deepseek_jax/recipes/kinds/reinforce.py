"""A stage of GRPO (arXiv:2402.03300), with rewards from rules and from reward models.

Tests: tests/recipes/grpo/test_run.py, tests/recipes/test_programs.py.
"""

import dataclasses
from collections.abc import Sequence

import jax
from jax.sharding import Mesh
from typing_extensions import override

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.program import (
    Amount,
    Program,
    ResidentArrays,
    beside,
    moments_of,
    policy_params,
    update_program,
)
from deepseek_jax.errors import at
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.parallel.owned_rows import abstract_owned, move
from deepseek_jax.recipes.conversing import try_environment
from deepseek_jax.recipes.kinds.paying import (
    PlannedReward,
    ScoredCompletions,
    held_models,
    scoring_programs,
)
from deepseek_jax.recipes.paid import StageRewards
from deepseek_jax.recipes.stage import Context, Source, Stage
from deepseek_jax.reinforce.batch import TOKENS, longest_batch, update_flops
from deepseek_jax.reinforce.effort import check_lines, with_efforts
from deepseek_jax.reinforce.grpo import reinforce
from deepseek_jax.reinforce.scenarios import ScenarioRewards, say_deciding
from deepseek_jax.reinforce.settings import MEASURED, ReinforceSettings
from deepseek_jax.reinforce.update import (
    check_routing,
    check_rows,
    check_v4,
    jitted_score,
    jitted_update,
    reference_places,
)
from deepseek_jax.rollout.policy import check_room
from deepseek_jax.rollout.programs import Workload, rollout_programs
from deepseek_jax.rollout.settings import AnswerOptions

# Scenario -> the name of its questions in messages
NAMES = {"reasoning": "training", "general": "general"}


class Questions(Source):
    """Questions with known answers."""

    def read(self, context: Context) -> dict[str, list[dict]]:
        """Return the examples to learn from, without their prompt_ids.

        Returns:
            {"reasoning": [...], "general": [...]}; "general" may be empty.
        """
        raise NotImplementedError

    def held_out(self, context: Context) -> list[dict]:
        """Return held-out questions for measurements on the way, without their prompt_ids."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class Reinforce(Stage):
    """Training by GRPO of the policy that it begins from."""

    settings: ReinforceSettings
    questions: Questions
    rewards: StageRewards

    @override
    def check(self, config, mesh):
        check_rows(self.settings, mesh)
        check_routing(self.settings, config, mesh)
        if isinstance(config, V4Config):
            check_v4(self.settings)
        rollout, positions = self.settings.rollout, config.max_position_embeddings
        with at("rollout"):
            check_room(config, (), rollout.longest())
            if rollout.max_prompt_length > positions:
                raise ValueError(
                    f"max_prompt_length={rollout.max_prompt_length} is beyond the model's "
                    f"max_position_embeddings={positions}; lower it"
                )

    @override
    def check_data(self, context):
        super().check_data(context)
        examples = self.questions.read(context)
        with self.rewards.open(context, trained=False) as rewards_by_scenario:
            if context.policy.tools is not None:
                try_environment(context.policy.tools.environments, examples["reasoning"])
            with at("rewards"):
                rewards_by_scenario["reasoning"].check(examples["reasoning"])
                if self.settings.eval_every:
                    rewards_by_scenario["reasoning"].check(self.questions.held_out(context))
            say_deciding(self.settings, rewards_by_scenario["reasoning"])
        self.fitting_questions(context)
        self.measured_on(context)

    def fitting_questions(self, context: Context) -> dict[str, list[dict]]:
        """Return {scenario: the questions that fit}, with their prompt_ids.

        With settings.effort each question is there once for each effort.
        """
        return context.once((self, "questions"), lambda: self._fitting_questions(context))

    def _fitting_questions(self, context):
        policy, examples_by_scenario, effort = (
            context.policy,
            self.questions.read(context),
            self.settings.effort,
        )
        if effort is not None:
            with at("effort"):
                check_lines(effort, policy.tokenizer, policy.template)
            examples_by_scenario = {
                scenario: with_efforts(effort, examples)
                for scenario, examples in examples_by_scenario.items()
            }
        copies, limit = self.settings.num_efforts(), self.settings.rollout.limit()
        with at("rollout"):
            return {
                scenario: policy.with_fitting_prompts(examples, limit, NAMES[scenario], copies)
                if examples
                else []
                for scenario, examples in examples_by_scenario.items()
            }

    def measured_on(self, context: Context) -> list[dict]:
        """Return the questions of measurements on the way, with their prompt_ids; [] without them.

        They are spread over all held-out questions that fit, which a world may have in an order of
        its own, such as by length. They are the same at every step, so that points of the curve
        differ only by the policy.
        """
        if not self.settings.eval_every:
            return []
        examples = ask_held_out(context, self.settings, self.questions)
        # The efforts of a question are adjacent, and stay together
        copies = self.settings.num_efforts()
        questions = [examples[i : i + copies] for i in range(0, len(examples), copies)]
        return [example for question in spread(questions, MEASURED) for example in question]

    @override
    def programs(self, config, mesh, others):
        reward_models = self.rewards.planned(config)
        return reinforcement_programs(
            self.prefix, self.settings, config, mesh, self.adapter, reward_models
        )

    @override
    def run(self, context):
        with self.at():
            questions = self.fitting_questions(context)
        with self.rewards.open(context) as rewards_by_scenario:
            rewards = (
                ScenarioRewards(rewards_by_scenario)
                if questions["general"]
                else rewards_by_scenario["reasoning"]
            )
            policy = context.load_start()
            held_out = self.measured_on(context)
            params = reinforce(self.settings, policy, questions, rewards, context.run, held_out)
        return policy.with_params(params)


def ask_held_out(context: Context, settings: ReinforceSettings, questions: Questions) -> list[dict]:
    """Return the held-out questions that fit, with their prompt_ids.

    With settings.effort each question is there once for each effort, so that all efforts are
    measured on the same questions.
    """

    def ask():
        examples = questions.held_out(context)
        if settings.effort is not None:
            examples = with_efforts(settings.effort, examples)
        limit, copies = settings.rollout.limit(), settings.num_efforts()
        with at("rollout"):
            return context.policy.with_fitting_prompts(examples, limit, "held-out", copies)

    return context.once((questions, "held-out", settings.rollout.limit()), ask)


def reinforcement_programs(
    name: str,
    settings: ReinforceSettings,
    config: Network,
    mesh: Mesh,
    adapter: AdapterSettings | None = None,
    paying: dict[str, PlannedReward] | None = None,
) -> list[Program]:
    """Return the programs of a step of GRPO.

    They are the rollout, the scores of reward models for its completions, the log-probabilities,
    the update, and with eval_every the greedy answers of a measurement on the way, with their
    scores. Every prompt and every completion counts as the longest. The training state, a
    reference and the reward models are on the devices all the time, also during programs that do
    not read them.

    Args:
        name: The prefix of the programs' names.
        settings: The settings of the stage.
        config: The Network of the policy.
        mesh: The mesh of the run.
        adapter: The adapter that is trained; None if the whole policy is.
        paying: {name: PlannedReward} of the reward models and judges.

    Returns:
        [Program].
    """
    params = abstract_tree(config, mesh, adapter=adapter)
    batch = longest_batch(settings, config, mesh)
    create, step = jitted_update(settings, config, params, mesh)
    state, models = create.eval_shape(params), held_models(paying or {}, mesh)
    moments, (reference, read_reference) = (
        moments_of(state),
        _references(settings, config, mesh, adapter),
    )
    # A reference that follows the policy is part of the update's state
    reference_follows = bool(reference) and settings.reference_every is not None
    if reference_follows:
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
    completions = ScoredCompletions(
        settings.prompts_per_step * settings.group_size, *_longest_lengths(settings)
    )
    reward_programs = scoring_programs(name, paying or {}, completions, mesh)
    programs = [
        *beside(_rolled(name, settings, config, mesh, adapter), moments, *reference, *models),
        *beside(reward_programs, policy_params(params), moments, *reference),
        *beside(
            _moved(name, settings, mesh, batch), policy_params(params), moments, *reference, *models
        ),
        *beside(
            _scored(name, settings, config, mesh, params, batch), moments, *read_reference, *models
        ),
        *beside([update], *([] if reference_follows else reference), *models),
    ]
    if not settings.eval_every:
        return programs
    answers, scores = _measured(f"{name}held-out: ", settings, config, mesh, adapter, paying or {})
    return [
        *programs,
        *beside(answers, moments, *reference, *models),
        *beside(scores, policy_params(params), moments, *reference),
    ]


def _rolled(name, settings, config, mesh, adapter):
    """Return the programs of a step's rollout."""
    rollout = settings.rollout
    return rollout_programs(
        config,
        mesh,
        AnswerOptions(max_completion_length=rollout.longest(), slots=rollout.slots),
        Workload(
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


def _measured(name, settings, config, mesh, adapter, paying):
    """Return two lists of programs: answering in a measurement, and scoring by reward models."""
    prompts, (prompt_length, longest) = settings.prompts_measured(), _longest_lengths(settings)
    answers = rollout_programs(
        config,
        mesh,
        AnswerOptions(max_completion_length=longest, temperature=0.0, slots=settings.rollout.slots),
        Workload(prompts, prompt_length, turns=settings.most_turns()),
        adapter=adapter,
        name=name,
    )
    scored = ScoredCompletions(prompts, prompt_length, longest)
    return answers, scoring_programs(name, paying, scored, mesh)


def _longest_lengths(settings):
    """Return the tokens of the longest prompt and of the longest completion."""
    return settings.rollout.max_prompt_length, settings.rollout.longest()


def _references(settings, config, mesh, adapter):
    """Return the ResidentArrays of a stored reference, while it waits and while it is read.

    Each is in a list; both lists are empty without a stored reference.
    """
    # With an adapter the frozen policy is the reference, so no copy is stored
    if not settings.loss.kl_coef or adapter is not None:
        return [], []
    reference_tree = abstract_tree(config, mesh, settings.reference_dtype)
    shardings = reference_places(settings, reference_tree)
    stored_tree = jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding), reference_tree, shardings
    )
    memory_fields = "reference_memory='host', or reference_dtype='bfloat16'"
    # While it is read it is on the devices with the policy, whatever memory it waits in
    read_reference = ResidentArrays("the reference", reference_tree, "reference_dtype='bfloat16'")
    return [ResidentArrays("the reference", stored_tree, memory_fields)], [read_reference]


def _moved(name, settings, mesh, batch):
    """Return the program that moves completions from the processes that have them, in a list.

    The list is empty if one process has all.
    """
    num_processes = len({device.process_index for device in mesh.devices.flat})
    if num_processes == 1:
        return []
    token_arrays = {key: leaf for key, leaf in batch.items() if key in TOKENS}
    rows, t = batch["completion_ids"].shape
    # In the rollout and in the batches
    bytes_per_token = 2 * sum(leaf.dtype.itemsize for leaf in token_arrays.values())
    bytes_per_step = settings.minibatches * rows * t * bytes_per_token
    return [
        Program(
            f"{name}rows",
            move(mesh),
            abstract_owned(mesh, token_arrays),
            mesh,
            tokens=0,
            flops=0.0,
            sizes=f"{rows:,} rows x {t:,}, of {num_processes:,} processes",
            times=settings.minibatches,
            host_bytes=-(-bytes_per_step // num_processes),
        )
    ]


def _scored(name, settings, config, mesh, params, batch):
    """Return the program that computes log-probabilities before the updates, in a list.

    The list is empty if the loss needs none.
    """
    scored_keys = settings.scored()
    if not scored_keys:
        return []
    score_batch = {key: leaf for key, leaf in batch.items() if key not in scored_keys}
    amount = amount_of(config, batch)
    # A forward pass is a third of an update of all weights
    amount = amount._replace(flops=amount.flops / 3)
    times = settings.minibatches * len(scored_keys)
    score = jitted_score(config)
    return [Program(f"{name}score", score, (params, score_batch), mesh, *amount, times=times)]


def amount_of(config: Network, batch: dict, frozen: bool = False) -> Amount:
    """Return the Amount of work of an update with the longest batch.

    Args:
        config: The Network of the policy.
        batch: The batch.
        frozen: The argument of costs.flops.training_flops.
    """
    rows, s = batch["prompt_ids"].shape
    num_completions, t = batch["completion_ids"].shape
    group_size = num_completions // rows
    flops = rows * update_flops(config, [s], [t] * group_size, frozen)
    shape_text = f"{s:,} + {group_size} x {t:,}" if group_size > 1 else f"{s:,} + {t:,}"
    return Amount(rows * s + num_completions * t, flops, f"{rows:,} rows x {shape_text}")


def spread(items: Sequence, most: int) -> list:
    """Return `most` items at equal distances, or all if there are fewer."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]
