"""Where compiled programs are kept: of one process, of several, and where a user says otherwise."""

import jax
import pytest

from deepseek_jax.files import as_path
from launch import caches

DIR = "jax_compilation_cache_dir"
SIZES = "jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes"


@pytest.fixture(autouse=True)
def unset():
    """JAX without a folder, as in a user's process."""
    before = {name: getattr(jax.config, name) for name in (DIR, *SIZES)}
    jax.config.update(DIR, None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def kept():
    return getattr(jax.config, DIR)


def test_one_process_keeps_programs_in_the_users_cache_and_several_beside_their_run(
    tmp_path, monkeypatch, bucket
):
    """Oracle: the folders by hand; small programs are kept too; a bucket's stays an address."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caches.keep_programs(None)
    assert kept() == str(tmp_path / "deepseek_jax" / "programs" / caches._machine())
    assert [getattr(jax.config, name) for name in SIZES] == [0.0, -1]
    for shared in (tmp_path, as_path(f"gs://{bucket.name}/runs")):
        jax.config.update(DIR, None)
        caches.keep_programs(shared)
        assert kept() == f"{shared}/.compiled/{caches._machine()}"


def test_a_folder_that_the_user_names_stays(tmp_path):
    """Oracle: the name."""
    jax.config.update(DIR, "mine")
    caches.keep_programs(tmp_path)
    assert kept() == "mine"


def test_processors_of_another_kind_have_another_folder(tmp_path, monkeypatch):
    """Oracle: two texts of /proc/cpuinfo whose flags differ, and one whose other lines do."""
    names = []
    for text in ("flags: avx\nmodel: a\n", "flags: avx512\n", "flags: avx\nmodel: b\n"):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(caches, "CPU_INFO", tmp_path / "cpuinfo")
        names.append(caches._machine())
    assert names[0] == names[2] != names[1]
