"""A stage of supervised fine-tuning on conversations (arXiv:2501.12948, appendix B.4.2)."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.costs.program import Program, beside, forward_work, moments_of, update_program
from deepseek_jax.data.batches import PackedDocuments, abstract_rows
from deepseek_jax.data.conversations import pack_conversations, render_numbered
from deepseek_jax.data.packing import Rows
from deepseek_jax.evaluation.conversation_loss import ConversationLoss
from deepseek_jax.losses.next_token import next_token_loss, parts_trained, target_logprobs
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.adapters import Adapted
from deepseek_jax.parallel.processes import say
from deepseek_jax.recipes.checks import check_positions, check_rows
from deepseek_jax.recipes.kinds.paying import Paid, beside_models
from deepseek_jax.recipes.sft.settings import FineTuneSettings
from deepseek_jax.recipes.stage import Context, Source, Stage
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.loop import fit
from deepseek_jax.training.run import Run
from deepseek_jax.training.update import create_update

# Conversations that are rendered before a run starts: it takes seconds and shows most mistakes
CHECKED = 1000


def check_conversations(policy: Policy, source, kind: str, rows: Rows):
    """Render the first CHECKED conversations, and print their lengths and how many are too long.

    kind: "training" or "held-out", for messages. Raises ValueError where a conversation cannot be rendered or
    has a token outside the model's vocabulary, and where no conversation of a reader fits a row: it would
    search for ever.
    """
    length, readers = rows.sequence_length, rows.readers
    lengths, targets = [], []
    render = functools.partial(render_numbered, policy.tokenizer, template=policy.template)
    for index in range(min(len(source), CHECKED)):
        ids, is_target = render(source[index], index)
        # Under jit a token beyond the embedding would raise no error
        if max(ids) >= policy.config.vocab_size:
            raise ValueError(
                f"conversation {index} of the data has token {max(ids)}, and the model's vocab_size is "
                f"{policy.config.vocab_size}; give the model's own tokenizer"
            )
        lengths.append(len(ids))
        targets.append(sum(is_target))
    lengths, targets = np.array(lengths), np.array(targets)
    fits = lengths <= length
    # Reader i reads every readers-th conversation from i on
    if not all(fits[reader::readers].any() for reader in range(readers)):
        raise ValueError(
            f"sequence_length={length} is too short: {fits.sum()} of the first {len(fits)} {kind} "
            f"conversations fit a row, and the shortest has {lengths.min()} tokens; raise it"
        )
    fitting = lengths[fits]
    filled = fits.mean() * len(source) * (fitting.mean() / length if rows.packing else 1)
    say(
        f"{len(source)} {kind} conversations; the first {len(fits)}: {fitting.mean():.1f} tokens on average, "
        f"{targets[fits].mean():.1f} of them learned, {(~fits).sum()} longer than {length} and left out; "
        f"about {filled / rows.batch_size:.1f} batches"
    )


def rows_of(settings: FineTuneSettings, *, held_out: bool = False):
    """The Rows of these settings; those of the held-out conversations have one reader."""
    return Rows(
        sequence_length=settings.sequence_length,
        batch_size=settings.batch_size,
        packing=settings.data.packing,
        # ConversationLoss needs every held-out conversation on every process
        readers=1 if held_out else settings.data.readers,
    )


def held_out_loss(settings: FineTuneSettings, policy: Policy, conversations, mesh: Mesh):
    """The ConversationLoss of held-out conversations, packed as the settings say."""
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
    settings: FineTuneSettings,
    policy: Policy,
    conversations,
    loss_of: ConversationLoss | None,
    mesh,
):
    """The loop's batches: -> PackedDocuments.

    loss_of gives the held-out loss before every eval_every-th step; None for no such loss. The metric tokens
    is the sum of the learned tokens' weights.
    """

    def pack(rows):
        return pack_conversations(
            conversations,
            policy.tokenizer,
            rows,
            template=policy.template,
            seed=settings.seed,
        )

    def evaluate(params):
        return {"held_out_loss": loss_of(params)["loss"][0]}

    return PackedDocuments(
        pack,
        rows_of(settings),
        mesh,
        batch_sizes=((0, settings.batch_size),),
        scalars={},
        evaluate=None if loss_of is None else evaluate,
        eval_every=settings.eval_every,
    )


def fine_tune(settings: FineTuneSettings, policy: Policy, source: PackedDocuments, run: Run):
    """Train policy.params, which are donated: -> params. Resumes from run.folder.

    What the loss gives no gradient stays as it is: router biases, multi-token prediction modules, and
    indexers unless the model's indexer_loss trains them.
    """
    config, params = policy.config, policy.params
    needed = useful_flops(
        config,
        settings.sequence_length,
        trains_mtp=False,
        frozen=isinstance(params, Adapted),
    )
    loss_fn, parts = fine_tuning_loss(config), parts_trained(config)
    return fit(settings, loss_fn, params, source, run, needed, parts)


def fine_tuning_loss(config: ModelConfig):
    """The loss_fn of training.make_train_step."""

    def loss_fn(params, batch, rng):
        return next_token_loss(config, params, batch)

    return loss_fn


def fine_tuning_programs(
    name: str,
    settings: FineTuneSettings,
    config: ModelConfig,
    mesh: Mesh,
    adapter: AdapterSettings | None = None,
):
    """The update of fine-tuning, and its held-out loss: [Program]. name: a prefix of their names."""
    params = abstract_tree(config, mesh, adapter=adapter)
    rows, length = settings.batch_size, settings.sequence_length
    batch = abstract_rows(mesh, rows, length, weighed=True)
    create, step = create_update(
        settings, fine_tuning_loss(config), params, mesh, parts=parts_trained(config)
    )
    state = create.eval_shape(params)
    update = update_program(f"{name}update", step, state, batch, config=config, mesh=mesh)
    score = jax.jit(functools.partial(target_logprobs, config))
    amount = forward_work(config, rows, length)
    held_out = Program(f"{name}held-out loss", score, (params, batch), mesh, *amount)
    return [update, *beside([held_out], moments_of(state))]


class Texts(Source):
    """Conversations to learn, or to measure on."""

    def read(self, context: Context) -> Sequence[dict]:
        """The conversations, by random access."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class Tune(Stage):
    """Fine-tuning on texts of the policy that it begins from. held_out: the texts of its held-out loss.
    waiting: rewards whose models are on the devices meanwhile.
    """

    settings: FineTuneSettings
    texts: Texts
    held_out: Texts
    waiting: tuple[Paid, ...] = ()

    def check(self, config, mesh):
        check_positions(self.settings, config)
        check_rows(self.settings, mesh, config.pipeline_micro_batches)

    def check_data(self, context):
        super().check_data(context)
        # Texts of earlier stages are not there yet
        if not self.texts.reads:
            self._check_texts(context)

    def _check_texts(self, context):
        policy, rows = context.policy, rows_of(self.settings)
        check_conversations(policy, self.texts.read(context), f"{self.name} training", rows)
        held_out, rows = self.held_out.read(context), rows_of(self.settings, held_out=True)
        check_conversations(policy, held_out, f"{self.name} held-out", rows)

    def programs(self, config, mesh, others):
        programs = fine_tuning_programs(self.prefix, self.settings, config, mesh, self.adapter)
        return beside_models(programs, self.waiting, config, mesh)

    def run(self, context):
        if self.texts.reads:
            with self.at():
                self._check_texts(context)
        train = self.texts.read(context)
        loss_of = conversation_loss(context, self.settings, self.held_out)
        policy = context.begin()
        source = packed_conversations(self.settings, policy, train, loss_of, context.mesh)
        return policy.at(fine_tune(self.settings, policy, source, context.run))


def conversation_loss(context: Context, settings: FineTuneSettings, held_out: Texts):
    """The ConversationLoss of held-out texts, one in a run for each form of rows."""

    def make():
        return held_out_loss(settings, context.policy, held_out.read(context), context.mesh)

    form = settings.sequence_length, settings.batch_size, settings.seed
    return context.once((held_out, *form), make)
