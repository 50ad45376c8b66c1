"""Where what JAX compiles waits for the next start."""

import hashlib
import platform
from pathlib import Path

from deepseek_jax.files import cache_folder

CPU_INFO = Path("/proc/cpuinfo")


def keep_programs(shared: Path | None):
    """Have JAX keep what it compiles, unless JAX_COMPILATION_CACHE_DIR says where: call it before anything
    compiles.

    shared: a folder that all processes of the run see; None for a single process, which keeps its programs in
    cache_folder("programs").
    """
    import jax

    if jax.config.jax_compilation_cache_dir:
        return
    # Where there are several processes, only the first writes, and all read
    folder = cache_folder("programs") if shared is None else shared / ".compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder / _machine()))
    # Small programs too: a recipe has dozens of them
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _machine():
    """A name for processors of one kind: JAX's key of a program for a CPU does not tell them apart, and a
    program for one may end another with an illegal instruction.
    """
    flags = [platform.machine()]
    if CPU_INFO.exists():
        lines = CPU_INFO.read_text().splitlines()
        flags += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return hashlib.blake2b("".join(flags).encode(), digest_size=4).hexdigest()
