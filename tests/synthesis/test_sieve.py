"""The fates of completions, one after the other."""

from deepseek_jax.synthesis.sieve import Sieve


def test_each_completion_has_one_fate_and_kept_ones_alone_count_towards_the_limit():
    """Oracle: a list made by hand; the last rule rejects what it is asked about a second time."""
    asked = []

    def again(text, example):
        asked.append(text)
        return asked.count(text) > 1

    rules = {"bad": lambda text, e: "bad" in text, "worse": lambda text, e: "worse" in text}
    sieve = Sieve(rules, max_per_prompt=2, last={"again": again})
    rows = [
        ("a", "x bad worse", "bad"),
        ("a", "worse", "worse"),
        ("a", "one", "kept"),
        ("a", "one", "repeated"),
        ("b", "one", "again"),
        ("b", "two", "kept"),
        ("b", "three", "kept"),
        ("b", "two", "repeated"),
        ("b", "four", "more than enough"),
        ("a", "five", "kept"),
    ]
    for question, text, fate in rows:
        before = sieve.fates.copy()
        assert sieve.keeps(text, {"question": question}) == (fate == "kept")
        assert sieve.fates - before == {fate: 1}
    assert asked == ["one", "one", "two", "three", "five"]  # none of what the others rejected


def test_conversations_that_end_in_one_question_are_not_one_prompt():
    """Oracle: by hand: the earlier turns differ, so each conversation has its own limit."""
    sieve = Sieve({}, max_per_prompt=1)
    for before in ("The sky is blue.", "Grass is green."):
        said = [{"role": "user", "content": before}, {"role": "assistant", "content": "Yes."}]
        example = {"question": "Why?", "messages": [*said, {"role": "user", "content": "Why?"}]}
        assert sieve.keeps("Light.", example) and not sieve.keeps("Water.", example)
