"""The folder in which JAX stores compiled programs for the next start."""

import hashlib
import platform
from pathlib import Path

from deepseek_jax.files import cache_folder

CPU_INFO = Path("/proc/cpuinfo")


def keep_programs(shared: Path | None):
    """Have JAX store what it compiles on disk; call this before anything compiles.

    It changes nothing if JAX_COMPILATION_CACHE_DIR names a folder already.

    Args:
        shared: A folder that all processes of the run see. None for a single process: its programs
            are stored in cache_folder("programs").
    """
    import jax

    if jax.config.jax_compilation_cache_dir:
        return
    # With several processes, only the first one writes, and all read
    folder = cache_folder("programs") if shared is None else shared / ".compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder / _machine()))
    # Small programs too: a recipe has dozens of them
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _machine():
    """Return a name for this kind of processor.

    JAX's key of a program for a CPU is the same for all kinds. A program for one kind may end the
    process on another kind with an illegal instruction.
    """
    flags = [platform.machine()]
    if CPU_INFO.exists():
        lines = CPU_INFO.read_text().splitlines()
        flags += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return hashlib.blake2b("".join(flags).encode(), digest_size=4).hexdigest()
