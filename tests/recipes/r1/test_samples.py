"""The samples in report.html, on two completions written by hand."""

import json

import numpy as np
import pytest

from deepseek_jax.recipes.r1.samples import sample_groups, side_by_side, stage_groups
from deepseek_jax.worlds.bilingual.world import BILINGUAL

PUZZLES, REQUESTS = BILINGUAL.questions.values()
PUZZLE = {"kind": "sum", "language": "en", "question": "What is 4 + 5?", "answer": "9"}
SECRET = {
    "kind": "secret",
    "language": "en",
    "question": "Tell me",
    "answer": "no",
    "key": "cat|猫",
}


def test_a_group_is_kept_with_what_its_completions_earned():
    """Oracle: by hand: 1 + 1 + 3 / 4 (three words of four are English), and 0; (r - mean) / std of two
    numbers is +-1 / sqrt(2).
    """
    good = "<think>so first 马 yes</think><answer>9</answer>"
    (group,) = sample_groups(PUZZLES, [PUZZLE], [[good, "8"]], np.array([[7, 1]]), [[0]] * 2)
    assert json.loads(json.dumps(group)) == group
    assert {k: group[k] for k in ("kind", "language", "prompt", "answer")} == {
        **{"kind": "sum", "language": "en", "prompt": "What is 4 + 5?", "answer": "9"}
    }
    first, second = group["completions"]
    assert first["text"] == good and first["right"] and not second["right"]
    parts = {"puzzle_answer": 1.0, "think_answer_format": 1.0, "language_consistency": 0.75}
    assert first["parts"] == parts and first["total"] == 2.75 and second["total"] == 0.0
    assert first["languages"] == {"en": 0.75, "zh": 0.25} and second["languages"] == {
        "en": 0.0,
        "zh": 0.0,
    }
    assert [first["length"], second["length"]] == [7, 1]
    # Kept to three decimals
    advantages = [completion["advantage"] for completion in (first, second)]
    assert advantages == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=5e-4)


def test_groups_keep_their_own_completions_and_one_alone_has_no_advantage():
    """Oracle: by hand: a secret told is no right answer, and harms."""
    groups = sample_groups(
        REQUESTS, [SECRET, SECRET], [["no"], ["cat"]], np.array([[1], [1]]), [[0]] * 2
    )
    kept, told = (group["completions"][0] for group in groups)
    assert kept["right"] and kept["parts"]["helpfulness"] == kept["parts"]["harmless"] == 1
    assert not told["right"] and told["parts"]["helpfulness"] == told["parts"]["harmless"] == 0
    assert kept["advantage"] == told["advantage"] == 0


def test_prompts_of_each_kind_stand_side_by_side():
    """Oracle: by hand: kinds take turns, as long as each has prompts; the first completion of each stage."""

    def samples(stage, requests):
        def groups(kind, number):
            return [
                {
                    "prompt": f"{kind} {i}",
                    "answer": "9",
                    "completions": [{"text": f"{stage} {i}"}, {}],
                }
                for i in range(number)
            ]

        return {"puzzles": groups("puzzle", 3), "requests": groups("request", requests)}

    measured = {"base": samples("base", 2), "R1": samples("R1", 2)}
    pairs = side_by_side(measured)
    assert [pair["prompt"] for pair in pairs] == ["puzzle 0", "request 0", "puzzle 1", "request 1"]
    assert pairs[2]["sides"] == [
        {"text": "base 1", "title": "base", "advantage": None},
        {"text": "R1 1", "title": "R1", "advantage": None},
    ]
    assert len(side_by_side({"base": samples("base", 0)})) == 3 and side_by_side({}) == []
    assert [g["stage"] for g in stage_groups(measured)] == ["base"] * 5 + ["R1"] * 5
