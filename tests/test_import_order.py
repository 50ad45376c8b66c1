"""A room imports only from rooms that stand above it in the reading order of deepseek_jax/__init__.py."""

import ast
import re
from pathlib import Path

import deepseek_jax

ROOT = Path(deepseek_jax.__file__).parent
ROOMS = re.findall(r"^(\w+)/ ", deepseek_jax.__doc__, re.M)
# Modules of the package itself, above all rooms
TOP = (
    "errors",
    "files",
    "hub",
    "installed",
    "lazy",
    "named_code",
    "notebooks",
    "programs",
    "progress",
    "settings",
    "trees",
)
# A name that is no module: the package's own
VERSION = "__version__"


# An import that is written as a text
HIDDEN = re.compile(rf"({ROOT.name}(?:\.\w+)+):(\w+)")


def lazy_names_of(package):
    """{name: the dotted name of what defines it} of a package that looks up its names when they are asked
    for.
    """
    path = ROOT.parent.joinpath(*package.split("."), "__init__.py")
    calls = ast.walk(ast.parse(path.read_text())) if path.is_file() else ()
    tables = [
        node.args[1]
        for node in calls
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "lazy_names"
    ]
    pairs = [pair for table in tables for pair in zip(table.keys, table.values, strict=True)]
    return {name.value: f"{package}.{module.value}.{name.value}" for name, module in pairs}


def imports_of(path):
    """The dotted names below deepseek_jax that a file imports, wherever in it: by statements, and by texts
    "package.module:name". Of a package's lazy name it is the module that defines it.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            hidden = HIDDEN.fullmatch(node.value)
            names = [".".join(hidden.groups())] if hidden else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            lazy = lazy_names_of(node.module) if node.module.startswith(ROOT.name) else {}
            imported = [a.name for a in node.names if a.name != VERSION]
            names = [lazy.get(name, f"{node.module}.{name}") for name in imported]
        yield from (name.split(".") for name in names if name.split(".")[0] == ROOT.name)


def room_of(path):
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else None


def wrong_ways():
    """{"file -> room"} of all imports against the order, and of those of what is no room."""
    found = set()
    for path in sorted(ROOT.rglob("*.py")):
        room = room_of(path)
        above = (*TOP, *ROOMS[: ROOMS.index(room) + 1]) if room else TOP
        for _, target, *_ in imports_of(path):
            if target not in above:
                found.add(f"{path.relative_to(ROOT).as_posix()} -> {target}")
    return found


def test_every_way_to_import_is_seen(tmp_path):
    """Oracle: by hand: a statement within a function, a lazy name and a text."""
    (tmp_path / "one.py").write_text(
        "from deepseek_jax.rewards import RULES\n"
        "def late():\n    import deepseek_jax.errors\n"
        "TABLE = {'a': 'deepseek_jax.data.chat:render'}\n"
    )
    found = {".".join(parts[1:]) for parts in imports_of(tmp_path / "one.py")}
    assert found == {"rewards.rules.RULES", "errors", "data.chat.render"}


def test_every_folder_is_a_room_of_the_reading_order():
    """Oracle: the folders that are there."""
    folders = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py")}
    assert folders == set(ROOMS) and len(ROOMS) == len(set(ROOMS))


def test_a_room_imports_only_rooms_above_it():
    """Oracle: the order as it is printed, against every import statement, those within functions too."""
    assert wrong_ways() == set()


def test_a_module_of_the_package_itself_imports_no_room():
    """Oracle: the modules of TOP stand above all rooms. The one page imports nothing of the house."""
    for path in ROOT.glob("*.py"):
        assert all(parts[1] in TOP for parts in imports_of(path)), path
    assert list(imports_of(ROOT / "minimal.py")) == []
