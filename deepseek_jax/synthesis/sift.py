"""Filter a teacher's answers into a dataset and count why the others were dropped."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from deepseek_jax.data.chat import asked_messages, with_reset_text
from deepseek_jax.errors import at
from deepseek_jax.evaluation.consensus import majority
from deepseek_jax.rewards.rules import NUMBERS
from deepseek_jax.synthesis.augment import REWRITTEN
from deepseek_jax.synthesis.generated import write_conversations
from deepseek_jax.synthesis.near_duplicates import NearDuplicates
from deepseek_jax.synthesis.ngrams import Evaluation
from deepseek_jax.synthesis.settings import TOTAL
from deepseek_jax.synthesis.sieve import Sieve
from deepseek_jax.synthesis.teacher import read_rows
from deepseek_jax.worlds.registry import all_rules

# In a dataset's folder: origin -> {fate: completions}
FATES = "fates.json"


def write_sifted(settings: Any, samples: Path, evaluation: Evaluation | None, folder: Path) -> None:
    """Write the answers that pass all filters as a dataset, and the counts of the others to FATES.

    Args:
        settings: A GenerateSettings.
        samples: The folder of chunks that the teacher wrote.
        evaluation: The evaluation sets that no answer may share a run with; None for no such
            filter.
        folder: The folder for the dataset and FATES.

    Raises:
        ValueError: No completion passes; the message names the fields that dropped them.
    """
    sift = Sift(settings, evaluation)

    def records():
        yield from sift.records(samples)
        # Written before the dataset is complete: a run that finds the dataset does not count again
        fates = {origin: sieve.fates for origin, sieve in sift.sieves.items()}
        (folder / FATES).write_text(json.dumps(fates, indent=1) + "\n")

    write_conversations(records, folder)


class Sift:
    """Filters of a teacher's completions, one after the other.

    They are rewards, agreement, repetitions, evaluation sets and near-duplicates, in this order.

    Args:
        settings: A GenerateSettings.
        evaluation: See `write_sifted`.

    Attributes:
        sieves: Origin of a question -> the Sieve of its completions.
        fields: Fate -> the config field to change if it drops everything, in the order of the
            filters.
    """

    def __init__(self, settings, evaluation: Evaluation | None):
        keep, opening = settings.keep, settings.data.opening
        self.accuracy = settings.accuracy
        rules = {
            "unfinished": lambda text, e: not e["sample"]["finished"],
            # Every text begins with the opening, also if the teacher wrote nothing
            "empty": lambda text, e: not text.removeprefix(opening).strip(),
            # Fine-tuning cannot learn from a conversation with calls or replies
            "of several turns": lambda text, e: len(e["sample"].get("messages", ())) > 1,
            "unscored": lambda text, e: e["sample"]["reward"] is None,
        }
        length_field = "sampling.max_completion_length"
        fields = (length_field, "data.template", "conversation.turns", "rewards")
        self.fields = dict(zip(rules, fields, strict=True))
        for name, minimum in keep.at_least.items():
            rules[f"{name} below {minimum}"] = _below(name, minimum)
            self.fields[f"{name} below {minimum}"] = f"keep.at_least.{name}={minimum}"
        rules["inconsistent"] = lambda text, e: not e["agreed"]
        self.fields["inconsistent"] = "augment"
        last_rules = {}
        if evaluation is not None:
            last_rules["contaminated"] = lambda text, e: evaluation.shares_a_run(_whole(text, e))
            self.fields["contaminated"] = "keep.decontaminate"
        if keep.near_duplicates is not None:
            # A single index for the completions of all origins
            near_duplicates = NearDuplicates(keep.near_duplicates, keep.shingle)
            last_rules["near-duplicate"] = lambda text, e: (
                not near_duplicates.is_new(_whole(text, e))
            )
        self.sieves: defaultdict[str, Sieve] = defaultdict(
            lambda: Sieve(rules, max_per_prompt=keep.max_per_prompt, last=last_rules)
        )

    def records(self, samples: Path):
        """Yield the records that pass, with the features of generated.FEATURES.

        Args:
            samples: The folder of chunks that the teacher wrote.

        Raises:
            ValueError: No completion passes; the message names the fields that dropped them.
        """
        num_kept = 0
        for row in read_rows(samples):
            example = row["example"]
            is_rewritten = example["origin"] in REWRITTEN
            # The answer belongs to the source question; a rewritten question may ask something else
            is_agreed = not is_rewritten or majority_is_right(
                row["samples"], self.accuracy, example["question"]
            )
            for sample in row["samples"]:
                candidate = example | {"sample": sample, "agreed": is_agreed}
                if self.sieves[example["origin"]].keeps(sample["text"], candidate):
                    num_kept += 1
                    yield _record(example, sample)
        if not num_kept:
            self._refuse()

    def _refuse(self):
        """Raise ValueError with the fields that dropped everything, the last filter first."""
        fates = sum((sieve.fates for sieve in self.sieves.values()), start=Counter[str]())
        # In the order of the filters
        reasons = [reason for reason in self.fields if reason in fates]
        reasons_text = ", ".join(
            f"{fates[reason]} {reason} ({self.fields[reason]})" for reason in reversed(reasons)
        )
        with at(self.fields[reasons[-1]]):
            raise ValueError(
                f"nothing is left of {fates.total()} completions: {reasons_text}. The samples stay on disk: "
                "change the field, and run again in the same work directory"
            )


def majority_is_right(samples, accuracy: str, question: str | None = None):
    """Return whether the most frequent answer of the samples is right, by the reward `accuracy`.

    The Reading of that reward decides which spellings are the same answer.

    Args:
        samples: Samples of one question, with parts, the value of each reward.
        accuracy: The name of the reward.
        question: The text of the question, for the Reading.
    """
    rule = all_rules().get(accuracy)
    reading = NUMBERS if rule is None or rule.reading is None else rule.reading
    answers = [
        reading.find(sample["text"], question) if sample["finished"] else None for sample in samples
    ]
    keys = [None if answer is None else reading.key(answer, question) for answer in answers]
    majority_key = majority(keys)
    pairs = zip(samples, keys, strict=True)
    return any(k == majority_key and s["parts"][accuracy] == 1 for s, k in pairs if k is not None)


def _below(name, minimum):
    def rejects(text, example) -> bool:
        sample = example["sample"]
        value = sample["reward"] if name == TOTAL else sample["parts"][name]
        # A reward that does not score a completion gives no reason to keep it
        return value is None or value < minimum

    return rejects


def _whole(text, example):
    return "\n".join([*(message["content"] for message in asked_messages(example)), text])


def _record(example, sample):
    reply = {"role": "assistant", "content": sample["text"]}
    return {
        "messages": [*asked_messages(with_reset_text(example, sample.get("reset_text"))), reply],
        "weight": 1.0,
        "reward": sample["reward"],
        "tokens": sample["tokens"],
        "question": example["question"],
        "answer": str(example.get("answer", "")),
        "language": example.get("language", ""),
        "origin": example["origin"],
        "derived_from": example["derived_from"],
    }
