"""Many teachers: their parameters, and the student's samples that each of them reads.

A teacher's parameters wait in the host's memory, and come to the devices in two parts
(arXiv:2606.19348): its body while it reads the samples of its task, and its head while the student
learns from them. In between only the body's last hidden states stay. So the devices hold one body
or one head at a time, whatever the number of teachers.
"""

import dataclasses
import functools
from collections.abc import Callable

import grain
import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from jax.sharding import Mesh

from deepseek_jax.distill.teacher_settings import TaughtSettings, TeacherSettings
from deepseek_jax.losses.completions import completion_states
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.network import head_weight
from deepseek_jax.models.reward import decoder_params
from deepseek_jax.parallel.host_memory import return_much_freed_memory
from deepseek_jax.parallel.shard import batch_sharding, on_device
from deepseek_jax.reinforce.batch import (
    completion_batch,
    learned_tokens,
    owners_of,
    put_completions,
    row_multiple,
    totals,
)
from deepseek_jax.reinforce.groups import completion_groups
from deepseek_jax.reinforce.metrics import StepRecord
from deepseek_jax.reinforce.sampler import Sampler, named
from deepseek_jax.rollout.answers import Answers
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.state import in_memory

# Batch key of a teacher's last hidden states, [b c d] as in losses.completions.PredictionInputs
HIDDEN = "teacher_hidden"


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher.

    Attributes:
        policy: The teacher's policy; its params wait in the host's memory.
    """

    policy: Policy

    @classmethod
    def waiting(cls, policy: Policy) -> "Teacher":
        """Move a policy's params from the devices, where they are freed, to the host's memory."""
        places = jax.tree.map(lambda leaf: in_memory(leaf.sharding, "host"), policy.params)
        # The next teacher's params must not arrive before these have gone
        return cls(policy.with_params(jax.block_until_ready(jax.device_put(policy.params, places))))

    def body(self) -> dict:
        """Put the params that compute the last hidden states on the devices."""
        return on_device(decoder_params(self.policy.params))

    def head(self) -> jax.Array:
        """Put the output matrix, [v d], on the devices."""
        return on_device(head_weight(self.policy.config, self.policy.params))


def jitted_states(config: ModelConfig, mesh: Mesh) -> Callable[[dict, dict], jax.Array]:
    """Build the jitted function that computes a teacher's hidden states.

    Returns:
        (decoder_params, batch) -> the hidden states that predict the batch's completions, [b c d]
        in the config's dtype.
    """

    def states(params, batch):
        if not config.tie_word_embeddings:
            # Linen requires a head, though nothing reads it: the compiler drops it
            params = params | {"head": jnp.zeros((config.vocab_size, config.hidden_size))}
        return completion_states(config, params, batch).hidden

    return jax.jit(states, out_shardings=batch_sharding(mesh))


class TeacherSource:
    """A source of steps: the student's completions by teacher, with the teachers' hidden states.

    Every question of a task comes once an epoch, without end. settings.seed sets the order,
    which is new each epoch.

    Args:
        policy: The student's; its own params are not read.
        teachers: Name -> Teacher.
        questions: Task -> examples with prompt_ids.

    Attributes:
        positions: Count of questions of each task so far; this is the whole state.
        record: The StepRecord of the latest step.
    """

    def __init__(
        self,
        settings: TaughtSettings,
        policy: Policy,
        teachers: dict[str, Teacher],
        questions: dict[str, list],
        mesh: Mesh,
        folder: Path | None = None,
    ):
        self.settings, self.teachers, self.mesh = settings, teachers, mesh
        self.sampler = Sampler(policy, settings, folder)
        self.questions = {
            task: grain.MapDataset.source(questions[task]).shuffle(settings.seed).repeat()
            for task in settings.prompts_per_step
        }
        self.positions = dict.fromkeys(self.questions, 0)
        # Teachers of one architecture share their compiled programs
        self.states = functools.cache(lambda config: jitted_states(config, mesh))
        self.record = StepRecord(mesh)

    def get_state(self):
        """Return the state for set_state, as JSON can hold it."""
        self.sampler.forget()
        return {"positions": dict(self.positions)}

    def set_state(self, state):
        """Resume after the questions that get_state counted."""
        self.positions = dict(state["positions"])

    def next(self, state, step: int):
        """Sample, and let each teacher read its samples.

        Returns:
            ([{teacher's name: batch}], metrics): one batch, for taught.TeachersUpdate.
            teacher_seconds are for moving the teachers' parameters and for their forward passes.
            The other times and counts are of StepRecord.
        """
        # Updates are dispatched asynchronously: the previous step's update may not have ended
        jax.block_until_ready(state.params)
        return_much_freed_memory()
        record = self.record = StepRecord(self.mesh)
        examples = self._take()
        answers, counts = self.sampler.answer(state.model, examples, step)
        record.add(counts)
        # This frees the KV caches and the weights for decoding
        return_much_freed_memory()
        with record.timed("teacher_seconds"):
            groups = by_teacher(task_groups(examples, answers), self.settings.teachers)
            temperature = self.settings.rollout.temperature_at(step)
            batch = {
                name: self._read(name, teacher_groups, temperature)
                for name, teacher_groups in groups.items()
            }
        record.begin_training()
        record.tokens = counts["sampled_tokens"]
        return [batch], record.of_samples() | describe_by_teacher(groups)

    def of_updates(self):
        """Return the metrics of the latest step after its update: StepRecord.of_updates."""
        return self.record.of_updates()

    def _take(self):
        """Take the next questions of every task, each with its task."""
        examples = []
        for task, number in self.settings.prompts_per_step.items():
            start = self.positions[task]
            self.positions[task] = start + number
            examples += [
                self.questions[task][i] | {"task": task} for i in range(start, start + number)
            ]
        return examples

    @named("teachers")
    def _read(self, name: str, groups: list, temperature: float):
        """Build the batch of a teacher's groups, with its hidden states.

        The teacher's body has left the devices when this returns.
        """
        teacher, weight = self.teachers[name], self.settings.teachers[name].weight
        batch = teacher_batch(groups, self.settings, self.mesh, temperature, weight)
        (batch,) = put_completions(self.mesh, [batch], owners_of(groups))
        body = teacher.body()
        hidden = self.states(teacher.policy.config)(body, for_teacher(batch))
        # The next teacher's body must not arrive before this body has gone
        jax.block_until_ready(hidden)
        return batch | {HIDDEN: hidden}


def teacher_batch(
    groups: list, settings: TaughtSettings, mesh: Mesh, temperature: float, weight: float
) -> dict[str, np.ndarray]:
    """Build the batch of a teacher's groups, as numpy arrays, without its hidden states."""
    shares_prompts, multiple = settings.shares_prompts(), row_multiple(mesh)
    rows = completion_batch(groups, shared=shares_prompts, multiple=multiple)
    scalars = {"temperature": np.float32(temperature), "weight": np.float32(weight)}
    return rows | totals(learned_tokens(rows, owners_of(groups))) | scalars


def for_teacher(batch: dict) -> dict:
    """Return the part of a batch that a teacher reads."""
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    return {name: batch[name] for name in names}


def task_groups(examples, answers: Answers):
    """Return the groups of groups.completion_groups, each with its question's task."""
    pairs = zip(completion_groups(answers), examples, strict=True)
    return [group | {"task": example["task"]} for group, example in pairs]


def by_teacher(groups: list, teachers: dict[str, TeacherSettings]):
    """Sort groups by teacher: name -> the groups of the teacher's task, in order."""
    return {
        name: [group for group in groups if group["task"] == teacher.task]
        for name, teacher in teachers.items()
    }


def describe_by_teacher(groups: dict[str, list]):
    """Compute completion_length and truncated_share of the samples, by teacher and of all."""
    all_groups = [group for teacher_groups in groups.values() for group in teacher_groups]
    metrics = {}
    for ending, selected_groups in {
        "": all_groups,
        **{f"_{name}": selected_groups for name, selected_groups in groups.items()},
    }.items():
        lengths = np.concatenate([group["rollout"].lengths for group in selected_groups])
        is_truncated = np.concatenate([group["rollout"].truncated for group in selected_groups])
        metrics[f"completion_length{ending}"] = float(lengths.mean())
        metrics[f"truncated_share{ending}"] = float(is_truncated.mean())
    return metrics
