"""Completions on disk: what a file of them gives back."""

import numpy as np
import pytest

from deepseek_jax.rollout.completions import empty_rollout, fill
from deepseek_jax.rollout.sample_log import SampleLog


def a_rollout():
    """Five ragged completions of up to 7 tokens; row 3 is empty, and every second one lacks its end token."""
    rng, rollout = np.random.default_rng(0), empty_rollout(5, 7)
    for row, length in enumerate((7, 1, 4, 0, 6)):
        rollout.completion_mask[row, :length] = True
        rollout.completion_ids[row, :length] = rng.integers(0, 2**31, length)
        rollout.sampler_logprobs[row, :length] = -rng.exponential(size=length)
    rollout.truncated[::2] = True
    return rollout


def assert_filled_from(log, rollout, rows):
    """The rows of the log fill an empty rollout as they stand in this one, bit for bit, and no other does."""
    assert sorted(log.done) == sorted(rows)
    filled, wanted = empty_rollout(5, 7), empty_rollout(5, 7)
    fill(filled, log)
    for got, expected, source in zip(filled[:4], wanted[:4], rollout[:4], strict=True):
        expected[rows] = source[rows]
        assert got.dtype == expected.dtype and got.tobytes() == expected.tobytes()


def test_a_log_gives_back_what_was_added_without_its_cut_last_line(tmp_path):
    """Oracle: the rollout itself, bit for bit, in the next calls, whose own lines begin on a line of their
    own; the numbers of completions by hand.
    """
    rollout, path = a_rollout(), tmp_path / "log"
    log = SampleLog(path)
    log.add([4, 0], rollout)
    log.add([3], rollout)
    assert not log.done and log.ended == 3
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    log = SampleLog(path)
    assert path.read_bytes() == whole
    assert_filled_from(log, rollout, [0, 3, 4])
    log.add([1], rollout)
    assert log.ended == 4
    assert_filled_from(SampleLog(path), rollout, [0, 1, 3, 4])


def test_a_log_gives_back_what_other_processes_added(tmp_path):
    """Oracle: the rollout itself; a cut last line of another process is left to that process."""
    rollout, paths = a_rollout(), [tmp_path / str(process) for process in range(3)]
    for path, rows in zip(paths[:2], ([4, 0], [3]), strict=True):
        SampleLog(path).add(rows, rollout)
    paths[1].write_bytes(before := paths[1].read_bytes() + b"{")
    log = SampleLog(paths[0], earlier=paths[1:])
    assert_filled_from(log, rollout, [0, 3, 4])
    assert log.ended == 3 and paths[1].read_bytes() == before
    log.add([1], rollout)
    assert_filled_from(SampleLog(paths[2], earlier=paths[:2]), rollout, [0, 1, 3, 4])


@pytest.mark.parametrize("writes", [True, False])
def test_long_completions_take_few_bytes_on_disk_and_in_memory(tmp_path, writes):
    """Oracle: by hand: 8 bytes a token in memory until they are written, and 4 characters for 3 of them on
    disk; a process that does not write makes no file, and nothing waits for one.
    """
    rollout, path = empty_rollout(1, 30_000), tmp_path / "log"
    rollout.completion_mask[:] = True
    rollout.completion_ids[:], rollout.sampler_logprobs[:] = 128_000, -1.2345678
    log = SampleLog(path, writes=writes, every=1e9)
    log.add([0], rollout)
    assert len(log.waiting) == writes and not log.done
    held = sum(line[name].nbytes for line in log.waiting for name in ("ids", "logprobs"))
    assert held == writes * 30_000 * 8
    log.write()
    assert not log.waiting
    assert (path.stat().st_size if path.exists() else 0) <= writes * (30_000 * 8 * 4 / 3 + 200)


@pytest.mark.parametrize(
    "damaged", ["\0" * 20, '{"row": 1}', "[]", '{"row": 1, "ids": "AAA", "logprobs": ""}']
)
def test_a_damaged_line_is_named(tmp_path, damaged):
    """Oracle: by hand: the file, the second of three lines, the remedy; the file stays as it was."""
    path = tmp_path / "log"
    SampleLog(path).add([1, 0], a_rollout())
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(text := f"{first}{damaged}\n{second}")
    with pytest.raises(ValueError, match=f"{path} is damaged: line 2 .*; remove the file"):
        SampleLog(path)
    assert path.read_text() == text


def test_a_log_is_written_at_once_and_removed_by_who_writes_it(tmp_path):
    """Oracle: the file system: without words the line is there after each `add`; a log that is gone, or was
    never written, is removed too.
    """
    path = tmp_path / "log"
    log = SampleLog(path)
    log.add([0], a_rollout())
    assert path.exists() and not log.waiting
    SampleLog(path, writes=False).remove()
    assert path.exists()
    for _ in range(2):
        log.remove()
        assert not path.exists()
