"""The config's path in front of a message, whatever the message is about."""

import pytest

from deepseek_jax.errors import MOST, at, shortened, suggest


@pytest.mark.parametrize(
    "message, shown",
    [
        ("clip_eps=0 must be above 0", "config.loss.clip_eps=0 must be above 0"),
        ("phases[1].to=-1 must be at least 0", "config.loss.phases[1].to=-1 must be at least 0"),
        ("two schedules; keep one", "config.loss: two schedules; keep one"),
    ],
)
def test_a_path_joins_the_argument_that_a_message_begins_with(message, shown):
    """Oracle: by hand."""
    with pytest.raises(ValueError) as caught, at("config.loss"):
        raise ValueError(message)
    assert str(caught.value) == shown


def test_an_argument_that_a_field_gives_takes_the_fields_name():
    """Oracle: by hand; another argument, and one whose name only begins so, keep their own."""
    for message, shown in (
        ("path='x' is missing", "config.keep.files='x' is missing"),
        ("paths='x' is missing", "config.keep.files.paths='x' is missing"),
        ("x.jsonl, line 2 is empty", "config.keep.files: x.jsonl, line 2 is empty"),
    ):
        with pytest.raises(ValueError) as caught, at("config.keep"), at("files", "path"):
            raise ValueError(message)
        assert str(caught.value) == shown


def test_paths_nest():
    """Oracle: by hand, an inner block of an outer one."""
    with pytest.raises(ValueError, match="^config.base.optimizer.b1=2 must be below 1$"):
        with at("config"), at("base"), at("optimizer"):
            raise ValueError("b1=2 must be below 1")


def test_paths_nest_before_a_message_that_names_no_argument():
    """Oracle: by hand."""
    with pytest.raises(ValueError, match="^config.base: two schedules$"), at("config"), at("base"):
        raise ValueError("two schedules")


def test_the_error_keeps_the_place_that_raised_it():
    """Oracle: the last line of its traceback is here, for launch tells a user's mistake from ours by it."""
    with pytest.raises(ValueError) as caught, at("config"):
        raise ValueError("x=1")
    assert str(caught.traceback[-1].path) == __file__ and type(caught.value) is ValueError


def test_other_errors_pass_unchanged():
    """Oracle: a KeyError is no message for a user."""
    with pytest.raises(KeyError, match="^'x'$"), at("config"):
        raise KeyError("x")


@pytest.mark.parametrize(
    "name, end",
    [("groop", "did you mean group? allowed: group, loss"), ("zzz", "allowed: group, loss")],
)
def test_a_suggestion_is_the_nearest_name_then_all(name, end):
    """Oracle: by hand."""
    assert suggest(name, ("group", "loss")) == end


def test_a_long_text_is_shown_by_its_ends():
    """Oracle: by hand."""
    assert shortened("short") == "short" and shortened("x" * MOST) == "x" * MOST
    text = shortened("a" * 5_000_000 + "z")
    assert len(text) < MOST + 50 and text.startswith("aaa") and text.endswith("az")
    assert " ... (4,996,001 characters left out) ... " in text
