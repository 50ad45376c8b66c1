"""What README.md and the guides name is there, and what has to be named is."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "configs/README.md",
        "configs/own/README.md",
        "deepseek_jax/README.md",
        "launch/README.md",
        "tests/benchmarks/README.md",
        "tests/reliability/README.md",
    )
]
PAGES = sorted((ROOT / "configs" / "results").glob("*.md"))
GUIDES += PAGES
EXPERIMENTS = [
    p for p in sorted((ROOT / "configs").glob("*.py")) if "def get_config" in p.read_text()
]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")
# A path below a top folder, or a file beside them
TOPS = "configs|deepseek_jax|launch|tests"
NAMED = re.compile(
    rf"(?<![\w/.-])((?:{TOPS})/[\w/.-]*\w/?|[A-Z]+\.md|[a-z_]+\.(?:toml|txt))(?![\w*])"
)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.relative_to(ROOT).as_posix())
def test_every_link_and_path_of_a_guide_is_there(guide):
    """Oracle: the files; a link goes from the guide's own folder. NAME stands for any name."""
    text, folders = guide.read_text(), (ROOT, guide.parent)
    named = [name for name in NAMED.findall(text) if "NAME" not in name]
    assert [link for link in LINK.findall(text) if not (guide.parent / link).exists()] == []
    assert [n for n in named if not any((folder / n).exists() for folder in folders)] == []


def test_every_guide_is_known_here():
    """Oracle: git's list of Markdown files."""
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert {ROOT / name for name in listed} <= set(GUIDES)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_is_in_the_index_and_its_command_on_the_page(path):
    """Oracle: the command that its own docstring has: in a line of the index, or on the page that the line
    links to.
    """
    (command, *_) = re.findall(
        rf"python launch/\w+\.py --config=configs/{path.name}", path.read_text()
    )
    index = ROOT / "configs" / "README.md"
    lines = [
        line
        for line in index.read_text().split("\n")
        if line.startswith("|") and (f"`{path.stem}`" in line or command in line)
    ]
    pages = [(index.parent / link).read_text() for line in lines for link in LINK.findall(line)]
    assert lines and any(re.search(rf"{re.escape(command)}(?!\w)", t) for t in [*lines, *pages])


def test_every_page_of_results_is_in_the_index():
    """Oracle: the files."""
    index = (ROOT / "configs" / "README.md").read_text()
    assert PAGES and [p.name for p in PAGES if f"(results/{p.name})" not in index] == []


def test_every_program_is_in_its_guide():
    """Oracle: the files of launch/ with a main."""
    programs = [p.name for p in (ROOT / "launch").glob("*.py") if "__main__" in p.read_text()]
    guide = (ROOT / "launch" / "README.md").read_text()
    assert programs and all(f"[{name}]({name})" in guide for name in programs)


def test_the_citation_has_what_its_format_requires():
    """Oracle: the fields that the Citation File Format 1.2.0 requires, by hand, and the project's license."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (
        cited["cff-version"] == "1.2.0"
        and f'license = "{cited["license"]}"' in (ROOT / "pyproject.toml").read_text()
    )
    assert all({"title", "type", "authors"} <= each.keys() for each in cited["references"])
