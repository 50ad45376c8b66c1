"""Own rewards of TRL's form: whose values mix up completions, and which may look at the whole batch."""

import pytest

from deepseek_jax.rewards import Rewards

EXAMPLES = [{"question": f"{n} + {n}?", "answer": str(2 * n)} for n in range(1, 9)]
RANDOM = (
    "import random\ndef f(completions, **columns): return [random.random() for _ in completions]"
)


def checked(folder, text):
    """Check a reward's file on the examples."""
    (folder / "mine.py").write_text(text)
    with Rewards({f"{folder / 'mine.py'}:f": 1.0}) as rewards:
        rewards.check(EXAMPLES)


def of_lists(values, imports=""):
    return f"{imports}\ndef f(completions, completion_ids, answer, **columns): return {values}\n"


RIGHT = "[float(a in c) for a, c in zip(answer, completions)]"
SIZES = "[float(len(ids)) for ids in completion_ids]"
RANKS = "[float(sorted(completions).index(c)) for c in completions]"
# One of them alone has no spread
SPREAD = "[len(c) / (1 + statistics.stdev(map(len, completions))) for c in completions]"


@pytest.mark.parametrize("values", [RIGHT, SIZES, "[1.0 for _ in completions]"])
def test_a_reward_of_each_completion_by_itself_passes(tmp_path, values):
    """Oracle: by hand: each value depends on its own completion alone."""
    checked(tmp_path, of_lists(values))


@pytest.mark.parametrize(
    "text",
    [
        of_lists(f"{RIGHT}[::-1]"),
        of_lists(f"sorted({RIGHT})"),
        of_lists(f"sorted({SIZES})[::-1]"),
        of_lists(f"{SIZES}[1:] + {SIZES}[:1]"),
        of_lists(RANKS),
        of_lists(SPREAD, "import statistics"),
        RANDOM,
    ],
    ids=["reversed", "sorted", "falling", "shifted", "ranks", "spread", "random"],
)
def test_values_that_do_not_stay_with_their_completions_are_refused_unless_it_says_so(
    tmp_path, text
):
    """Oracle: by hand: the message names the attribute; with it the same function passes."""
    with pytest.raises(ValueError, match="mine.py:f: gives two completions .*f.whole_batch = True"):
        checked(tmp_path, text)
    checked(tmp_path, text + "\nf.whole_batch = True\n")


def test_a_text_that_it_does_not_know_is_no_reason_to_refuse_it(tmp_path):
    """Oracle: by hand: it raises for what is no number, which a run counts as not scored."""
    checked(tmp_path, of_lists("[float(int(c) > 5) for c in completions]"))


def test_none_for_some_is_no_reason_to_refuse_it(tmp_path):
    """Oracle: by hand: it scores the answers of the last question alone, or those in tags alone."""
    checked(tmp_path, of_lists("[1.0 if c == '16' else None for c in completions]"))
    checked(tmp_path, "def f(c, example): return 1.0 if '<answer>' in c else None")
    with pytest.raises(ValueError, match="mine.py:f: returned None, not scored, for all"):
        checked(tmp_path, "def f(c, example): return None")


def test_a_reward_of_none_may_stand_beside_one_that_scores(tmp_path):
    """Oracle: by hand: every completion has a score."""
    (tmp_path / "mine.py").write_text("def f(c, example): return None")
    with Rewards({f"{tmp_path / 'mine.py'}:f": 1.0, "exact_answer": 1.0}) as rewards:
        rewards.check(EXAMPLES)
