"""The first and the last lines of a run, typed by hand; test_driver.py has them in a run."""

import dataclasses

import pytest

from deepseek_jax.recipes import run_lines
from deepseek_jax.recipes.kinds.given import Random
from deepseek_jax.reports.page import Page
from tests.tiny import CONFIGS

STAGES = [Random("start", None), Random("sft", None, start="start")]


def printed(capsys):
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "number, text",
    [
        (9_999_999, "9,999,999"),
        (10_000_000, "10.0 million"),
        (9_999_000_000, "9,999.0 million"),
        (671_026_419_200, "671.0 billion"),
    ],
)
def test_large_numbers_of_parameters_are_short(monkeypatch, capsys, number, text):
    """Oracle: by hand, on either side of the limits; 671 billion are DeepSeek-V3's."""
    monkeypatch.setattr(run_lines, "count_params", lambda config: number)
    run_lines.say_plan([], {"start": CONFIGS["gqa"]})
    assert printed(capsys) == [f"model: qwen2, 2 layers, {text} parameters", "0 stages"]


def test_models_that_are_described_alike_have_one_line(capsys):
    """Oracle: by hand: three policies, of which two differ in their dtype."""
    config = CONFIGS["gqa"]
    rounded = dataclasses.replace(config, dtype="bfloat16")
    run_lines.say_plan(STAGES, {"a": config, "b": rounded, "c": CONFIGS["mla_moe"]})
    begun = [line.partition(",")[0] for line in printed(capsys)]
    assert begun == ["model: qwen2", "model: deepseek_v3", "2 stages"]


def test_a_long_text_goes_on_in_indented_lines(capsys):
    """Oracle: by hand: words of ten columns with their space, of which seven fit behind the indent."""
    run_lines.say_wrapped(" ".join(["ninechars"] * 9), indent="    ")
    assert printed(capsys) == [
        "    " + " ".join(["ninechars"] * 7),
        "  " + " ".join(["ninechars"] * 2),
    ]


def test_the_end_names_the_first_score_before_and_after(capsys, tmp_path):
    """Oracle: by hand: a row with one before it, one without, and a second score, which is left out."""
    scores = dict(
        before=dict(right=(0.25, 0.2, 0.3)),
        after=dict(right=(0.5, 0.4, 0.6), length=(7.0, None, None)),
        other=dict(loss=(3.0, None, None)),
    )
    page = Page("A run", scores=scores, compared=(("before", "after"), (None, "other")))
    run_lines.say_end(STAGES, "sft", tmp_path, page, seconds=60.0)
    assert printed(capsys) == [
        "complete: 2 of 2 stages in 60 s",
        "  after: right 25.0% -> 50.0%",
        "  other: loss 3.00",
        f"  page: {tmp_path / 'report.html'}",
        f"  chat: python launch/chat.py {tmp_path}",
    ]


@pytest.mark.parametrize("result", [None, "other"])
def test_the_end_offers_a_chat_only_with_the_policy_that_a_run_is_for(capsys, tmp_path, result):
    """Oracle: by hand: a run for several policies, and one for a stage that is not in the list."""
    run_lines.say_end(STAGES, result, tmp_path, Page("A run"), seconds=0)
    first, page = printed(capsys)
    assert first == "complete: 2 of 2 stages, and was before this start" and "page: " in page
