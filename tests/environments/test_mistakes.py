"""Each mistake in the form of tools and environments, by its message, before a run begins."""

import pytest

from deepseek_jax.environments import Environments
from tests.environments.calls import TOOLS, act, begun, call, environments

FORM = "give it type hints and a docstring"


@pytest.mark.parametrize(
    "tools, environment, words",
    [
        (
            ["without_hints"],
            None,
            ("tools: ", ":without_hints: Argument a is missing a type hint", FORM),
        ),
        (["without_docstring"], None, ("tools: ", "because it has no docstring!", FORM)),
        (["without_meaning"], None, ("no description for the argument 'a'", FORM)),
        (["waits"], None, ("tools: ", ":waits is async, which is not supported")),
        (["multiply", "multiply"], None, ("tools: ", "has a tool multiply, and so has", "rename")),
        (["SameName"], None, ("tools: ", "SameName is no function; name a function")),
        (["A_NUMBER"], None, ("tools: ", "own_tools.py has no function A_NUMBER; it has multiply")),
        (
            [],
            "Takes",
            ("environment: ", ":Takes takes arguments: missing a required argument: 'size'"),
        ),
        (
            [],
            "NoReset",
            ("environment: ", ":NoReset has no method reset; define reset(self, **columns)"),
        ),
        (
            [],
            "Nothing",
            (":Nothing has no public method beside reset and get_reward; define tools",),
        ),
        (
            [],
            "CannotBeMade",
            (":CannotBeMade cannot be made: own_environments.py, line", "OSError: no key"),
        ),
        ([], "AsyncStep", (":AsyncStep.step is async",)),
        (
            [],
            "StepWithoutText",
            (":StepWithoutText.step: too many positional", "define step(self, text)"),
        ),
        ([], "a_function", ("environment: ", ":a_function is no class; name a class")),
        (["multiply"], "Guess", ("environment: ", ":Guess.step: Cannot generate", FORM)),
    ],
)
def test_a_mistake_of_form_is_named(tools, environment, words):
    """Oracle: the message, which begins with the argument."""
    with pytest.raises(ValueError) as error:
        environments(*tools, environment=environment)
    assert all(word in str(error.value) for word in words), error.value
    assert str(error.value).startswith(words[0] if words[0].endswith(": ") else ("tools", "env"))


def test_a_method_may_not_have_a_tools_name():
    """Oracle: the message, which names both."""
    words = f"^environment: {TOOLS}:SameName has a tool multiply, and so has {TOOLS}:multiply"
    with pytest.raises(ValueError, match=words):
        Environments([f"{TOOLS}:multiply"], f"{TOOLS}:SameName")


def test_a_name_that_is_none_and_a_file_that_is_not_there_are_named(tmp_path):
    """Oracle: the messages; the last file raises when it is imported."""
    with pytest.raises(ValueError, match="tools: 'calculator' names no code; or bring your own"):
        Environments(["calculator"], None)
    with pytest.raises(ValueError, match="environment: there is no file nowhere.py"):
        Environments([], "nowhere.py:A")
    (tmp_path / "broken.py").write_text("\n1 / 0")
    with pytest.raises(ValueError, match="tools: .*broken.py, line 2: ZeroDivisionError"):
        Environments([f"{tmp_path}/broken.py:a"], None)


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "Fails",
            "environment: reset failed: own_environments.py, line 94: RuntimeError: no board",
        ),
        ("Hangs", "environment: reset took more than call_seconds=0.5"),
        ("ANumber", "environment: reset returned 3; return a text, or None (own_environments.py)"),
        ("TooLong", "reset returned 200000 bytes, above call_bytes=65536"),
        (
            "FewColumns",
            "reset of own_environments.py gets every column (secret, line_): got an unex",
        ),
    ],
)
def test_a_reset_that_fails_is_named(name, words):
    """Oracle: the message."""
    with environments(environment=name, call_seconds=0.5, workers=2) as made:
        with pytest.raises(ValueError) as error:
            made.begin({key: ({"secret": 3, "line_": 1}, key) for key in range(4)})
    assert words in str(error.value), error.value


@pytest.mark.parametrize(
    "name, columns, text, words",
    [
        ("FewColumns", {"secret": 3, "line_": 1}, "", "gets every column (secret, line_)"),
        ("Guess", {"secret": 6}, "odd", "step returned int; return a text, or None to end"),
        ("Counter", {"first": 1e8}, "", "get_reward returned 1e+07; rewards must be within"),
    ],
)
def test_a_first_conversation_that_fails_is_named(name, columns, text, words):
    """Oracle: the message; what one environment cannot do is no reason to refuse another."""
    with environments(environment=name, call_seconds=0.5) as made:
        with pytest.raises(ValueError) as error:
            made.check(columns, text)
    assert str(error.value).startswith("environment: ") and words in str(error.value)


def test_a_first_conversation_may_be_one_that_the_model_has_to_read_about():
    """Oracle: by hand: a step that raises, a game without a reward, and tools alone."""
    with environments(environment="Guess") as made:
        made.check({"secret": 6}, "six")
        made.check({"secret": 6}, "6")
    with environments(environment="Counter") as made:
        made.check({"first": 12}, "")
        assert made.begin({0: ({"first": 2}, 0)}) == {0: "The count is 2."}
    with environments("multiply") as made:
        made.check({}, "")


def test_a_tool_of_which_every_call_fails_is_refused(tmp_path):
    """Oracle: a call by name, as a model makes it, by Python's own rules for *."""
    text = 'def f(*a: int) -> int:\n    """Double.\n\n    Args:\n        a: A number.\n    """\n'
    (tmp_path / "mine.py").write_text(f"{text}    return 2\n")
    with pytest.raises(
        ValueError, match="^tools: .*mine.py:f: every call fails: .*unexpected keyword"
    ):
        Environments([f"{tmp_path}/mine.py:f"], None)


def test_a_file_that_has_changed_since_the_run_began_ends_it(tmp_path):
    """Oracle: the message, in a worker that starts anew after a call has ended the first."""
    file = tmp_path / "tools.py"
    file.write_text(TOOLS.read_text())
    with Environments([f"{file}:leave"], None, workers=1) as made:
        made.begin({0: ({}, 0)})
        assert act(made, 0, call("leave")).failure == "leave ended its process"
        file.write_text(TOOLS.read_text() + "\n")
        with pytest.raises(ValueError, match="tools: tools.py has changed since the run began"):
            act(made, 0, call("leave"))


def test_schemas_are_those_of_the_transformers_library():
    """Oracle: get_json_schema here, on the same functions; tools first, methods as they are defined."""
    from transformers.utils import get_json_schema

    from tests.environments.files.own_environments import Counter
    from tests.environments.files.own_tools import multiply, search

    with begun("search", "multiply", environment="Counter", columns={"first": 1}) as made:
        counter = Counter()
        methods = counter.add, counter.above, counter.hang, counter.leave, counter.draw
        assert made.schemas == [get_json_schema(f) for f in (search, multiply, *methods)]
        assert (made.takes_steps, made.reward_name, made.has_state) == (False, "Counter", True)
