"""What README.md and the guides name is there, and what has to be named is."""

import dataclasses
import re
import shlex
import subprocess
import typing
from pathlib import Path

import yaml

from deepseek_jax.recipes.experiment import find_recipe
from deepseek_jax.settings import field_hints
from tests.test_import_order import ROOMS, imports_of, room_of

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "configs/README.md",
        "configs/own/README.md",
        "configs/own/tools.md",
        "deepseek_jax/README.md",
        "deepseek_jax/python.md",
        "launch/README.md",
        "launch/metrics.md",
        "launch/pods.md",
        "tests/README.md",
        "tests/benchmarks/README.md",
        "tests/reliability/README.md",
    )
]
PAGES = sorted((ROOT / "configs" / "results").glob("*.md"))
GUIDES += PAGES
EXPERIMENTS = [
    p for p in sorted((ROOT / "configs").glob("*.py")) if "def get_config" in p.read_text()
]
PROGRAMS = [p for p in (ROOT / "launch").glob("*.py") if "__main__" in p.read_text()]
# Code that configs/own/tools.md shows
SHOWN = [ROOT / "configs" / "own" / f"{name}.py" for name in ("tool", "environment")]
SHOWN += [ROOT / "tests" / "environments" / "files" / "textarena_guess.py"]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")
# A link to a section of another guide or of the same
SECTION = re.compile(r"\]\((?!https?:)([^)#]*)#([^)]+)\)")
# A path below a top folder, or a file beside them
TOPS = "configs|deepseek_jax|launch|tests"
NAMED = re.compile(
    rf"(?<![\w/.-])((?:{TOPS})/[\w/.-]*\w/?|[A-Z]+\.md|[a-z_]+\.(?:toml|txt))(?![\w*])"
)
# `config.adapter` and --config.adapter.rank=4; the fields of a block may stand after it, (`rank`, `alpha`)
FIELD = re.compile(r"(?<![\w./])config\.((?:\w+\.)*\w+)(?:` \(((?:`\w+`(?:, )?)+)\))?")
# Files, and what stands for any field
NO_FIELDS = ("json", "py", "FIELD")
RECIPES = "distill evaluate generate grpo judge pretrain r1 reward_model sft".split()


def said():
    """Yield (guide, what it has to say, as a regular expression, where that comes from)."""
    index = ROOT / "configs" / "README.md"
    for path in EXPERIMENTS:
        command = re.search(
            rf"python launch/\w+\.py --config=configs/{path.name}", path.read_text()
        )[0]
        lines = re.findall(rf"^\|.*`{path.stem}[`:].*", index.read_text(), re.M)
        pages = [index.parent / link for line in lines for link in LINK.findall(line)]
        # The page that its line links to. The published ones, which were not run, have none
        yield from ((page, rf"{re.escape(command)}(?!\w)", path) for page in pages)
        if not pages:
            yield index, rf"(?ms)^## The published numbers.*^\|[^\n]*`{path.stem}[`:]", path
    for path in PAGES:
        yield index, rf"\(results/{path.name}\)", path
    for path in PROGRAMS:
        yield ROOT / "launch" / "README.md", rf"\[{path.name}\]\({path.name}\)", path
    for path in SHOWN:
        yield (
            ROOT / "configs" / "own" / "tools.md",
            re.escape(f"```python\n{path.read_text()}```"),
            path,
        )


def test_the_guides_say_what_the_code_has():
    """Oracle: docstrings, the names of files, and the code of those that a guide shows."""
    table = list(said())
    assert min(map(len, (EXPERIMENTS, PAGES, PROGRAMS))) > 5
    assert [row for row in table if not re.search(row[1], row[0].read_text())] == []


def test_every_link_and_path_of_the_guides_is_there():
    """Oracle: the files; a link goes from the guide's own folder. NAME stands for any name."""
    missing = []
    for guide in GUIDES:
        text, folders = guide.read_text(), (ROOT, guide.parent)
        named = [name for name in NAMED.findall(text) if "NAME" not in name]
        missing += [(guide, x) for x in LINK.findall(text) if not (guide.parent / x).exists()]
        missing += [(guide, x) for x in named if not any((f / x).exists() for f in folders)]
    assert missing == []


def anchors_of(guide):
    """The anchors that GitHub makes of a guide's headings."""
    text = re.sub(r"```.*?```", "", guide.read_text(), flags=re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def test_every_section_that_a_guide_links_to_is_there():
    """Oracle: the headings of the guide at the other end, in the form that GitHub gives anchors."""
    missing, checked = [], 0
    for guide in GUIDES:
        for path, anchor in SECTION.findall(guide.read_text()):
            target = guide.parent / path if path else guide
            checked += 1
            missing += [] if anchor in anchors_of(target) else [(guide.name, path, anchor)]
    assert missing == [] and checked > 10


def test_every_field_of_a_config_that_the_guides_name_is_there():
    """Oracle: the fields of the recipes' settings. The log of changes may name one that is gone."""
    settings, missing = [find_recipe(name).SETTINGS for name in RECIPES], []
    for guide in set(GUIDES) - {ROOT / "CHANGELOG.md"}:
        named = []
        for path, listed in FIELD.findall(guide.read_text()):
            if path.split(".")[0] not in NO_FIELDS:
                named += [path, *(f"{path}.{field}" for field in re.findall(r"\w+", listed))]
        # FILE.py is one key
        paths = {path: path.removesuffix(".py").split(".") for path in named}
        missing += [
            (guide, n) for n, p in paths.items() if not any(has_field(s, p) for s in settings)
        ]
    assert missing == []


def has_field(hint, path):
    """Whether a type of settings has a field at this path: any in a dict, and mesh in every recipe."""
    if not path or path[0] == "mesh":
        return True
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = field_hints(hint)
        return path[0] in hints and has_field(hints[path[0]], path[1:])
    if dict in (hint, typing.get_origin(hint)):
        entries = typing.get_args(hint)[1:]
        return not entries or has_field(entries[0], path[1:])
    return any(has_field(part, path) for part in typing.get_args(hint))


def test_every_guide_is_known_here():
    """Oracle: git's list of Markdown files."""
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert {ROOT / name for name in listed} <= set(GUIDES)


def test_the_front_door_is_short():
    """Oracle: by hand: what a reader scrolls through in a minute."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_no_file_of_the_reading_list_needs_a_later_one():
    """Oracle: the rooms' order, which test_import_order holds; within a room, the import statements."""
    text = (ROOT / "README.md").read_text().partition("## Read it in a day")[2].partition("## ")[0]
    files = [ROOT / link for link in LINK.findall(text) if link.startswith("deepseek_jax/")]
    rooms = [room_of(path) for path in files]
    assert rooms[0] is None and len(files) > 10
    assert sorted(rooms[1:], key=ROOMS.index) == rooms[1:]
    for index, path in enumerate(files[1:], start=1):
        later = {
            ".".join(each.relative_to(ROOT).with_suffix("").parts) for each in files[index + 1 :]
        }
        assert {".".join(parts[:3]) for parts in imports_of(path)} & later == set(), path


def test_the_citation_has_what_its_format_requires():
    """Oracle: the fields that the Citation File Format 1.2.0 requires, by hand, and the project's license."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (
        cited["cff-version"] == "1.2.0"
        and f'license = "{cited["license"]}"' in (ROOT / "pyproject.toml").read_text()
    )
    assert all({"title", "type", "authors"} <= each.keys() for each in cited["references"])


def below(names):
    """The files of tests that these paths are, or that lie below them."""
    paths = [path for name in names for path in ROOT.glob(name)]
    return {f for path in paths for f in (path.rglob("test_*.py") if path.is_dir() else [path])}


def files_of(command):
    """The files of tests that a command of pytest runs."""
    words = shlex.split(command, comments=True)
    ignored = [word.removeprefix("--ignore=") for word in words if word.startswith("--ignore=")]
    return below(word for word in words if word.startswith("tests/")) - below(ignored)


def test_each_slow_test_is_in_just_one_of_the_slow_commands():
    """Oracle: the commands of CONTRIBUTING.md, and the files that have the mark."""
    guide = (ROOT / "CONTRIBUTING.md").read_text().replace("\\\n", "")
    runs = [files_of(command) for command in re.findall(r"^pytest -m slow .*", guide, re.M)]
    marked = [
        path
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"mark\.slow|others_slow\(", path.read_text())
    ]
    assert len(marked) > 100
    wrong = {str(path): n for path in marked if (n := sum(path in run for run in runs)) != 1}
    assert not wrong
