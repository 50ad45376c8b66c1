"""The general rules, by the names that config.rewards gives them.

Worlds add rules, see worlds.registry.
"""

from deepseek_jax.rewards.answer import (
    answer_key,
    exact_answer,
    extract_answer,
    gold_answer,
    is_unread,
)
from deepseek_jax.rewards.arithmetic import (
    check_chain,
    check_integer,
    correct,
    correct_reasoning,
    correct_working,
    true_equations,
)
from deepseek_jax.rewards.format import think_answer_format
from deepseek_jax.rewards.language import (
    check_language,
    language_consistency,
    language_consistency_en,
    language_consistency_zh,
)
from deepseek_jax.rewards.math_verify import MathVerifier
from deepseek_jax.rewards.math_verify import is_unread as is_unread_by_math_verify
from deepseek_jax.rewards.program import ProgramVerifier, check_test_cases
from deepseek_jax.rewards.rule import Reading, Rule

NUMBERS = Reading(extract_answer, answer_key)

# The only table of the general rules; worlds add theirs, see worlds.registry
RULES = {
    "exact_answer": Rule(exact_answer, gold_answer, NUMBERS, unread=is_unread),
    "math_verify": Rule(
        None,
        gold_answer,
        NUMBERS,
        verifier=MathVerifier,
        fields=("answer", "question"),
        unread=is_unread_by_math_verify,
    ),
    "correct": Rule(correct, check_integer, NUMBERS, unread=is_unread),
    "correct_reasoning": Rule(correct_reasoning, check_chain),
    "correct_working": Rule(correct_working, check_integer),
    "true_equations": Rule(true_equations),
    "program": Rule(None, check_test_cases, verifier=ProgramVerifier, fields=("test_cases",)),
    "think_answer_format": Rule(think_answer_format),
    "language_consistency": Rule(language_consistency, check_language),
    "language_consistency_en": Rule(language_consistency_en),
    "language_consistency_zh": Rule(language_consistency_zh),
}
