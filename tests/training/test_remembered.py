"""Measurements that a run reads from a file when it resumes."""

import pytest

from deepseek_jax.training.remembered import before_and_after, remembered


@pytest.mark.parametrize("content", ["", "{", '{"loss": [1.2', "\0" * 40, "{}", "[]", "null", "3"])
@pytest.mark.parametrize("name", ["before.json", "after.json"])
def test_a_damaged_measurement_is_named_and_not_made_anew(tmp_path, name, content):
    """Oracle: the file's path and the remedy; the file as it was."""
    for each in ("before.json", "after.json"):
        remembered(tmp_path / each, lambda: {"loss": [1.25, 1.0, 1.5]})
    (tmp_path / name).write_text(content)
    words = f"^{tmp_path / name} is damaged, as it (is not JSON|holds no measurement).*; put back a copy"
    for read in (lambda: remembered(tmp_path / name, dict), lambda: before_and_after(tmp_path)):
        with pytest.raises(ValueError, match=words):
            read()
    assert (tmp_path / name).read_text() == content
