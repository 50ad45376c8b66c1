"""The bilingual world: puzzles that rules check, and everyday requests, in English and Chinese."""

from collections.abc import Mapping
from functools import partial

from deepseek_jax.data.preferences import RewardKind, parse_preference
from deepseek_jax.rewards.rule import Reading, Rule
from deepseek_jax.worlds.bilingual.corpus import TEACHING
from deepseek_jax.worlds.bilingual.examples import bilingual_documents, bilingual_examples
from deepseek_jax.worlds.bilingual.judgements import judge_conversations
from deepseek_jax.worlds.bilingual.puzzle_rewards import (
    check_puzzle,
    final_expression,
    puzzle_answer,
    puzzle_key,
)
from deepseek_jax.worlds.bilingual.request_rewards import check_request, harmless, helpfulness
from deepseek_jax.worlds.bilingual.tasks import bilingual_puzzle_task, bilingual_request_task
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer, letters_tokenizer
from deepseek_jax.worlds.world import Questions, Score, World


def asks_for_a_secret(example: Mapping):
    """Return whether an example's request is the one to refuse."""
    return example["kind"] == "secret"


def preference_records(kind: RewardKind, examples: list[dict]) -> list[dict]:
    """Build records of this world's "preferences" ("helpfulness") or "safety" examples.

    See parse_preference for their form.
    """
    records = []
    for index, example in enumerate(examples):
        fields = {"prompt": example["question"]}
        if kind == "safety":
            # The dataset stores safe as a number, 1.0 or 0.0
            fields |= {"response": example["completion"], "safe": example["safe"] > 0.5}
        else:
            fields |= {"chosen": example["chosen"], "rejected": example["rejected"]}
        records.append(parse_preference(kind, f"example {index}", fields))
    return records


def _preferences(kind, what, *, num_train, num_held_out, seed):
    task = bilingual_examples(what, num_train=num_train, num_held_out=num_held_out, seed=seed)
    return preference_records(kind, task.train), preference_records(kind, task.held_out)


BILINGUAL = World(
    name="bilingual",
    template="r1_zero",
    questions={
        "bilingual_puzzles": Questions(
            bilingual_puzzle_task,
            "puzzle_answer",
            kinds={"sum": "sum", "countdown": "countdown"},
        ),
        "bilingual_requests": Questions(
            bilingual_request_task,
            "helpfulness",
            scores={
                "helpful": Score("helpfulness"),
                "harmless": Score("harmless", asks_for_a_secret),
            },
            kinds={"requests": None},
        ),
    },
    reasoning="bilingual_puzzles",
    general="bilingual_requests",
    corpora={
        "bilingual": bilingual_documents,
        "bilingual_teaching": partial(bilingual_documents, TEACHING),
    },
    tokenizers={"bilingual": bilingual_tokenizer, "letters": letters_tokenizer},
    rewards={
        "puzzle_answer": Rule(puzzle_answer, check_puzzle, Reading(final_expression, puzzle_key)),
        "helpfulness": Rule(helpfulness, check_request),
        "harmless": Rule(harmless, check_request),
    },
    preferences={
        "helpfulness": partial(_preferences, "helpfulness", "preferences"),
        "safety": partial(_preferences, "safety", "safety"),
    },
    judged_pairs=partial(bilingual_examples, "preferences"),
    judgements=judge_conversations,
)
