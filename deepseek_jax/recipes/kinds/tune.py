"""A stage of supervised fine-tuning on conversations (arXiv:2501.12948, appendix B.4.2).

Tests: tests/recipes/sft/test_run.py, tests/recipes/test_programs.py.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from typing_extensions import override

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.costs.program import Program, beside, forward_work, moments_of, update_program
from deepseek_jax.data.batches import PackedDocuments, abstract_rows
from deepseek_jax.data.conversations import pack_conversations, render_numbered
from deepseek_jax.data.packing import Rows
from deepseek_jax.data.stored import RandomAccess
from deepseek_jax.evaluation.conversation_loss import ConversationLoss
from deepseek_jax.losses.next_token import next_token_loss, parts_trained, target_logprobs
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.adapters import AdaptedParams
from deepseek_jax.models.network_config import Network
from deepseek_jax.parallel.processes import say
from deepseek_jax.recipes.checks import check_positions, check_rows
from deepseek_jax.recipes.kinds.paying import RewardSource, beside_models
from deepseek_jax.recipes.r1.settings import R1FineTuneSettings
from deepseek_jax.recipes.reward_model.settings import JudgeTrainingSettings
from deepseek_jax.recipes.sft.settings import SftSettings
from deepseek_jax.recipes.stage import Context, Source, Stage
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.loop import fit
from deepseek_jax.training.run import Run
from deepseek_jax.training.update import create_update

# Each has a block `data` that says how conversations are packed
ConversationTraining = SftSettings | R1FineTuneSettings | JudgeTrainingSettings
# Conversations to render before a run starts: this takes seconds and shows most mistakes
CHECKED = 1000


def check_conversations(policy: Policy, source: RandomAccess, kind: str, rows: Rows):
    """Render the first CHECKED conversations, print their lengths and count those too long.

    Args:
        policy: The policy with the tokenizer and the template.
        source: The conversations.
        kind: Their name in messages, such as "training" or "held-out".
        rows: The rows that they have to fit.

    Raises:
        ValueError: A conversation cannot be rendered, or has a token outside the model's
            vocabulary; or none of a reader's conversations fits a row, so that the reader would
            search for ever.
    """
    length, readers = rows.sequence_length, rows.readers
    text_lengths, target_counts = [], []
    render = functools.partial(render_numbered, policy.tokenizer, template=policy.template)
    for index in range(min(len(source), CHECKED)):
        ids, is_target = render(source[index], index)
        # Under jit a token outside the embedding raises no error
        if max(ids) >= policy.config.vocab_size:
            raise ValueError(
                f"conversation {index} of the data has token {max(ids)}, and the model's vocab_size is "
                f"{policy.config.vocab_size}; give the model's own tokenizer"
            )
        text_lengths.append(len(ids))
        target_counts.append(sum(is_target))
    lengths, targets = np.array(text_lengths), np.array(target_counts)
    fits = lengths <= length
    # Reader i reads conversations i, i + readers, i + 2 readers, ...
    if not all(fits[reader::readers].any() for reader in range(readers)):
        raise ValueError(
            f"sequence_length={length} is too short: {fits.sum()} of the first {len(fits)} {kind} "
            f"conversations fit a row, and the shortest has {lengths.min()} tokens; raise it"
        )
    fitting_lengths = lengths[fits]
    filled_rows = (
        fits.mean() * len(source) * (fitting_lengths.mean() / length if rows.packing else 1)
    )
    say(
        f"{len(source)} {kind} conversations; the first {len(fits)}: {fitting_lengths.mean():.1f} tokens "
        f"on average, {targets[fits].mean():.1f} of them learned, {(~fits).sum()} longer than {length} and "
        f"left out; about {filled_rows / rows.batch_size:.1f} batches"
    )


def rows_of(settings: ConversationTraining, *, held_out: bool = False) -> Rows:
    """Return the settings' Rows; held-out conversations have one reader."""
    return Rows(
        sequence_length=settings.sequence_length,
        batch_size=settings.batch_size,
        packing=settings.data.packing,
        # ConversationLoss needs every held-out conversation on every process
        readers=1 if held_out else settings.data.readers,
    )


def held_out_loss(
    settings: ConversationTraining, policy: Policy, conversations, mesh: Mesh
) -> ConversationLoss:
    """Return the ConversationLoss of held-out conversations, packed as the settings say."""
    batches = pack_conversations(
        conversations,
        policy.tokenizer,
        rows_of(settings, held_out=True),
        template=policy.template,
        seed=settings.seed,
        num_epochs=1,
    )
    return ConversationLoss(policy.config, list(batches), mesh)


def packed_conversations(
    settings: ConversationTraining,
    policy: Policy,
    conversations,
    loss_of: ConversationLoss | None,
    mesh: Mesh,
) -> PackedDocuments:
    """Return the training loop's batches of conversations.

    Its metric tokens is the sum of the learned tokens' weights.

    Args:
        settings: The settings of the fine-tuning.
        policy: The policy with the tokenizer and the template.
        conversations: The conversations to learn.
        loss_of: Measures the held-out loss before every eval_every-th step; None for no such loss.
        mesh: The mesh of the run.
    """

    def pack(rows):
        return pack_conversations(
            conversations,
            policy.tokenizer,
            rows,
            template=policy.template,
            seed=settings.seed,
        )

    evaluate = None
    if loss_of is not None:

        def evaluate(params):
            return {"held_out_loss": loss_of(params)["loss"][0]}

    return PackedDocuments(
        pack,
        rows_of(settings),
        mesh,
        batch_sizes=((0, settings.batch_size),),
        scalars={},
        evaluate=evaluate,
        eval_every=settings.eval_every,
    )


def fine_tune(
    settings: ConversationTraining, policy: Policy, source: PackedDocuments, run: Run
) -> Any:
    """Train policy.params, which are donated, and return the trained params.

    It resumes from run.folder. Parameters without a gradient stay as they are: router biases,
    multi-token prediction modules and, unless the model's indexer_loss trains them, indexers.
    """
    config, params = policy.config, policy.params
    token_flops = useful_flops(
        config,
        settings.sequence_length,
        trains_mtp=False,
        frozen=isinstance(params, AdaptedParams),
    )
    loss_fn, trained_parts = fine_tuning_loss(config), parts_trained(config)
    return fit(settings, loss_fn, params, source, run, token_flops, trained_parts)


def fine_tuning_loss(config: Network):
    """Return the loss_fn of training.update.make_train_step."""

    def loss_fn(params, batch, rng):
        return next_token_loss(config, params, batch)

    return loss_fn


def fine_tuning_programs(
    name: str,
    settings: ConversationTraining,
    config: Network,
    mesh: Mesh,
    adapter: AdapterSettings | None = None,
) -> list[Program]:
    """Return the programs of fine-tuning: its update, and its held-out loss.

    Args:
        name: The prefix of the programs' names.
        settings: The settings of the fine-tuning.
        config: The Network of the policy.
        mesh: The mesh of the run.
        adapter: The adapter that is trained; None if the whole policy is.
    """
    params = abstract_tree(config, mesh, adapter=adapter)
    rows, length = settings.batch_size, settings.sequence_length
    batch = abstract_rows(mesh, rows, length, weighed=True)
    create, step = create_update(
        settings, fine_tuning_loss(config), params, mesh, trained_parts=parts_trained(config)
    )
    state = create.eval_shape(params)
    update = update_program(f"{name}update", step, state, batch, config=config, mesh=mesh)
    score = jax.jit(functools.partial(target_logprobs, config))
    amount = forward_work(config, rows, length)
    loss_program = Program(f"{name}held-out loss", score, (params, batch), mesh, *amount)
    return [update, *beside([loss_program], moments_of(state))]


class Texts(Source):
    """Conversations to learn, or to measure on."""

    def read(self, context: Context) -> Sequence[dict]:
        """Return the conversations, with random access."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class Tune(Stage):
    """Fine-tuning, on texts, of the policy that it begins from.

    Attributes:
        held_out: The texts of its held-out loss.
        waiting: Rewards with models that are on the devices during the training.
    """

    settings: ConversationTraining
    texts: Texts
    held_out: Texts
    waiting: tuple[RewardSource, ...] = ()

    @override
    def check(self, config, mesh):
        check_positions(self.settings, config)
        check_rows(self.settings, mesh, config.pipeline_micro_batches)

    @override
    def check_data(self, context):
        super().check_data(context)
        # Texts from earlier stages are not there yet
        if not self.texts.reads:
            self._check_texts(context)

    def _check_texts(self, context):
        policy, rows = context.policy, rows_of(self.settings)
        check_conversations(policy, self.texts.read(context), f"{self.name} training", rows)
        held_out, rows = self.held_out.read(context), rows_of(self.settings, held_out=True)
        check_conversations(policy, held_out, f"{self.name} held-out", rows)

    @override
    def programs(self, config, mesh, others):
        programs = fine_tuning_programs(self.prefix, self.settings, config, mesh, self.adapter)
        return beside_models(programs, self.waiting, config, mesh)

    @override
    def run(self, context):
        if self.texts.reads:
            with self.at():
                self._check_texts(context)
        train = self.texts.read(context)
        loss_of = conversation_loss(context, self.settings, self.held_out)
        policy = context.load_start()
        source = packed_conversations(self.settings, policy, train, loss_of, context.mesh)
        return policy.with_params(fine_tune(self.settings, policy, source, context.run))


def conversation_loss(
    context: Context, settings: ConversationTraining, held_out: Texts
) -> ConversationLoss:
    """Return the ConversationLoss of held-out texts; a run makes it once for each form of rows."""

    def make_loss():
        return held_out_loss(settings, context.policy, held_out.read(context), context.mesh)

    form = settings.sequence_length, settings.batch_size, settings.seed
    return context.once((held_out, *form), make_loss)
