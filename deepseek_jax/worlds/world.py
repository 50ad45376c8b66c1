"""The record of a toy world, which every recipe reads."""

import dataclasses
from collections.abc import Callable, Mapping

from deepseek_jax.data.tasks import Task, held_apart
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.rewards import Rule


def given_solution(example):
    """The good completion in an example."""
    return example["solution"]


@dataclasses.dataclass(frozen=True)
class Score:
    """A measure of a policy's answers: the mean of a reward over the examples for which is_about is true."""

    reward: str
    is_about: Callable = lambda example: True


@dataclasses.dataclass(frozen=True)
class Questions:
    """One sort of a world's questions.

    make(seed, num_held_out) -> data.tasks.Task, whose examples the rewards score. rule: the reward that says
    whether an answer is right, None if no rule does. worked(example) -> a good completion, to learn
    from. scores: further scores by name. kinds: name of a part -> the example["kind"] in that part, None
    for all kinds. alike: held-out questions are no others than those to train on, as in a game that a policy
    begins anew.
    """

    make: Callable
    rule: str | None = None
    worked: Callable = given_solution
    scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    kinds: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    alike: bool = False

    def task(self, seed: int, num_held_out: int, plays: bool = False) -> Task:
        """The Task that make gives. plays: as in data.tasks.held_apart, whose ValueErrors it raises."""
        made = self.make(seed, num_held_out)
        return made if self.alike else held_apart(made, plays)


@dataclasses.dataclass(frozen=True)
class World:
    """A toy world, or a user's own data in place of one.

    template: how a question becomes a prompt, see data.chat. questions: by name; reasoning names those that
    rules check, general the everyday requests, if the world has them. corpora: name ->
    documents(*, num_documents, seed), random access to documents as of packing.pack. tokenizers:
    name -> a function that makes one, the world's own first; a world without one uses the checkpoint's.
    rewards: rules that only this world has.
    preferences: kind ("helpfulness", "safety") -> records(*, num_train, num_held_out, seed), the
    training set and the held-out set of a reward model, records as of data.preferences.parse_preference.
    judged_pairs(*, num_train, num_held_out, seed) -> Task, and judgements(examples, seed) -> the
    conversations in which a judge compares such pairs.
    """

    name: str
    template: str
    questions: Mapping[str, Questions]
    reasoning: str
    general: str | None = None
    corpora: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    tokenizers: Mapping[str, Callable[[], Tokenizer]] = dataclasses.field(default_factory=dict)
    rewards: Mapping[str, Rule] = dataclasses.field(default_factory=dict)
    preferences: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    judged_pairs: Callable | None = None
    judgements: Callable | None = None

    def parts(self):
        """Name of a part of the questions -> (name of the questions, the part's example["kind"] or None)."""
        found = {}
        for name, questions in self.questions.items():
            found |= {
                part: (name, kind) for part, kind in (questions.kinds or {name: None}).items()
            }
        return found

    def tokenizer(self):
        """The world's own tokenizer, or None where its text is free."""
        return next((make() for make in self.tokenizers.values()), None)
