"""Where tests keep what takes long to make: compiled programs, and parameters of tiny models."""

import os
from pathlib import Path

# Outside of the clone, so that a fresh one does not make all again
CACHES = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deepseek_jax" / "tests"
