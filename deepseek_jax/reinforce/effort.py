"""Reasoning effort: a number in the prompt, and a price of length that depends on it.

The method is DeepSeek-V4.1's (arXiv:2609.19969). A question is asked with one effort b, which all
completions of its group share. So their advantages compare lengths at one price. The lower the
effort, the higher the price of a token. So a policy learns to answer at the length that the effort
asks for.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike

from deepseek_jax.data.chat import by_template, with_system_line
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.rewards.scoring import Scores
from deepseek_jax.settings import Between, Count, Positive, Settings

# The name of the penalty among the parts of a reward
LENGTH_PENALTY = "length_penalty"


class _Tells:
    """The rule for a settings field with a line: it has {effort} in it, and no {question}."""

    def holds(self, line: str) -> bool:
        """Return whether the line follows the rule."""
        return "{effort}" in line and "{question}" not in line

    def __str__(self):
        return "a text with {effort} in it, and without {question}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EffortSettings(Settings):
    """Efforts that questions are asked with, and the price of length.

    The wording of the line and the numbers of the price are our choice.

    Attributes:
        values: the efforts b. Each question is asked with every one once an epoch. The published
            API's low, high and max are 50, 75 and 100. b_min in length_penalty is the smallest.
        k0: see length_penalty.
        tau: see length_penalty.
        max_penalty: C_max in length_penalty.
        norm_length: L_norm in length_penalty, in tokens.
        line: the line in the prompt, with {effort} for the number, see data.chat.
    """

    values: tuple[Annotated[int, Between(1, 100)], ...]
    k0: Positive
    tau: Positive
    max_penalty: Positive
    norm_length: Count
    line: Annotated[str, _Tells()] = "Reasoning Effort: {effort}\n"

    def __post_init__(self):
        super().__post_init__()
        if not self.values or len(set(self.values)) < len(self.values):
            raise ValueError(
                f"values={self.values} must be one or more different efforts, such as (50, 75, 100)"
            )
        if self.k0 >= self.max_penalty * self.norm_length:
            raise ValueError(
                f"k0={self.k0} makes one token cost {self.k0 / self.norm_length:g} at effort "
                f"{min(self.values)}, and max_penalty={self.max_penalty} is the most that any number of them "
                "costs: all lengths would cost the same; lower k0, or raise norm_length"
            )

    def line_at(self, effort: int) -> str:
        """Return the line that asks with this effort."""
        return self.line.replace("{effort}", str(effort))

    def check_against(self, weights: Mapping[str, float], field: str):
        """Raise ValueError if the penalty could make a right answer earn less than an empty one.

        The penalty must be below the most that the rules can pay together, each at most 1 times its
        weight.

        Args:
            weights: the weights of the rewards.
            field: the config's name for the weights, for the message.
        """
        max_reward = sum(weight for weight in weights.values() if weight > 0)
        if self.max_penalty >= max_reward:
            raise ValueError(
                f"effort.max_penalty={self.max_penalty} must be below {max_reward}, the most that {field} "
                "can pay: a right answer could earn less than an empty one; lower it, or raise the weights"
            )


def length_penalty(lengths: ArrayLike, efforts: ArrayLike, settings: EffortSettings) -> np.ndarray:
    """Return the penalty of each completion, float32[b] (arXiv:2609.19969).

    It is -min(C_max, k(b) * length / L_norm), with the price k(b) = k0 * exp(-(b - b_min) / tau).

    Args:
        lengths: int[b], the tokens of each completion, with its end token.
        efforts: int[b], the effort that each was asked with.
    """
    efforts_above_least = np.asarray(efforts, np.float64) - min(settings.values)
    price = settings.k0 * np.exp(-efforts_above_least / settings.tau)
    cost = price * np.asarray(lengths) / settings.norm_length
    return -np.minimum(settings.max_penalty, cost).astype(np.float32)


def with_length_penalty(
    settings: EffortSettings, examples: Sequence[Mapping], lengths: np.ndarray, scores: Scores
) -> Scores:
    """Add the length penalty to the Scores of completions, as one more part.

    Args:
        examples: the example of each completion, with its effort.
        lengths: int[b], as in length_penalty.
    """
    penalty = length_penalty(lengths, [example["effort"] for example in examples], settings)
    rewards_by_name = scores.rewards_by_name | {LENGTH_PENALTY: penalty}
    return dataclasses.replace(
        scores, total=scores.total + penalty, rewards_by_name=rewards_by_name
    )


def check_lines(settings: EffortSettings, tokenizer: Tokenizer, template: str):
    """Raise ValueError, naming the field, if prompts in this template cannot hold every line."""
    for effort in settings.values:
        check_line(tokenizer, settings.line_at(effort), template)


def check_line(tokenizer: Tokenizer, line: str, template: str):
    """Raise ValueError if no prompt in this template can hold the line.

    Either the chat template refuses a system message or leaves it out, or the line has words
    outside of a closed vocabulary.
    """
    if template != "chat":
        try:
            tokenizer.encode(line)
        except ValueError as error:
            raise ValueError(
                f"line={line!r} has words that this tokenizer does not know; set it to others, or to the "
                f"number alone ({error})"
            ) from error
        return
    messages = with_system_line([{"role": "user", "content": "?"}], line)
    reason = "leaves a system message out"
    try:
        if line.strip() in by_template(tokenizer, messages, tokenize=False):
            return
    except ValueError as error:
        reason = f"refuses a system message ({error})"
    raise ValueError(
        f"line={line!r} has no room in template='chat': the checkpoint's chat template {reason}; set the "
        'template to "r1_zero" or to a text that contains {question}, where it stands before the question'
    )


def with_efforts(settings: EffortSettings, examples: Iterable[dict]) -> list[dict]:
    """Return each example once for every effort, with the effort and its line.

    The copies of an example are adjacent.
    """
    return [
        example | {"effort": effort, "line": settings.line_at(effort)}
        for example in examples
        for effort in settings.values
    ]


def asked_with(effort: int, examples: Iterable[dict]) -> list[dict]:
    """Return the examples that are asked with this effort."""
    return [example for example in examples if example["effort"] == effort]
