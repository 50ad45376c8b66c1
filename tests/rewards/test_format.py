"""The layout of R1-Zero's template."""

import pytest

from deepseek_jax.rewards.format import shows, think_answer_format

GOOD = "<think> 2 + 3 = 5 </think> <answer> 5 </answer>"


@pytest.mark.parametrize("text", [GOOD, f"\n{GOOD}\n", GOOD.replace(" ", "\n"), GOOD + "  "])
def test_the_template_scores(text):
    """Oracle: arXiv:2501.12948, table 1; white space is layout."""
    assert think_answer_format(text, {}) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "<answer> 5 </answer>",
        "<think> 5 </think>",
        "<think> 5 <answer> 5 </answer>",
        "<answer> 5 </answer> <think> 5 </think>",
        "</think> a <think> <answer> 5 </answer>",
        "<think> a <answer> b </think> c </answer>",
        "well " + GOOD,
        GOOD + " done",
        GOOD.replace("</think>", "</think> so"),
        GOOD + GOOD,
        "<think>" + GOOD,
        GOOD + "</answer>",
        "<think> </think> <answer> 5 </answer>",
        "<think> 5 </think> <answer></answer>",
        "<THINK> 5 </THINK> <answer> 5 </answer>",
        "<think>" * 10_000,
    ],
)
def test_any_other_layout_does_not(text):
    """Oracle: by hand: a tag absent, twice or out of order, text outside, or nothing inside."""
    assert think_answer_format(text, {}) == 0.0


@pytest.mark.parametrize(
    "blank",
    [
        "\u200b",
        "\u200b \u2060\n\ufeff",
        "\u00ad",
        "\u3164",
        "\u115f\u1160",
        "\uffa0",
        "\u2800",
        "\U0001d159",
        "\ufffc",
        "\x00",
        "\x7f",
    ]
    + ["\u0301", "\ufe0f", "\u2028", "\u00a0", "\u3000", "\U000e0041", "\ue000", "\ud800"],
)
def test_what_nobody_sees_is_empty(blank):
    """Oracle: Unicode's categories, and its few letters and symbols without a shape."""
    assert not shows(blank)
    assert think_answer_format(GOOD.replace(" 2 + 3 = 5 ", blank), {}) == 0.0
    assert think_answer_format(GOOD.replace(" 5 <", f"{blank}<"), {}) == 0.0


@pytest.mark.parametrize("text", ["5", "a", "字", "-", "?", "√", "e\u0301", "\u200b5"])
def test_one_letter_digit_or_sign_is_enough(text):
    """Oracle: by hand."""
    assert shows(text)
    assert think_answer_format(f"<think>{text}</think><answer>{text}</answer>", {}) == 1.0
