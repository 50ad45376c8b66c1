"""Which of a policy's completions are worth learning."""

from deepseek_jax.recipes.rejection import accepted

ENGLISH = {"question": "What is 4 + 5 + 6?", "answer": "15", "language": "en"}
CHINESE = {"question": "4 + 5 + 6等于多少？", "answer": "15", "language": "zh"}
GOOD = "<think>first 4 + 5 = 9, then 9 + 6 = 15</think><answer>15</answer>"
OTHER = "<think>first 5 + 6 = 11, then 4 + 11 = 15</think><answer>15</answer>"
ZH = "<think>先4 + 5 = 9，再9 + 6 = 15</think><answer>15</answer>"


def test_only_right_tidy_single_language_completions_that_are_new_are_kept():
    """Oracle: a list made by hand, one row for each fate."""
    rows = [
        (ENGLISH, GOOD, "kept"),
        (ENGLISH, GOOD, "repeated"),
        (ENGLISH, GOOD.replace("15</answer>", "16</answer>"), "wrong"),
        (ENGLISH, "first 4 + 5 = 9, then 9 + 6 = 15", "badly laid out"),
        (ENGLISH, "<think></think><answer>15</answer>", "badly laid out"),
        (ENGLISH, GOOD.replace(", then ", "，再"), "in mixed languages"),
        (ENGLISH, ZH, "in mixed languages"),
        (ENGLISH, "<think>4 + 5 + 6 = 15</think><answer>15</answer>", "in mixed languages"),
        (ENGLISH, OTHER, "kept"),
        (ENGLISH, GOOD.replace("first ", "maybe "), "more than enough"),
        (CHINESE, GOOD, "in mixed languages"),
        (CHINESE, ZH, "kept"),
    ]
    examples, texts, fates = zip(*rows, strict=True)
    kept, counts = accepted(examples, texts, max_per_prompt=2)
    assert kept == [(i, text) for i, (_, text, fate) in enumerate(rows) if fate == "kept"]
    assert counts == {fate: fates.count(fate) for fate in fates}
