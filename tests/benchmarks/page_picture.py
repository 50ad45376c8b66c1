"""A picture of a page: python -m tests.benchmarks.page_picture RUN/report.html PICTURE.png [WIDTH HEIGHT]

Chromium draws it, without a window, with two pixels for each of its own, so that small text can be read.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# In CSS pixels: what a reader sees before scrolling far
WIDTH, HEIGHT = 1100, 1500
FLAGS = "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=2"


def take(page: Path, picture: Path, width: int = WIDTH, height: int = HEIGHT):
    """Write the first height pixels of a page as a PNG. Raises ValueError where there is no Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise ValueError("needs a browser: apt-get install chromium")
    # Without time to draw, a busy machine's picture lacks a part
    waits = ["--virtual-time-budget=5000", "--run-all-compositor-stages-before-draw"]
    with tempfile.TemporaryDirectory() as profile:
        flags = [*waits, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        flags += [f"--screenshot={picture.resolve()}", page.resolve().as_uri()]
        subprocess.run([browser, *FLAGS.split(), *flags], check=True, capture_output=True)


if __name__ == "__main__":
    source, target, *sizes = sys.argv[1:]
    take(Path(source), Path(target), *map(int, sizes))
