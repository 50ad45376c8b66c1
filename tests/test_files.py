"""Files in a folder and in a bucket: each test runs in both where they must not differ."""

import importlib.util
import os
import pathlib

import pytest

from deepseek_jax import files
from deepseek_jax.files import Path


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """An empty place for files."""
    if request.param == "folder":
        return Path(tmp_path)
    bucket = request.getfixturevalue("bucket")
    bucket.objects.clear()
    return files.as_path(bucket.folder) / "run"


def test_a_file_is_written_whole_or_not_at_all(place):
    """Oracle: the text before, while the block runs and where it raises, the text after; no other file."""
    files.write_whole(place / "deep" / "a.json", "old")
    with pytest.raises(KeyboardInterrupt), files.whole_file(place / "deep" / "a.json") as fresh:
        fresh.write_text("half")
        raise KeyboardInterrupt
    with files.whole_file(place / "deep" / "a.json") as fresh:
        fresh.write_text("né\nnew")
        assert (place / "deep" / "a.json").read_text() == "old"
    assert (place / "deep" / "a.json").read_bytes() == "né\nnew".encode()
    assert files.below(place / "deep") == [place / "deep" / "a.json"]


def test_two_writers_of_one_file_do_not_mix(place):
    """Oracle: by hand: the file is what the writer that ends last has written; no other file."""
    with files.whole_file(place / "a") as slow:
        slow.write_text("slow")
        files.write_whole(place / "a", "fast")
        assert (place / "a").read_text() == "fast"
    assert (place / "a").read_text() == "slow"
    assert files.below(place) == [place / "a"]


def test_a_growing_file_keeps_what_it_had(place):
    """Oracle: the lines by hand; of a file that two runs of a program add to, one after the other."""
    for lines in ("ab", "c"):
        file = files.GrowingFile(place / "log" / "lines.txt", sync=True)
        for line in lines:
            file.add(line + "\n")
        file.flush()
    assert (place / "log" / "lines.txt").read_text() == "a\nb\nc\n"


def test_a_local_file_grows_at_once_and_one_in_a_bucket_at_a_bounded_rate(
    tmp_path, bucket, monkeypatch
):
    """Oracle: what is there by hand, at times that the test sets: REWRITE_SECONDS, and REST times the second
    that writing took.
    """
    now = [0.0]
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    local, remote = (files.GrowingFile(f"{at}/grows") for at in (tmp_path, bucket.folder))
    write_whole, written = files.write_whole, []

    def slow(path, text):
        now[0] += 1
        written.append(text)
        write_whole(path, text)

    monkeypatch.setattr(files, "write_whole", slow)
    for second, line in ((0, "a"), (9, "b"), (11, "c"), (30, "d"), (33, "e")):
        now[0] = max(now[0], second)
        for file in (local, remote):
            file.add(line)
    assert (tmp_path / "grows").read_text() == "abcde"
    assert written == ["abc", "abcde"] and remote.path.read_text() == "abcde"


def test_a_bucket_that_fails_for_a_while_costs_no_line(bucket, monkeypatch, capsys):
    """Oracle: the lines by hand, each once; the message names the file; flush raises what add does not."""
    monkeypatch.setattr(files, "REWRITE_SECONDS", 0.0)
    monkeypatch.setattr(files, "REST", 0)
    file = files.GrowingFile(f"{bucket.folder}/fails")
    file.add("a\n")
    with monkeypatch.context() as patch:
        patch.setattr(bucket, "read_only", True)
        file.add("b\n")
        assert f"{bucket.folder}/fails could not be written, and is tried again" in (
            capsys.readouterr().out
        )
        with pytest.raises(OSError, match="storage.objects.create"):
            file.flush()
    file.add("c\n")
    assert file.path.read_text() == "a\nb\nc\n"


def test_a_folder_is_listed_and_removed_whole(place):
    """Oracle: the files by hand; a second removal finds nothing and is no error."""
    for name in ("a", "b/c", "b/d/e.txt"):
        files.write_whole(place / name, name)
    found = [path for path in files.below(place) if path.is_file()]
    assert {str(path.relative_to(place)): path.read_text() for path in found} == {
        name: name for name in ("a", "b/c", "b/d/e.txt")
    }
    files.remove_folder(place / "b")
    files.remove_folder(place / "b")
    assert [path.name for path in files.below(place)] == ["a"]


def test_what_is_staged_is_a_copy_until_the_source_changes(bucket):
    """Oracle: the bytes of the source, the paths that are asked for twice, and the requests to the bucket."""
    source = files.as_path(bucket.folder) / "model"
    for name in ("config.json", "sub/weights.bin"):
        files.write_whole(source / name, name)
    first = files.staged(source)
    assert (first / "sub" / "weights.bin").read_text() == "sub/weights.bin"
    assert first.name == "model" and isinstance(first, pathlib.Path)
    assert files.staged(source) == first
    files.write_whole(source / "config.json", "config.JSON")  # of the same length
    second = files.staged(source)
    assert second != first and (second / "config.json").read_text() == "config.JSON"
    assert not (files.staged(source, lambda name: name != "weights.bin") / "sub").exists()
    assert files.staged(source / "config.json").read_text() == "config.JSON"
    assert files.staged("here") == pathlib.Path("here")


def test_a_copy_that_is_cut_short_is_made_again(bucket, monkeypatch):
    """Oracle: the file's bytes after it; no half of a copy is left."""
    source = files.as_path(bucket.folder) / "data.jsonl"
    files.write_whole(source, "one\ntwo\n")

    def interrupted(path, target):
        pathlib.Path(target).write_text("one")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(source), "copy", interrupted)
        files.staged(source)
    assert files.staged(source).read_text() == "one\ntwo\n"
    assert not list(files.cache_folder("staged").glob(".*"))


def test_what_is_not_there_cannot_be_staged(bucket):
    """Oracle: the address in the message."""
    with pytest.raises(ValueError, match=f"nothing at {bucket.folder}/absent"):
        files.staged(f"{bucket.folder}/absent")


def test_a_path_begins_with_the_home_folder(tmp_path, monkeypatch):
    """Oracle: by hand, as a shell writes it; a ~ elsewhere, and behind ./, is a name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for function in (files.as_path, files.absolute, files.staged):
        assert str(function("~/x")) == f"{tmp_path}/x" and str(function("~")) == str(tmp_path)
    assert str(files.as_path("./~x")) in ("~x", "./~x") and str(files.as_path("a/~/b")) == "a/~/b"
    assert str(files.absolute("~root")) == os.path.expanduser("~root") != "~root"
    with pytest.raises(
        ValueError, match="~nobody_here begins with the home .* write ./~nobody_here"
    ):
        files.as_path("~nobody_here")


def test_an_address_that_is_not_served_is_refused_with_what_is():
    """Oracle: the address, and the kind that is served."""
    with pytest.raises(ValueError, match=r"s3://b/x is neither a local path nor .* gs://"):
        files.as_path("s3://b/x")


def test_without_the_package_for_buckets_the_message_names_it(monkeypatch):
    """Oracle: the extra of pyproject.toml; local paths need none."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    files._prepare_buckets.cache_clear()
    with pytest.raises(ValueError, match=r"gcsfs: pip install 'deepseek_jax\[gcs\]'"):
        files.as_path("gs://b/x")
    assert files.absolute("/a/../b") == Path("/b")
    root = pathlib.Path(files.__file__).parents[1]
    assert "\ngcs = [" in (root / "pyproject.toml").read_text()
