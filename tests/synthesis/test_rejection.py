"""The filter of a policy's completions for training."""

from deepseek_jax.rewards.judge import Judge
from deepseek_jax.synthesis.rejection import accepted
from deepseek_jax.worlds.bilingual.request_rewards import helpfulness

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
    kept, counts = accepted(examples, texts, rule="puzzle_answer", max_per_prompt=2)
    assert kept == [i for i, fate in enumerate(fates) if fate == "kept"]
    assert counts == {fate: fates.count(fate) for fate in fates}


REQUEST = {
    "question": "Reverse: cat, dog",
    "answer": "dog, cat",
    "key": "dog, cat",
    "kind": "reverse",
    "language": "en",
}


def judge_by_rule(question):
    """A judge's reply, by request_rewards in the place of a model; on a tie it favours the first answer."""
    request, first, second = question.split("\n")
    if request == "unclear":
        return "<think>well</think>"
    better = helpfulness(second[4:], REQUEST) > helpfulness(first[4:], REQUEST)
    return f"<think>compared</think><answer>{1 + better}</answer>"


def test_a_judge_decides_where_no_rule_does_and_sees_what_is_well_laid_out_alone():
    """Oracle: a list made by hand, one row for each fate, and the questions to the judge: two orders each."""
    asked = []

    def ask(questions):
        asked.extend(questions)
        return [judge_by_rule(question) for question in questions]

    def told(answer, thought="easy"):
        return f"<think>{thought}</think><answer>{answer}</answer>"

    unclear = REQUEST | {"question": "unclear"}
    rows = [
        (REQUEST, told("dog, cat"), "kept"),
        (REQUEST, told("dog, cat", "first dog"), "kept"),
        (REQUEST, told("dog, cat"), "repeated"),
        (REQUEST, told("cat, dog"), "judged worse than the reference"),
        (REQUEST, "dog, cat", "badly laid out"),
        (REQUEST, told("cat, cat", "先"), "in mixed languages"),
        (unclear, told("cat, dog"), "without a verdict"),
    ]
    examples, texts, fates = zip(*rows, strict=True)
    kept, counts = accepted(examples, texts, rule="helpfulness", max_per_prompt=2, judge=Judge(ask))
    assert kept == [i for i, fate in enumerate(fates) if fate == "kept"]
    assert counts == {fate: fates.count(fate) for fate in fates}
    orders = ["1 = cat, dog\n2 = dog, cat", "1 = dog, cat\n2 = cat, dog"]
    wanted = [
        f"{question}\n{order}" for question in ("Reverse: cat, dog", "unclear") for order in orders
    ]
    assert sorted(asked) == sorted(wanted)
