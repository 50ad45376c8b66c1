"""The content of a run's page: one record, which html_report turns into HTML.

Tests: tests/reports/test_html_report.py.
"""

import dataclasses
import math
from collections.abc import Sequence

# Formats of scores that are not shares, even if all their values are within 0..1
FORMS = {
    "completion_length": ".1f",
    "length": ".1f",
    "reward": ".2f",
    "held_out_loss": ".3f",
    **dict.fromkeys(("turns", "tool_calls", "tool_errors", "get_reward"), ".2f"),
}


@dataclasses.dataclass(frozen=True)
class Page:
    """The content of a page.

    A part that is empty is left out, or the page says that it is not there yet.

    A completion, in pairs and samples, is a dict of text, total (its reward), parts (name ->
    reward), advantage, right, truncated (bool), languages (language -> share of the thought's
    words) and length in tokens. What is not known is None, or missing. A completion of a
    conversation has messages, which follow the prompt, in OpenAI's form.

    Attributes:
        facts: Name -> a text: what was run, with what and for how long. They stand under the title.
        command: The command that started the run, or None.
        scores: Row -> {score: (mean, low, high)}. A row is a stage, "before", or a task. low and
            high are None for a score without an interval.
        compared: Pairs of rows, before and after, that the headline shows; the first is None if
            there is nothing before.
        forms: Score -> the format of its numbers; see form_of for missing ones.
        names: Score -> its title; see title_of for missing ones.
        notes: Sentences below the scores.
        findings: (heads, rows) of a table of texts, or None.
        curves: Heading -> records of training.metrics.
        base_curves: The same for the phases before, folded.
        pairs: Prompts with completions side by side: dicts of prompt, facts (name -> value), right
            (a verdict on all, or missing) and sides, a list of completions with a title each.
        pairs_note: A sentence about the choice of the pairs.
        samples: Groups of completions: dicts of prompt, answer, completions, and the fields of
            CHOICES, by which they are filtered. A group with the field `place` ("first step", for
            example) is also in the part about what was rewarded, with its text `remark`.
        samples_note: A sentence about the choice of the samples.
        config: The config as it is recorded.
        stages: Dicts of name, title, hash (or None), state (a word or two: "complete", "not
            begun"), and inputs: a dict from the name of an input to (its hash, the name of the
            stage that made it, or None).
        digests: Name -> a hash or commit of anything else that the run depends on.
    """

    title: str
    facts: dict = dataclasses.field(default_factory=dict)
    command: str | None = None
    scores: dict = dataclasses.field(default_factory=dict)
    compared: Sequence[tuple[str | None, str]] = ()
    forms: dict = dataclasses.field(default_factory=dict)
    names: dict = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    findings: tuple | None = None
    curves: dict = dataclasses.field(default_factory=dict)
    base_curves: dict = dataclasses.field(default_factory=dict)
    pairs: Sequence[dict] = ()
    pairs_note: str = "The first held-out prompts."
    samples: Sequence[dict] = ()
    samples_note: str = ""
    config: dict = dataclasses.field(default_factory=dict)
    stages: Sequence[dict] = ()
    digests: dict = dataclasses.field(default_factory=dict)

    def form_of(self, score: str) -> str:
        """Return the format of a score: its own, or for all means within 0..1 a percentage."""
        means = [of[score][0] for of in self.scores.values() if score in of]
        return self.forms.get(score) or form_of(score, means)

    def title_of(self, score: str) -> str:
        """Return the title of a score: the function's own name if a reward is FILE.py:NAME."""
        if score in self.names:
            return self.names[score]
        greedy = "greedy " if score.startswith("greedy_") and ":" in score else ""
        return greedy + score.rpartition(":")[2].replace("_", " ")


def form_of(score: str, numbers: Sequence[float]) -> str:
    """Return the format of a score with these numbers: a user's own rewards may not be shares."""
    # Scores of greedy answers and of one effort are printed like the others
    name = score.removeprefix("greedy_").partition("_effort_")[0]
    shares = all(0 <= number <= 1 for number in numbers if not math.isnan(number))
    return FORMS.get(name, ".1%" if shares else ".2f")
