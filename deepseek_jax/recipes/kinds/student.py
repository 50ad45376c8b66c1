"""The training of one student: its batches, the teacher's cached targets, its held-out losses.

Tests: tests/recipes/distill/test_run.py.
"""

import dataclasses
import functools
from pathlib import Path

import jax

from deepseek_jax.data.conversations import pack_conversations, weighed_tokens
from deepseek_jax.data.packing import Rows
from deepseek_jax.data.stored import RandomAccess
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.distill.cache import top_k_records
from deepseek_jax.distill.cached_targets import pack_targets, write_targets
from deepseek_jax.distill.objective import Objective
from deepseek_jax.distill.paired_conversations import pack_paired
from deepseek_jax.distill.source import (
    HELD_OUT_LOSS,
    DistillSource,
    OnPolicyRows,
    TaskWatch,
    prompts_of,
)
from deepseek_jax.distill.token_alignment import shared_vocabulary
from deepseek_jax.distill.update import train_student
from deepseek_jax.errors import at
from deepseek_jax.evaluation.conversation_loss import ConversationLoss
from deepseek_jax.models.network_config import Network, require_model_config
from deepseek_jax.recipes.distill.settings import StudentSettings
from deepseek_jax.recipes.distill.tasks import StudentTexts, TransferTask, mixed
from deepseek_jax.recipes.kinds.tune import check_conversations
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.run import Run
from deepseek_jax.trees import PyTree

# The most prompts of each task that on-policy rows are drawn from
MOST_PROMPTS = 4096


@dataclasses.dataclass(frozen=True)
class StudentRun:
    """The training of one student.

    Attributes:
        stage: The stage, which has its name and its settings.
        texts: The texts that it learns.
        run: The Run of its phase.
        folder: The folder for the teacher's cached targets.
    """

    stage: Stage
    texts: StudentTexts
    run: Run
    folder: Path

    @property
    def student(self) -> StudentSettings:
        """The student's settings."""
        return self.stage.settings

    @property
    def tasks(self) -> dict[str, TransferTask]:
        """The student's tasks."""
        return self.texts.tasks

    def train(self, policy: Policy, taught: Policy | None) -> Policy:
        """Train the student and return its Policy.

        Args:
            policy: The policy to begin from; its params are donated.
            taught: The teacher's Policy; None if no term needs one.
        """
        self.check_texts(policy)
        objective = self.objective(policy, taught)
        watch = self._watch(policy)
        source = DistillSource(
            self._batches(policy, taught),
            self._rows(),
            self.run.mesh,
            watch=watch,
            sampler=self._sampler(policy),
            batch_sizes=((0, self.student.batch_size),),
            scalars={
                "temperature": self.student.loss.temperature_at,
                # PackedDocuments.next calls this after the evaluation of the same step
                HELD_OUT_LOSS: lambda step: watch.latest,
            },
            eval_every=self.student.eval_every,
            learns_texts=self.student.loss.learns_texts(),
        )
        teacher_params: PyTree = {}
        if self.student.loss.reads_teacher():
            # Distil has a teacher if the loss asks for one; so have the methods below
            assert taught is not None
            teacher_params = taught.params
        elif taught is not None:
            # The teacher's targets are cached, and training needs its memory
            jax.tree.map(lambda leaf: leaf.delete(), taught.params)
        both_params = policy.params, teacher_params
        with self.stage.at():
            params = train_student(self.student, objective, *both_params, source, self.run)
        end, phase = self.student.num_steps, self.run.phase
        # If an earlier run was interrupted after this record, start removes it
        self.run.writer.start(phase, end, end)
        self.run.writer.write(end, watch(params), phase=phase)
        self.run.writer.end()
        return policy.with_params(params)

    def check_texts(self, policy: Policy):
        """Check the texts of every task with kinds.tune.check_conversations."""
        for name, task in self.tasks.items():
            with self.stage.at():
                check_conversations(policy, task.train, f"{name} training", self._rows())
                held_out_rows = self._rows(held_out=True)
                check_conversations(policy, task.held_out, f"{name} held-out", held_out_rows)

    def objective(self, policy: Policy, taught: Policy | None) -> Objective:
        """Return the Objective of config.students.NAME.loss.

        Raises:
            ValueError: Terms compare token by token, and the teacher has another tokenizer.
        """
        if taught is None:
            return objective_of(self.stage, policy.config, None)
        shared_pairs = self._shared(policy.tokenizer, taught.tokenizer)
        return objective_of(self.stage, policy.config, taught.config, shared_pairs)

    def _shared(self, tokenizer: Tokenizer, teacher_tokenizer: Tokenizer):
        """Return the pairs of shared_vocabulary as tuples; () if no term needs them."""
        loss = self.student.loss
        # True: with tokens that were added to the vocabulary, such as a chat template's
        vocab, teacher_vocab = (t.backend.get_vocab(True) for t in (tokenizer, teacher_tokenizer))
        if loss.needs("matched", "sorted"):
            # shared_vocabulary pairs tokens by spelling; end tokens are a pair even if they are
            # spelled differently
            end_tokens = _end_token(tokenizer), _end_token(teacher_tokenizer)
            with self.stage.at(), at("loss"):
                pairs = shared_vocabulary(vocab, teacher_vocab, end_tokens)
            return tuple(tuple(ids.tolist()) for ids in pairs)
        if vocab != teacher_vocab:
            raise ValueError(
                f"{self.stage.config_path}.loss.weights compares token by token, and the start's "
                "tokenizer is not the teacher's; set weights.matched, weights.sorted and weights.hard alone"
            )
        return ()

    def _rows(self, *, held_out: bool = False) -> Rows:
        """Return a batch's Rows; held-out texts have one reader."""
        return Rows(
            sequence_length=self.student.sequence_length,
            batch_size=self.student.batch_size,
            packing=self.texts.packing,
            # ConversationLoss needs every held-out text on every process
            readers=1 if held_out else self.texts.readers,
        )

    def _batches(self, policy: Policy, teacher: Policy | None):
        """Return a function from Rows to one reader's packed texts of all tasks.

        Where a term needs them, the texts have the teacher's tokens or its cached top k.
        """
        tokenizer, seed = policy.tokenizer, self.student.seed
        temperature, template = self.texts.mixing_temperature, policy.template
        mixture = mixed([task.train for task in self.tasks.values()], temperature)
        if self.student.loss.needs("matched", "sorted"):
            assert teacher is not None
            return lambda rows: pack_paired(
                mixture, tokenizer, teacher.tokenizer, rows, template=template, seed=seed
            )
        top_k = self.student.loss.top_k
        if top_k is None:
            return lambda rows: pack_conversations(
                mixture, tokenizer, rows, template=template, seed=seed
            )
        assert teacher is not None
        cached_texts = [
            self._cached(name, task.train, policy, teacher, top_k)
            for name, task in self.tasks.items()
        ]
        # Sizes, seed and temperature are those without a cache, so the student learns the same
        # texts
        mixture = mixed(cached_texts, temperature)
        return lambda rows: pack_targets(mixture, rows, seed=seed, pad_id=tokenizer.pad_id)

    def _cached(
        self, name: str, conversations: RandomAccess, policy: Policy, teacher: Policy, top_k: int
    ):
        """Return the texts of a task with the teacher's top k.

        They are written to folder/targets/TASK first.
        """
        student, loss = self.student, self.student.loss
        render = functools.partial(weighed_tokens, policy.tokenizer, template=policy.template)
        texts = (render(conversations[i], i) for i in range(len(conversations)))
        with self.stage.at(), at("loss"):
            records = top_k_records(
                require_model_config(teacher.config, "distillation"),
                teacher.params,
                texts,
                top_k,
                # As many rows at once as an update reads, because there is memory for these
                shape=(student.batch_size // student.micro_batches, student.sequence_length),
                mesh=self.run.mesh,
                vocab_size=loss.vocab_size,
                # With top_k, LossSettings allow only a single temperature
                temperature=loss.temperature_at(0),
            )
        folder = self.folder / "targets" / name
        return write_targets(records, top_k, folder, led=records.led)

    def _watch(self, policy: Policy):
        """Return the TaskWatch of the held-out texts."""
        rows = self._rows(held_out=True)

        def held_out_batches(task):
            return pack_conversations(
                task.held_out,
                policy.tokenizer,
                rows,
                template=policy.template,
                seed=self.student.seed,
                num_epochs=1,
            )

        batches = {name: list(held_out_batches(task)) for name, task in self.tasks.items()}
        return TaskWatch(
            ConversationLoss(policy.config, [], self.run.mesh), batches, self.run.phase
        )

    def _sampler(self, policy: Policy):
        """Return the OnPolicyRows; None if the loss has no on_policy."""
        on_policy = self.student.loss.on_policy
        if on_policy is None:
            return None
        prompts = []
        for task in self.tasks.values():
            prompts += prompts_of(task.train, policy, MOST_PROMPTS)
        with self.stage.at(), at("loss.on_policy"):
            return OnPolicyRows(
                policy,
                prompts,
                on_policy,
                sequence_length=self.student.sequence_length,
                seed=self.student.seed,
            )


def _end_token(tokenizer: Tokenizer) -> str:
    token = tokenizer.backend.id_to_token(tokenizer.eos_id)
    # A tokenizer's own end token is in its vocabulary
    assert token is not None
    return token


def objective_of(
    stage: Stage, config: Network, teacher: Network | None, shared: tuple = ()
) -> Objective:
    """Return the Objective of a student.

    Args:
        stage: The stage, which has the loss in its settings.
        config: The student's ModelConfig.
        teacher: The teacher's ModelConfig, or None.
        shared: Pairs of tokens, see Objective.
    """
    loss, on_policy = stage.settings.loss, stage.settings.loss.on_policy
    with stage.at(), at("loss"):
        objective = Objective(
            student=require_model_config(config, "distillation"),
            teacher=None if teacher is None else require_model_config(teacher, "distillation"),
            weights={name: weight for name, weight in loss.weights.items() if weight},
            divergence=loss.divergence,
            beta=loss.beta,
            relation_heads=loss.relation_heads,
            vocab_size=loss.vocab_size,
            micro_batches=stage.settings.micro_batches,
            shared=shared,
        )
        if on_policy is None:
            return objective
        return dataclasses.replace(
            objective,
            on_policy_divergence=on_policy.divergence,
            on_policy_beta=on_policy.beta,
        )
