"""The layout of R1-Zero's template."""

import pytest

from deepseek_jax.rewards.format import think_answer_format

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
