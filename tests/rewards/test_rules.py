"""The general rules: what each has beside its score."""

import pytest

from deepseek_jax.rewards import rules, sandbox
from deepseek_jax.rewards.math_verify import MathVerifier
from deepseek_jax.rewards.program import ProgramVerifier

QUESTION = "How many?"


@pytest.mark.parametrize("rule", [rules.EXACT_ANSWER, rules.CORRECT, rules.MATH_VERIFY])
def test_rules_of_numbers_vote_and_say_what_they_cannot_read(rule):
    """Oracle: by hand: 1,000 is 1000; a number in the middle of a word states something that nobody reads."""
    assert rule.reading is rules.NUMBERS
    find, key = rule.reading
    assert key(find("#### 1,000", QUESTION), QUESTION) == key("1000", QUESTION)
    example = {"question": QUESTION, "answer": "5"}
    assert not rule.unread("#### 5", example) and not rule.unread("no number", example)
    assert rule.unread is not None


def test_rules_in_workers_read_their_fields():
    """Oracle: by hand."""
    verifiers = {
        rule: rule.verifier for rule in vars(rules).values() if isinstance(rule, rules.Rule)
    }
    assert {rule for rule, verifier in verifiers.items() if verifier} == {
        rules.MATH_VERIFY,
        rules.PROGRAM,
    }
    assert rules.MATH_VERIFY[3:5] == (MathVerifier, ("answer", "question"))
    assert rules.PROGRAM[3:5] == (ProgramVerifier, ("test_cases",))
    assert rules.EXACT_ANSWER.fields == ("answer",)


def test_a_program_has_half_a_gibibyte_and_says_a_mebibyte():
    """Oracle: by hand."""
    assert sandbox.MAX_MEMORY_BYTES == 536_870_912 and sandbox.MAX_OUTPUT_BYTES == 1_048_576
