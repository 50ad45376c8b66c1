"""Mistakes in a notebook, in a kernel of its own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
IMPORT = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport deepseek_jax as ds"
DEFINES = "def polite(completion, example):\n    return 1.0"
WRITES = "%%writefile of_a_notebook.py\n" + DEFINES
SCORES = "ds.Rewards({polite: 1.0}).score([{'question': '1?'}], ['yes']).total"
CELLS = [
    (IMPORT, None),
    ('ds.config("grpo_smal")', "ValueError: name=grpo_smal is neither the path of a Python file"),
    ('ds.config("grpo_small", sed=1)', "ValueError: config.sed is not a field; did you mean seed?"),
    (
        'ds.train({"recipe": "grop"}, "run")',
        "ValueError: config.recipe='grop' is not a recipe; did",
    ),
    ("ds.train(3, 'run')", "ValueError: config=3 must be a ConfigDict, or a dict of its fields"),
    ('ds.Rewards({"corect": 1.0})', "ValueError: corect=1.0 is not of a reward; did you mean"),
    (
        'ds.load_policy("nowhere")',
        "ValueError: there is nothing at nowhere; give a Hugging Face folder",
    ),
    (DEFINES, None),
    (
        SCORES,
        "ValueError: 'polite' has no name in a file, by which worker processes could import it",
    ),
    (WRITES, None),
    (f"from of_a_notebook import polite\n{SCORES}", None),
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The notebook of CELLS after its kernel has run each."""
    cells = [nbformat.v4.new_code_cell(source) for source, _ in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    folder = tmp_path_factory.mktemp("notebook")
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, allow_errors=True, resources=resources).execute()


def test_a_mistake_is_its_one_message(ran):
    """Oracle: by hand: of each cell the lines of its error, or that it has none."""
    for (source, wanted), cell in zip(CELLS, ran.cells, strict=True):
        lines = [line for out in cell.outputs for line in out.get("traceback", ())]
        assert len(lines) == (wanted is not None), source
        assert wanted is None or (lines[0].startswith(wanted) and "\n" not in lines[0]), source


def test_a_function_that_a_cell_writes_is_a_reward(ran):
    """Oracle: by hand."""
    (output,) = ran.cells[-1].outputs
    assert output["data"]["text/plain"] == "array([1.], dtype=float32)"
