"""What the page of a run shows: one record, which html_report turns into HTML."""

import dataclasses
import math
from collections.abc import Sequence

# How scores are printed that are no shares even where all are within 0..1
FORMS = {
    "completion_length": ".1f",
    "length": ".1f",
    "reward": ".2f",
    "held_out_loss": ".3f",
    **dict.fromkeys(("turns", "tool_calls", "tool_errors", "get_reward"), ".2f"),
}


@dataclasses.dataclass(frozen=True)
class Page:
    """The content of a page. A part that is empty is left out, or the page says that it is not there yet.

    scores: row -> {score: (mean, low, high)}; a row is a stage, "before", or a task; low and high are None
    for a score without an interval. compared: pairs of rows, before and after, that the headline shows; the
    first is None where there is nothing before. forms, names: score -> the format of its numbers, and its
    title; see form_of and title_of for those that are not there. notes: sentences below the scores.
    findings: (heads, rows) of a table of texts, or None.
    curves: heading -> records of training.metrics; base_curves: the same of what came before, folded.
    pairs: prompts with the completions that stand side by side: dicts of prompt, facts (name -> value) and
    sides, dicts of title and of a completion. samples: groups, dicts of prompt, answer, completions, and
    what they are chosen by: CHOICES. A completion is a dict of text, total (its reward), parts (name ->
    reward), advantage, right, truncated (bool), languages (language -> share of the thought's words) and
    length in tokens; what is not known is None, or is not there. That of a conversation has messages, those
    after the prompt, in OpenAI's form.
    config: the config as it is recorded. stages: dicts of name, title, hash (or None), state (a word or two:
    "complete", "not begun"), and inputs, a dict from the name of an input to its hash and the name of the
    stage that made it, or None. digests: name -> a hash, or a commit, of what else the run depends on.
    """

    title: str
    scores: dict = dataclasses.field(default_factory=dict)
    compared: Sequence[tuple[str | None, str]] = ()
    forms: dict = dataclasses.field(default_factory=dict)
    names: dict = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    findings: tuple | None = None
    curves: dict = dataclasses.field(default_factory=dict)
    base_curves: dict = dataclasses.field(default_factory=dict)
    pairs: Sequence[dict] = ()
    samples: Sequence[dict] = ()
    config: dict = dataclasses.field(default_factory=dict)
    stages: Sequence[dict] = ()
    digests: dict = dataclasses.field(default_factory=dict)

    def form_of(self, score: str) -> str:
        """The format of a score's numbers: a share is a percentage, unless its name says what it is."""
        means = [of[score][0] for of in self.scores.values() if score in of]
        return self.forms.get(score) or form_of(score, means)

    def title_of(self, score: str) -> str:
        """The title of a score: the function's own name where a reward is FILE.py:NAME."""
        if score in self.names:
            return self.names[score]
        greedy = "greedy " if score.startswith("greedy_") and ":" in score else ""
        return greedy + score.rpartition(":")[2].replace("_", " ")


def form_of(score: str, numbers: Sequence[float]) -> str:
    """The format of a score with these numbers: rewards of a user's own may be no shares."""
    # Scores of greedy answers, and those of one effort, are printed like the others
    name = score.removeprefix("greedy_").partition("_effort_")[0]
    shares = all(0 <= number <= 1 for number in numbers if not math.isnan(number))
    return FORMS.get(name, ".1%" if shares else ".2f")
