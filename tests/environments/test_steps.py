"""Environments with `step`, rewards of environments, and conversations that are stopped."""

import multiprocessing

from tests.environments.calls import act, begun, call, children, environments, scored


def test_each_text_of_the_model_is_a_step_until_one_returns_none():
    """Oracle: the game, by hand."""
    with begun(environment="Guess", columns={"secret": 6}) as made:
        assert made.takes_steps and made.schemas == [] and made.reward_name is None
        assert act(made, 0, "5").texts == ["higher"]
        assert act(made, 0, "9").texts == ["lower"]
        acted = act(made, 0, "6")
        assert acted.ended and (acted.texts, acted.errors, acted.failure) == ([], 0, None)
        assert scored(made, 0) is None


def test_a_step_that_fails_is_read_by_the_model():
    """Oracle: the messages."""
    with begun(environment="Guess", columns={"secret": 6}, call_seconds=0.5) as made:
        acted = act(made, 0, "six")
        assert acted.errors == 1 and acted.texts[0].startswith("Error: ValueError: invalid literal")
        acted = act(made, 0, "odd")
        assert acted.errors == 1 and acted.texts[0].startswith(
            "Error: TypeError: step returned int;"
        )
        acted = act(made, 0, "hang")
        assert acted.failure == "step took more than call_seconds=0.5"


def test_a_reward_is_a_number_or_why_there_is_none():
    """Oracle: by hand; each game alone, as the last one hangs."""
    wanted = {
        12: 1.2,
        13: "get_reward returned nan; return a finite number (own_environments.py)",
        14: "get_reward returned None; return a finite number (own_environments.py)",
        15: "get_reward failed: own_environments.py, line 51: ZeroDivisionError: division by zero",
        16: "there is no reward: get_reward took more than call_seconds=0.5",
    }
    with environments(environment="Counter", call_seconds=0.5) as made:
        for first, reward in wanted.items():
            made.begin({first: ({"first": first}, 0)})
            assert scored(made, first) == reward


def test_a_stop_ends_the_calls_under_way_and_forgets_all():
    """Oracle: by hand: the process of a call that hangs is gone, ten minutes before its limit; new
    conversations have the old keys and their own state.
    """
    counter = dict(environment="Counter", columns={"first": 1}, count=4, workers=2)
    others = children()
    with begun(**counter, call_seconds=600.0) as made:
        made.act(0, [call("hang")])
        made.act(1, [call("add", number=1)])
        assert made.acted(1).texts == ["2"]
        running = set(multiprocessing.active_children()) - others
        made.stop()
        assert len(running - set(multiprocessing.active_children())) == 1
        made.begin({key: ({"first": 5}, 0) for key in range(2)})
        assert [act(made, key, call("add", number=1)).texts for key in range(2)] == [["6"], ["6"]]
        made.act(0, [call("hang")])
    assert not running & set(multiprocessing.active_children())
