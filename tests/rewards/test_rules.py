"""The general rules: what each has beside its score."""

import pytest

from deepseek_jax.rewards import sandbox
from deepseek_jax.rewards.math_verify import MathVerifier
from deepseek_jax.rewards.program import ProgramVerifier
from deepseek_jax.rewards.rules import NUMBERS, RULES

QUESTION = "How many?"


@pytest.mark.parametrize("rule", [RULES["exact_answer"], RULES["correct"], RULES["math_verify"]])
def test_rules_of_numbers_vote_and_say_what_they_cannot_read(rule):
    """Oracle: by hand: 1,000 is 1000; a number in the middle of a word states something that nobody reads."""
    assert rule.reading is NUMBERS
    find, key = rule.reading
    assert key(find("#### 1,000", QUESTION), QUESTION) == key("1000", QUESTION)
    example = {"question": QUESTION, "answer": "5"}
    assert not rule.unread("#### 5", example) and not rule.unread("no number", example)
    assert rule.unread is not None


def test_rules_in_workers_read_their_fields():
    """Oracle: by hand."""
    verifiers = {rule: rule.verifier for rule in RULES.values()}
    assert {rule for rule, verifier in verifiers.items() if verifier} == {
        RULES["math_verify"],
        RULES["program"],
    }
    assert RULES["math_verify"][3:5] == (MathVerifier, ("answer", "question"))
    assert RULES["program"][3:5] == (ProgramVerifier, ("test_cases",))
    assert RULES["exact_answer"].fields == ("answer",)


def test_a_program_has_half_a_gibibyte_and_says_a_mebibyte():
    """Oracle: by hand."""
    assert sandbox.MAX_MEMORY_BYTES == 536_870_912 and sandbox.MAX_OUTPUT_BYTES == 1_048_576
