"""Updates that do nothing: each check where it begins."""

from types import SimpleNamespace

import numpy as np
import pytest

from deepseek_jax.errors import BrokenTerm
from deepseek_jax.reinforce.idle import IdleUpdates, check_reference

MARKS, OWN = np.float32([0.5, 1.0, 0.25]), np.float32([1, -2, 4])
# Of two updates: half of 40 tokens, and half of the sum of marked advantages, -0.5
LINE = dict(learned_tokens=20.0, tokens=40.0, marked_advantages=-0.25, kl=1.0, grad_norm=1.0)
LINE |= dict(all_equal_share=0.5)


def looks(lines, has_moved=True, idle_lines=2, own=OWN):
    """Look at lines, each LINE with other fields."""
    settings = SimpleNamespace(
        minibatches=2, loss=SimpleNamespace(kl_coef=0.1), faults=SimpleNamespace(idle_lines=idle_lines)
    )  # fmt: skip
    record = SimpleNamespace(advantages=own, marks=MARKS)
    checked = IdleUpdates(settings, SimpleNamespace(has_moved=has_moved, record=record))
    for step, fields in enumerate(lines):
        checked.look(step, LINE | fields)


@pytest.mark.parametrize(
    "lines, has_moved",
    [
        ([{}] * 3, True),
        ([dict(learned_tokens=20 * (1 + 0.9e-6))], True),
        ([dict(marked_advantages=-0.25 + 1e-4)], True),
        ([dict(kl=0.0)] * 3, False),
        ([dict(kl=0.0), {}] * 3, True),
        ([dict(kl=0.0), dict(grad_norm=0.0)] * 3, True),
        ([dict(grad_norm=0.0, all_equal_share=1.0)] * 3, True),
    ],
)
def test_lines_of_updates_that_learn_are_fine(lines, has_moved):
    """Oracle: by hand: rounding, and what is 0 for a reason or in fewer lines in a row than two."""
    looks(lines, has_moved)


def test_a_line_without_a_kl_has_none_that_is_idle():
    """Oracle: by hand."""
    looks([dict(kl=None)] * 3)


def test_a_step_of_equal_rewards_has_nothing_in_the_wrong_place():
    """Oracle: by hand: advantages of 0, whose sum is 0."""
    looks([dict(marked_advantages=0.0)], own=0 * OWN)


@pytest.mark.parametrize(
    "lines, words",
    [
        ([dict(learned_tokens=20 * (1 + 1.5e-6))], "step 0: .* have 40 tokens .* in place of 40"),
        ([dict(learned_tokens=19.0)], "have 38 tokens .* in place of 40"),
        # 1.5e-4 of the sum of sizes, 3.5
        ([dict(marked_advantages=-0.25 + 1.5e-4 * 3.5 / 2)], "step 0: the sum of advantages"),
        ([dict(marked_advantages=0.25)], "is 0.5 in the .* in place of -0.5"),
        ([dict(kl=0.0)] * 2, "kl is exactly 0 in 2 lines in a row up to step 1, .*kl_coef=0.1"),
        ([dict(grad_norm=0.0, all_equal_share=0.9)] * 2, "grad_norm is exactly 0 in 2 lines"),
        ([{}, dict(kl=0.0, grad_norm=0.0), dict(grad_norm=0.0)], "grad_norm is exactly 0 in 2"),
    ],
)
def test_lines_of_updates_that_do_nothing_are_named(lines, words):
    """Oracle: by hand."""
    with pytest.raises(BrokenTerm, match=words):
        looks(lines)


@pytest.mark.parametrize("kl_coef, kl, fine", [(0.1, 0.5, True), (0.1, 0.75, False), (0, 9, True)])
def test_the_first_kl_is_at_most_rounding(kl_coef, kl, fine):
    """Oracle: by hand, with half a nat as the most. Without a KL none is looked at."""
    settings = SimpleNamespace(loss=SimpleNamespace(kl_coef=kl_coef))
    if fine:
        check_reference(settings, 0.5, {"kl": kl})
        return
    with pytest.raises(BrokenTerm, match="loss.kl_coef=0.1: .* is 7.5e-01 nats .* above 5.0e-01"):
        check_reference(settings, 0.5, {"kl": kl})
