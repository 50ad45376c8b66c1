"""The record of a toy world, which every recipe reads.

Tests: tests/worlds/test_registry.py, tests/recipes/distill/test_run.py.
"""

import dataclasses
from collections.abc import Callable, Mapping

from deepseek_jax.data.tasks import Task, held_apart
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.rewards.rule import Rule


def given_solution(example: Mapping) -> str:
    """Return an example's good completion."""
    return example["solution"]


@dataclasses.dataclass(frozen=True)
class Score:
    """A measure of a policy's answers: the mean of a reward over some examples.

    Attributes:
        reward: Name of the reward.
        is_about: Returns True for the examples that count.
    """

    reward: str
    is_about: Callable[[Mapping], bool] = lambda example: True


@dataclasses.dataclass(frozen=True)
class Questions:
    """One sort of a world's questions.

    Attributes:
        make: make(seed, num_held_out) -> data.tasks.Task; the rewards score its examples.
        rule: The reward that says whether an answer is right, None if no rule does.
        worked: worked(example) -> a good completion, to learn from.
        scores: Further scores by name.
        kinds: Name of a part -> the example["kind"] in that part, None for all kinds.
        alike: True if held-out questions are no others than the training questions, as in a game
            that a policy begins anew.
    """

    make: Callable[[int, int], Task]
    rule: str | None = None
    worked: Callable[[Mapping], str] = given_solution
    scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    kinds: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    alike: bool = False

    def task(self, seed: int, num_held_out: int, plays: bool = False) -> Task:
        """Make the Task, without training questions that are held out, too, unless `alike` is set.

        Args:
            plays: As in data.tasks.held_apart.

        Raises:
            ValueError: As in data.tasks.held_apart.
        """
        task = self.make(seed, num_held_out)
        return task if self.alike else held_apart(task, plays)


@dataclasses.dataclass(frozen=True)
class World:
    """A toy world, or a user's own data in place of one.

    Attributes:
        template: How a question becomes a prompt, see data.chat.
        questions: By name.
        reasoning: Name of the questions that rules check.
        general: Name of the everyday requests, if the world has them.
        corpora: Name -> documents(*, num_documents, seed), random access to documents as in
            packing.pack.
        tokenizers: Name -> a function that makes one, the world's own first. A world without one
            uses the checkpoint's.
        rewards: Rules that only this world has.
        preferences: Kind ("helpfulness", "safety") -> records(*, num_train, num_held_out, seed),
            the training set and the held-out set of a reward model, with records as in
            data.preferences.parse_preference.
        judged_pairs: judged_pairs(*, num_train, num_held_out, seed) -> Task.
        judgements: judgements(examples, seed) -> the conversations in which a judge compares such
            pairs.
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

    def question_parts(self) -> dict[str, tuple[str, str | None]]:
        """Return the parts of the questions, by name.

        Returns:
            {part: (name of its questions, its example["kind"] or None for all kinds)}.
        """
        parts: dict[str, tuple[str, str | None]] = {}
        for name, questions in self.questions.items():
            parts |= {
                part: (name, kind) for part, kind in (questions.kinds or {name: None}).items()
            }
        return parts

    def tokenizer(self) -> Tokenizer | None:
        """Make the world's own tokenizer, or return None if its text is free."""
        return next((make() for make in self.tokenizers.values()), None)
