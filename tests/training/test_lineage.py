"""A stage is run once for its inputs, and again where one of them is another."""

import json

import pytest

from deepseek_jax.training.lineage import content_hash, run_stage


def chain(workdir, made, **settings):
    """Three stages in a row; `made` collects the names of those that are run."""

    def stage(name, parent):
        def make(folder):
            made.append(name)
            (folder / "result").write_text(str(settings[name]))

        inputs = {"settings": settings[name], "parent": parent}
        return run_stage(workdir, name, inputs, make)

    return stage("three", stage("two", stage("one", None)))


def test_unchanged_stages_are_skipped_and_say_so(tmp_path, capsys):
    """Oracle: by hand; the files' bytes before."""
    made, settings = [], dict(one=1, two=[2.5], three={"a": None})
    first = chain(tmp_path, made, **settings)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert made == ["one", "two", "three"]
    assert chain(tmp_path, made, **settings) == first and made == ["one", "two", "three"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert capsys.readouterr().out.count("unchanged") == 3


def test_a_changed_setting_reruns_its_stage_and_those_behind_it(tmp_path, capsys):
    """Oracle: by hand."""
    made = []
    chain(tmp_path, made, one=1, two=2, three=3)
    del made[:]
    chain(tmp_path, made, one=1, two=22, three=3)
    assert made == ["two", "three"]
    out = capsys.readouterr().out
    assert "stage two: settings changed" in out and "stage three: parent changed" in out
    chain(tmp_path, made, one=1, two=22, three=33)
    assert made == ["two", "three", "three"]


def test_a_stage_that_was_cut_short_finds_what_it_left_and_with_other_inputs_nothing(tmp_path):
    """Oracle: by hand."""
    found = []

    def make(folder):
        found.append(sorted(path.name for path in folder.iterdir()))
        (folder / "half").mkdir()
        raise KeyboardInterrupt

    def again(folder):
        found.append(sorted(path.name for path in folder.iterdir()))

    for inputs, do in (({"a": 1}, make), ({"a": 1}, again), ({"a": 2}, again)):
        if do is make:
            with pytest.raises(KeyboardInterrupt):
                run_stage(tmp_path, "stage", inputs, do)
            assert not json.loads((tmp_path / "stage" / "stage.json").read_text())["complete"]
        else:
            run_stage(tmp_path, "stage", inputs, do)
    assert found == [["stage.json"], ["half", "stage.json"], ["stage.json"]]


def test_a_hash_is_of_the_content_and_not_of_the_order_of_keys():
    """Oracle: by hand; the constant holds the hash to the same on every machine."""
    assert content_hash({"a": 1, "b": (2, 3)}) == content_hash({"b": [2, 3], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 1.5})
    assert content_hash("马") == content_hash("\u9a6c") == "9676a84c121b933e"
