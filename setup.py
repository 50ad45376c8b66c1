"""What pyproject.toml cannot say: where the programs go in a wheel, and its page on a package index."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

# A wheel has these folders below the package, so that site-packages gets no `configs` and no `launch`
SHIPPED = ("configs", "launch")
FOLDERS = [name for top in SHIPPED for name in find_namespace_packages(include=[top, f"{top}.*"])]


def page():
    """README.md without what an index cannot show: pictures, and links into the repository."""
    paragraphs = Path("README.md").read_text(encoding="utf-8").split("\n\n")
    text = "\n\n".join(each for each in paragraphs if "![" not in each)
    return re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


setup(
    packages=find_namespace_packages(include=["deepseek_jax", "deepseek_jax.*"])
    + [f"deepseek_jax.shipped.{name}" for name in FOLDERS if name != "configs.results"],
    package_dir={f"deepseek_jax.shipped.{top}": top for top in SHIPPED},
    long_description=page(),
    long_description_content_type="text/markdown",
)
