"""The stages of a distillation: a teacher, its texts, what students start from, and each student."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from deepseek_jax.checkpoint import is_orbax, load_orbax, save_orbax
from deepseek_jax.checkpoint.folder import fingerprint
from deepseek_jax.data.messages import worked_conversations
from deepseek_jax.data.tasks import QuestionStream
from deepseek_jax.errors import at
from deepseek_jax.evaluation.conversation_loss import ConversationLoss
from deepseek_jax.models.config import RunSettings
from deepseek_jax.parallel.processes import barrier, first_process
from deepseek_jax.parallel.shard import batch_share
from deepseek_jax.recipes.blocks import build_model, load_pretrained, random_params
from deepseek_jax.recipes.distill.settings import DistillSettings, StartSettings
from deepseek_jax.recipes.distill.student import StudentRun
from deepseek_jax.recipes.distill.tasks import prompted
from deepseek_jax.recipes.pretrain.run import train_base
from deepseek_jax.recipes.sft.data import check_conversations, packed, rows_of
from deepseek_jax.recipes.sft.run import fine_tune, packed_conversations
from deepseek_jax.recipes.start import ending_turns, load_policy
from deepseek_jax.reinforce.update import fitting, reinforce
from deepseek_jax.synthesis.rejection import read_accepted, sample_accepted
from deepseek_jax.training.lineage import Formerly, all_fields, content_hash, run_stage
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.worlds.registry import named_tokenizer, open_rewards
from deepseek_jax.worlds.world import given_solution


class Made(NamedTuple):
    """A policy that is there: the hash of all that went into it, and where its parameters lie.

    model: of RunSettings, how to run it. tokenizer: as worlds.registry.named_tokenizer takes it. positions:
    max_position_embeddings in place of the checkpoint's own, or None.
    """

    name: str
    hash: str
    path: Path
    model: dict
    tokenizer: str
    positions: int | None = None

    def load(self, mesh, *, trained=True):
        """(ModelConfig, params, Tokenizer), anew each time: whoever trains params uses them up."""
        if not trained:
            return load_policy(str(self.path), self.model, mesh, self.tokenizer)
        if is_orbax(self.path):
            config, params = load_orbax(self.path, mesh=mesh)
            config, tokenizer = (
                dataclasses.replace(config, **self.model),
                named_tokenizer(self.tokenizer),
            )
        else:
            config, params, tokenizer = load_pretrained(str(self.path), self.model, mesh)
        if self.positions is not None:
            config = dataclasses.replace(config, max_position_embeddings=self.positions)
        return config, params, tokenizer


@dataclasses.dataclass(frozen=True)
class DistillStages:
    """The stages as methods: what they go on from in, Made out; done once each, see lineage.

    world: of distill_data.small_world.
    """

    settings: DistillSettings
    world: dict
    mesh: Mesh
    workdir: Path
    writer: MetricsWriter
    should_stop: Callable

    def teacher(self):
        """The checkpoint of config.teacher.path, or a teacher that is made first."""
        teacher = self.settings.teacher
        if teacher.path is None:
            start = StartSettings(
                model=teacher.model, base=teacher.base, tokenizer=teacher.tokenizer
            )
            return self._taught(teacher.fine_tune, self._pretrained("teacher_base", start))
        own = content_hash([fingerprint(teacher.path), teacher.tokenizer, teacher.model])
        return Made("teacher", own, Path(teacher.path), teacher.model, teacher.tokenizer)

    def text(self, teacher):
        """The right answers of the teacher to puzzles: (their hash, dicts of question and solution)."""
        settings = self.settings.text
        puzzles = self.world["puzzles"].train[: settings.num_prompts]

        def make(folder):
            path = folder / "accepted.jsonl"
            if not path.exists():
                policy, params, tokenizer = teacher.load(self.mesh, trained=False)
                asked = prompted(puzzles, tokenizer, self.settings.template)
                options = dict(seed=self.settings.seed)
                with at("config.text"):
                    sample_accepted(settings, policy, params, tokenizer, asked, path, **options)

        inputs = {"settings": self._about(settings), "parent": teacher.hash, "data": puzzles}
        own = run_stage(self.workdir, "text", inputs, make)
        return own, read_accepted(self.workdir / "text" / "accepted.jsonl")

    def start(self, name):
        """What the students of this name start from."""
        start = self.settings.starts[name]
        if start.init_from is None:
            return self._pretrained(f"starts/{name}", start)
        about = [fingerprint(start.init_from), start]
        own = Formerly(content_hash(about), content_hash(about, whole=True))
        given = Path(start.init_from), start.model, start.init_from, start.max_position_embeddings
        return Made(f"starts/{name}", own, *given)

    def student(self, name, student, start, texts, teacher):
        """A student that learns from texts, and from the teacher what its terms ask.

        texts: (hash, name -> TransferTask). teacher: Made, or None.
        """
        digest, tasks = texts
        teacher = teacher if student.loss.asks_teacher() else None
        inputs = {"settings": self._about(student), "texts": digest, "parent": start.hash}
        inputs["teacher"] = None if teacher is None else teacher.hash
        inputs["batches"] = [self.settings.mixing_temperature, self.settings.packing]

        def train(folder):
            taught = None if teacher is None else teacher.load(self.mesh, trained=False)
            student_of = StudentRun(self.settings, name, student, tasks, self.mesh, folder)
            return student_of.train(start.load(self.mesh), taught, **self._running())

        return self._trained(f"students/{name}", inputs, train, like=start)

    def reinforced(self, name, settings, start):
        """A student that learns from rewards alone, on the puzzles that the others have texts of."""
        puzzles = self.world["puzzles"].train
        inputs = {"settings": self._about(settings), "parent": start.hash, "data": puzzles}

        def train(folder):
            policy, params, tokenizer = start.load(self.mesh)
            policy = ending_turns(policy, tokenizer, self.settings.template)
            asked = prompted(puzzles, tokenizer, self.settings.template)
            with at(f"config.reinforced.{name}.rollout"):
                asked = fitting(asked, settings.rollout, "training")
            stream = QuestionStream(asked, settings.seed)
            with open_rewards(settings.rewards) as rewards:
                with at(f"config.reinforced.{name}.rewards"):
                    rewards.check(puzzles)
                made = settings, policy, tokenizer, params, stream, rewards, self.mesh
                folder = folder / "checkpoints"
                return policy, reinforce(*made, folder, phase=name, **self._running())

        return self._trained(f"reinforced/{name}", inputs, train, like=start)

    def measured(self, made, texts, measure):
        """What measure(policy, params, tokenizer) says, measured once for this policy and these questions."""

        def make(folder):
            found = measure(*made.load(self.mesh, trained=False))
            if first_process():
                (folder / "scores.json").write_text(json.dumps(found))

        inputs = {"settings": self._about(self.settings.evaluation), "parent": made.hash}
        inputs["questions"] = [task.questions for task in texts[1].values()]
        run_stage(self.workdir, f"measured/{made.name}", inputs, make)
        barrier(f"the scores of {made.name} are there")
        return json.loads((self.workdir / "measured" / made.name / "scores.json").read_text())

    def _pretrained(self, name, start):
        """A model of StartSettings, pre-trained on the spot, or random."""
        policy, tokenizer = build_model(start.model), named_tokenizer(start.tokenizer)
        if tokenizer.vocab_size > policy.vocab_size:
            raise ValueError(
                f"{name}: model.vocab_size={policy.vocab_size} is below the tokenizer's "
                f"{tokenizer.vocab_size}; raise it"
            )
        seed = self.settings.seed

        def train(folder):
            if start.base is None:
                return policy, random_params(policy, self.mesh, seed)[0]
            made = policy, start.base, tokenizer, self.mesh, folder
            return policy, train_base(
                *made, seed=seed, name=f"pretrain_{Path(name).name}", **self._running()
            )

        how = {f.name for f in dataclasses.fields(RunSettings)} & start.model.keys()
        how = {name: start.model[name] for name in how}
        like = Made(name, "", self.workdir, how, start.tokenizer)
        return self._trained(name, {"settings": self._about(start)}, train, like=like)

    def _taught(self, settings, base):
        """The teacher's base, shown worked puzzles and requests."""
        settings = dataclasses.replace(settings, seed=self.settings.seed)
        shown, (puzzles, requests) = settings.data, self.world.values()
        examples = puzzles.train[: shown.num_puzzles] + requests.train[: shown.num_requests]
        conversations = worked_conversations(examples, given_solution)
        held_out = worked_conversations(puzzles.held_out, given_solution)

        def train(folder):
            policy, params, tokenizer = base.load(self.mesh)
            _, shares = batch_share(self.mesh)
            checked = policy, tokenizer, conversations, "teacher's", shares
            check_conversations(*checked, rows_of(settings), "config.teacher.fine_tune")
            batches = list(packed(settings, tokenizer, held_out, num_epochs=1))
            loss_of = ConversationLoss(policy, batches, self.mesh)
            source = packed_conversations(settings, tokenizer, conversations, loss_of, self.mesh)
            made = settings, policy, params, source, self.mesh, folder / "checkpoints"
            return policy, fine_tune(*made, phase="teacher", **self._running())

        inputs = {"settings": self._about(settings), "parent": base.hash, "data": examples}
        return self._trained("teacher", inputs, train, like=base)

    def _trained(self, name, inputs, train, *, like):
        """A stage whose result is what train(folder) returns, (ModelConfig, params): -> Made."""

        def make(folder):
            if not is_orbax(folder / "params"):
                save_orbax(folder / "params", *train(folder))

        own = run_stage(self.workdir, name, inputs, make)
        return like._replace(name=name, hash=own, path=self.workdir / name / "params")

    def _about(self, block):
        """A block's numbers for the lineage, with what all stages share."""
        shared = {"template": self.settings.template, "seed": self.settings.seed}
        return Formerly({"block": block} | shared, all_fields(block) | shared)

    def _running(self):
        return dict(writer=self.writer, should_stop=self.should_stop)
