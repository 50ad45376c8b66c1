"""The curves of a page: which ones are open, which are folded, and their units."""

import re

import numpy as np
import pytest

from deepseek_jax.reports.html_curves import unit_of
from deepseek_jax.training.boards import OTHER, group_of
from deepseek_jax.training.metric_names import GROUPS
from tests.reports.test_html_report import page

LINE = np.linspace(0.0, 1.0, 50)
# Its ratio of von Neumann is 1.9; independent values have 2 on average
NOISE = np.random.default_rng(6).normal(size=50)


def curves(phase, **others):
    """The part of a page with the curves of a phase: metric -> values."""
    steps = max(map(len, phase.values()))
    records = [
        {"step": s, "phase": "p"} | {name: float(v[s]) for name, v in phase.items() if s < len(v)}
        for s in range(steps)
    ]
    return (
        page(curves={"p": records}, **others).partition('id="curves"')[2].partition("</section>")[0]
    )


def titles(markup):
    return re.findall(r"<figcaption><span><b>(.*?)</b>", markup)


def test_what_is_paid_is_the_first_curve_and_the_base_is_folded():
    """Oracle: by hand: rewards, own ones too, then losses; metrics about rewards with the rest."""
    names = ("loss", "reward_seconds", "reward_own.py:brief", "reward", "held_out_loss/a", "other")
    base = [{"step": 0, "phase": "b", "loss": 2}]
    text = curves(dict.fromkeys(names, [1.0]), base_curves={"base": base})
    first = ["reward", "reward own.py:brief", "loss", "held out loss/a"]
    assert titles(text) == [*first, "reward seconds", "other", "loss"]
    open_, folded = text.partition("<summary>2 more: speed, other</summary>")[::2]
    assert titles(open_) == first and "<summary>before that: base</summary>" in folded


def test_the_curves_of_reinforcement_come_in_a_readers_order():
    """Oracle: the order that a reader asks in, by hand; a run logs them in the order of the alphabet."""
    names = "accuracy all_equal_share completion_length entropy grad_norm held_out_accuracy kl loss reward"
    text = curves(dict.fromkeys(names.split(), LINE))
    wanted = (
        "reward, accuracy, held out accuracy, completion length, loss, kl, entropy, grad norm, "
    )
    assert titles(text) == [*wanted.split(", ")[:-1], "groups without a signal"]
    assert "<details>" not in text


def test_a_curve_with_points_at_some_steps_only_is_drawn_through_them():
    """Oracle: by hand: an accuracy that is measured at steps 0 and 2 of three."""
    records = [{"step": s, "phase": "p", "loss": 3.0 - s} for s in range(3)]
    for step, accuracy in ((0, 0.25), (2, 0.75)):
        records[step]["held_out_accuracy"] = accuracy
    text = page(curves={"p": records})
    assert 'data-points="0:0.25 2:0.75"' in text


def test_constants_rounding_and_noise_are_folded_apart():
    """Oracle: by hand: a line through 50 steps says something, and so does noise on top of it; a metric that
    a reader asks for is noise only if it is rounding or constant.
    """
    phase = {
        "reward": NOISE,
        "kl": np.zeros(50),
        "loss": 1e-9 * NOISE,
        "learning_rate": np.full(50, 1e-4),
        "mfu": NOISE,
        "seconds": LINE + 0.05 * NOISE,
        "plateau_scale": 1e-5 * LINE,
    }
    text = curves(phase)
    open_, others, flat = re.split(r"<summary>.*?</summary>", text)
    assert titles(open_) == ["reward"] and titles(others) == ["plateau scale", "seconds"]
    assert titles(flat) == ["kl", "loss", "learning rate", "mfu"]
    assert "<summary>4 constant or noise: kl, loss, learning rate, mfu</summary>" in text


def test_noise_is_recognised_at_the_level_of_the_test():
    """Oracle: numpy: of 200 curves of independent values about 5% count as more than noise, and at most 12%
    (four standard deviations); of 200 random walks none counts as noise.
    """
    rng = np.random.default_rng(1)
    steps = rng.normal(size=(200, 50))
    noise = curves({f"m{i}": values for i, values in enumerate(steps)})
    num_others = int(re.search(r"<summary>(\d+) more: other", noise)[1])
    assert 0 < num_others <= 24
    walks = curves({f"m{i}": values for i, values in enumerate(steps.cumsum(1))})
    assert "constant or noise" not in walks


def test_the_other_curves_stand_in_the_groups_of_the_boards():
    """Oracle: the boards' own table, for a metric of each group and one that no group has."""
    names = ["unread", "soft", "temperature", "tool_seconds", "max_vio", "learning_rate", "mfu"]
    names += ["host_peak_gib", "own"]
    text = curves(dict.fromkeys(names, LINE))
    groups = re.findall(r"<h4>(\w+)</h4>", text)
    assert groups == [*GROUPS, OTHER] == [group_of(name) for name in names]
    assert f"9 more: {', '.join(groups)}" in text


@pytest.mark.parametrize(
    "name, unit",
    [
        ("held_out_accuracy", "share"),
        ("held_out_loss/tokens", "nats/token"),
        ("update_tokens_per_second", "tokens/s"),
        ("all_equal_share", "share"),
        ("reward", ""),
        ("grad_norm", ""),
        ("logged/seconds", ""),
        ("a_new_one", ""),
    ],
)
def test_a_metric_has_its_unit(name, unit):
    """Oracle: by hand, from the table of metrics; a plain number and a user's own have none on the page."""
    assert unit_of(name) == unit
    assert (f" <small>{unit}</small></span>" in curves({name: LINE})) == bool(unit)
