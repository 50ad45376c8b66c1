"""Rules take time linear in the length of a completion."""

import functools

import pytest

from deepseek_jax.rewards import math_verify
from deepseek_jax.worlds.registry import all_rules
from tests.linear import copies, is_linear
from tests.quick import others_slow
from tests.rewards.forms import forms

# In this process: the workers of math_verify get only what is shorter than latex.MAX_CHARS
RULES = {name: rule.score for name, rule in all_rules().items() if rule.verifier is None}
# language_consistency with another target
RULES = {name: score for name, score in RULES.items() if not name.endswith(("_en", "_zh"))}
RULES["math_verify"] = lambda text, example: math_verify._first_look(text, "5", "What is 2 + 3?")
EXAMPLE = {"question": "What is 2 + 3?", "answer": "5", "language": "en"}
LOOKUP = EXAMPLE | {"kind": "lookup", "answer": "the capital of Arland is Avila", "key": "Avila"}
SECRET = EXAMPLE | {"kind": "secret", "answer": "I must not tell", "key": "fish|鱼"}
PIECES = forms(r"""
    5 | 5, | 5,000 | 5. | 5- | -5 | − | 5% | \% | $ | $5$ | ² | 5^{ | \frac{1}{2} | \frac{ | { | } | \{ |
    \boxed{ | \boxed{5} | <answer> | </answer> | <answer>5 | #### | answer: | answer=a | answer is(((( |
    = | 5= | 2+3=5; | x | * | a | é | 字 | f- | f-i-s- | _ | <think> | </think> | ` | $a | \text{ | \text{a} |
    ~ | \, | \[ | \( | \(a\) | ° | ½ | ( | [5, | (a | 1/ | Avila | a' | x_1 | \foo | 个 | 5个
""")
PIECES += ["5 ", "minus ", "5 million ", "the answer is 5 ", "fis ", "f i s ", "4 or ", "- "]
PIECES += ["\n", " ", "\u200b", "2 + 3 = 5\n", "#### 5\n", "five or ", "per cent ", "a a/"]
PIECES += ["1+", "1=", ";", "-", "a:", ",111", "So the answer is ", "3 + 8 = 11; "]


@pytest.mark.parametrize("piece", others_slow(PIECES, *PIECES[::16]))
def test_a_long_completion_is_scored_in_linear_time(piece):
    """Oracle: a text a sixteenth as long; a quadratic search of 100,000 characters takes a minute."""
    slow = []
    for name, rule in RULES.items():
        for example in (LOOKUP, SECRET) if name in ("helpfulness", "harmless") else (EXAMPLE,):
            if not is_linear(functools.partial(rule, example=example), copies(piece)):
                slow.append(name)
    assert slow == []
