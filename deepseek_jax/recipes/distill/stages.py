"""The stages of a distillation: the teacher, its texts, the students' starts, and each student."""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

from deepseek_jax.checkpoint import is_adapter, is_orbax, save_adapter, save_orbax
from deepseek_jax.checkpoint.folder import fingerprint
from deepseek_jax.data.messages import worked_conversations
from deepseek_jax.data.tasks import Task
from deepseek_jax.data.tokenizer import checkpoint_path
from deepseek_jax.errors import at
from deepseek_jax.evaluation.conversation_loss import ConversationLoss
from deepseek_jax.files import as_path
from deepseek_jax.models import build_model, how_to_run, random_params
from deepseek_jax.models.adapters import Adapted, with_adapter
from deepseek_jax.recipes.distill.settings import (
    DistillSettings,
    ReinforcedSettings,
    StartSettings,
    StudentSettings,
)
from deepseek_jax.recipes.distill.student import StudentRun
from deepseek_jax.recipes.pretrain.train import train_base
from deepseek_jax.recipes.r1.settings import R1FineTuneSettings
from deepseek_jax.recipes.sft.data import check_conversations, packed, rows_of
from deepseek_jax.recipes.sft.run import fine_tune, packed_conversations
from deepseek_jax.recipes.start import frozen
from deepseek_jax.reinforce.grpo import reinforce
from deepseek_jax.rollout.policy import fitting, load_policy
from deepseek_jax.synthesis.rejection import read_accepted, sample_accepted
from deepseek_jax.training.lineage import (
    content_hash,
    measure_once,
    run_stage,
)
from deepseek_jax.training.run import Run
from deepseek_jax.worlds.registry import named_tokenizer, open_rewards
from deepseek_jax.worlds.world import World


class Made(NamedTuple):
    """A policy on disk. hash: of all its inputs. path: of its parameters.

    model: fields of RunSettings, and those of an architecture or none. tokenizer: a name for
    worlds.registry.named_tokenizer. positions: max_position_embeddings in place of the checkpoint's own, or
    None. adapter: the folder of the adapter beside those parameters, or None.
    """

    name: str
    hash: str
    path: Path
    model: dict
    tokenizer: str
    positions: int | None = None
    adapter: Path | None = None

    def load(self, mesh, template: str, *, trained: bool = True, learns: bool | None = None):
        """The Policy. Reads its params again on each call, because training donates them.

        trained: all of them, see load_policy. learns: whether the policy is trained at all, at its own
        positions; default trained. Beside an adapter it learns and is not trained.
        """
        tokenizer = named_tokenizer(self.tokenizer) if is_orbax(self.path) else None
        options = dict(template=template, tokenizer=tokenizer, trained=trained)
        policy = load_policy(str(self.path), self.model, mesh, **options)
        policy = policy.with_adapter_of(self.adapter, mesh)
        if self.positions is None or not (trained if learns is None else learns):
            return policy
        config = dataclasses.replace(policy.config, max_position_embeddings=self.positions)
        return dataclasses.replace(policy, config=config)


@dataclasses.dataclass(frozen=True)
class DistillStages:
    """The stages as methods: earlier results in, Made out. Each runs once, see lineage.

    puzzles: the Task of the world's reasoning questions.
    """

    settings: DistillSettings
    puzzles: Task
    run: Run

    def teacher(self, world: World, questions: dict[str, Task]):
        """The checkpoint of config.teacher.path, or a teacher that is trained first."""
        teacher = self.settings.teacher
        if teacher.path is None:
            start = StartSettings(
                model=teacher.model, base=teacher.base, tokenizer=teacher.tokenizer
            )
            base = self._pretrained("teacher_base", start)
            return self._taught(teacher.fine_tune, base, world, questions)
        # Not the architecture, which the checkpoint has to have
        how = how_to_run(teacher.model)
        own = content_hash([fingerprint(teacher.path), teacher.tokenizer, how])
        return Made("teacher", own, as_path(teacher.path), teacher.model, teacher.tokenizer)

    def text(self, world: World, teacher: Made):
        """The teacher's right answers to puzzles: (their hash, dicts of question and solution)."""
        settings, seed = self.settings.text, self.settings.seed
        puzzles = self.puzzles.train[: settings.num_prompts]
        rule = world.questions[world.reasoning].rule

        def make(folder):
            path = folder / "accepted.jsonl"
            if not path.exists():
                policy = self._loaded(teacher, trained=False)
                with at("config.text"):
                    asked = policy.with_prompts(puzzles)
                    sample_accepted(settings, policy, asked, path, rule=rule, seed=seed)

        inputs = {"settings": self._about(settings), "parent": teacher.hash, "data": puzzles}
        own = run_stage(self.run.folder, "text", inputs, make)
        return own, read_accepted(self.run.folder / "text" / "accepted.jsonl")

    def start(self, name: str):
        """The start config.starts.NAME: a checkpoint, or a model that is pre-trained or random."""
        start = self.settings.starts[name]
        if start.init_from is None:
            return self._pretrained(f"starts/{name}", start)
        # Not the architecture, which the checkpoint has to have
        how = dataclasses.replace(start, model=how_to_run(start.model))
        own = content_hash([fingerprint(start.init_from), how])
        given = (
            as_path(start.init_from),
            start.model,
            start.init_from,
            start.max_position_embeddings,
        )
        return Made(f"starts/{name}", own, *given)

    def student(
        self, name: str, student: StudentSettings, start: Made, texts, teacher: Made | None
    ):
        """A student that learns from texts, and from the teacher where its loss needs one.

        texts: (hash, name -> TransferTask).
        """
        digest, tasks = texts
        # A student whose loss needs no teacher must not be trained again for another teacher
        teacher = teacher if student.loss.asks_teacher() else None
        inputs = {"settings": self._about(student), "texts": digest, "parent": start.hash}
        inputs["teacher"] = None if teacher is None else teacher.hash
        inputs["batches"] = [self.settings.mixing_temperature, self.settings.packing]
        # Students that were trained before there were several readers stay as they are
        if self.settings.readers > 1:
            inputs["batches"].append(self.settings.readers)

        def train(run):
            taught = None if teacher is None else self._loaded(teacher, trained=False)
            student_of = StudentRun(self.settings, name, student, tasks, run.of(name, run.folder))
            return student_of.train(self._learner(name, student, start), taught)

        return self._trained(f"students/{name}", inputs, train, like=start)

    def _learner(self, name: str, student: StudentSettings, start: Made):
        """The start's Policy as a student trains it: all of it, or an adapter beside it."""
        adapter, mesh = student.adapter, self.run.mesh
        if adapter is None:
            return self._loaded(start)
        read = functools.partial(
            start.load, template=self.settings.template, trained=False, learns=True
        )
        with at(f"config.students.{name}.adapter"):
            policy = frozen(read, adapter, mesh)
            own = policy.config, policy.params, adapter, mesh, student.seed
            return policy.at(with_adapter(*own))

    def reinforced(self, name: str, settings: ReinforcedSettings, start: Made):
        """A student that learns from rewards alone, on the puzzles whose texts the other students learn."""
        puzzles = self.puzzles.train
        inputs = {"settings": self._about(settings), "parent": start.hash, "data": puzzles}

        def train(run):
            policy, rollout = self._loaded(start), settings.rollout
            with at(f"config.reinforced.{name}.rollout"):
                asked = policy.with_prompts(puzzles)
                asked = fitting(asked, rollout.max_prompt_length, "training")
            with open_rewards(settings.rewards) as rewards:
                with at(f"config.reinforced.{name}.rewards"):
                    rewards.check(puzzles)
                # train wants a folder of checkpoints alone; the stage has stage.json and params beside them
                phase = run.of(name, run.folder / "checkpoints")
                return policy.config, reinforce(settings, policy, asked, rewards, phase)

        return self._trained(f"reinforced/{name}", inputs, train, like=start)

    def measured(self, made: Made, texts, measure):
        """measure(policy=Policy), computed once for this policy and these questions."""
        inputs = {"settings": self._about(self.settings.evaluation), "parent": made.hash}
        inputs["questions"] = [task.questions for task in texts[1].values()]

        def found():
            return measure(policy=self._loaded(made, trained=False))

        return measure_once(self.run.folder, f"measured/{made.name}", inputs, found)

    def _loaded(self, made: Made, *, trained: bool = True):
        return made.load(self.run.mesh, self.settings.template, trained=trained)

    def _pretrained(self, name: str, start: StartSettings):
        """A stage whose result is the start's model, pre-trained by start.base or random."""
        config, tokenizer = build_model(start.model), named_tokenizer(start.tokenizer)
        seed, phase = self.settings.seed, f"pretrain_{Path(name).name}"

        def train(run):
            if start.base is None:
                return config, random_params(config, run.mesh, seed)
            return config, train_base(config, start.base, tokenizer, run.of(phase), seed)

        # The saved model is read with RunSettings, which have only some fields of its block
        like = Made(name, "", self.run.folder, how_to_run(start.model), start.tokenizer)
        return self._trained(name, {"settings": self._about(start)}, train, like=like)

    def _taught(
        self, settings: R1FineTuneSettings, base: Made, world: World, questions: dict[str, Task]
    ):
        """The teacher's base, fine-tuned on worked puzzles and requests."""
        settings = dataclasses.replace(settings, seed=self.settings.seed)
        counts = {
            world.reasoning: settings.data.num_puzzles,
            world.general: settings.data.num_requests,
        }
        examples, conversations = [], []
        for name in filter(None, counts):
            some = questions[name].train[: counts[name]]
            examples += some
            conversations += worked_conversations(some, world.questions[name].worked)
        reasoning = world.questions[world.reasoning]
        held_out = worked_conversations(self.puzzles.held_out, reasoning.worked)

        def train(run):
            policy = self._loaded(base)
            with at("config.teacher.fine_tune"):
                check_conversations(policy, conversations, "teacher's", rows_of(settings))
            whole = rows_of(settings, held_out=True)
            batches = list(packed(settings, policy, held_out, whole, num_epochs=1))
            loss_of = ConversationLoss(policy.config, batches, run.mesh)
            source = packed_conversations(settings, policy, conversations, loss_of, run.mesh)
            phase = run.of("teacher", run.folder / "checkpoints")
            return policy.config, fine_tune(settings, policy, source, phase)

        inputs = {"settings": self._about(settings), "parent": base.hash, "data": examples}
        return self._trained("teacher", inputs, train, like=base)

    def _trained(self, name: str, inputs: dict, train, *, like: Made):
        """A stage that saves what train(run) returns, (ModelConfig, params): -> Made, otherwise as `like`.

        Of params with an adapter it saves the adapter alone, which belongs to the parameters of `like`.
        """

        def make(folder):
            # A run that was killed after this save calls make again
            if is_orbax(folder / "params") or is_adapter(folder / "adapter"):
                return
            config, params = train(self.run.within(folder))
            if isinstance(params, Adapted):
                save_adapter(folder / "adapter", config, params, checkpoint_path(like.path))
            else:
                save_orbax(folder / "params", config, params)

        own, folder = run_stage(self.run.folder, name, inputs, make), self.run.folder / name
        if is_adapter(folder / "adapter"):
            return like._replace(name=name, hash=own, adapter=folder / "adapter")
        return like._replace(name=name, hash=own, path=folder / "params")

    def _about(self, block):
        """A stage's settings for the lineage: its block, the template and the seed."""
        return {"block": block, "template": self.settings.template, "seed": self.settings.seed}
