"""The tables of the guides, from the results of experiments and benchmarks."""

import json
import re

import pytest

from tests.benchmarks import accelerator, reading_list
from tests.benchmarks.result_tables import before_and_after, block, cell_text, summary, table
from tests.benchmarks.results import (
    BLOCK,
    FOLDER,
    GUIDES,
    ROOT,
    WITHOUT_FILE,
    as_text,
    main,
    read_results,
    revision,
    rewritten,
)


def test_the_guides_tables_are_those_of_their_files():
    """Oracle: the files, written out anew."""
    with pytest.raises(SystemExit) as ended:
        main(["--check"])
    assert ended.value.code == 0


def test_every_file_is_shown_once_and_says_what_gave_its_numbers():
    """Oracle: the guides' markers; a commit with its date in every row; a config that is there."""
    shown = [n for guide in GUIDES for _, n, _ in BLOCK.findall(guide.read_text())]
    results = read_results()
    assert sorted(shown) == sorted([*WITHOUT_FILE, *results])
    for name, result in results.items():
        assert {"command", "machine", "columns", "rows", "caveats"} <= result.keys(), name
        assert all(
            re.match(r"[0-9a-f]{7} \(20\d\d-\d\d-\d\d\)$", r["version"]) for r in result["rows"]
        )
        assert as_text(result) == (FOLDER / f"{name}.json").read_text()
        if "config" in result:
            assert (ROOT / result["config"].partition(":")[0]).is_file()
            assert all("seed" in row for row in result["rows"])


def test_readmes_table_has_eight_experiments_and_can_be_read():
    """Oracle: by hand: the order; what a page of GitHub, 890 pixels wide, shows on a line or two."""
    _, _, *rows = summary(read_results()).split("\n")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    titles = [re.match(r"\[(.*)\]", cell)[1] for cell, *_ in cells]
    first, last = ["Pre-train V3", "Fine-tune", "Reward model", "GRPO"], ["Distil", "V3.2"]
    assert titles == [*first, "R1", *last, "Real weights"]
    shown = [len(text) for _, *texts in cells for text in texts]
    assert 0 < min(shown) and max(map(len, titles)) < 15 and max(shown) <= 45


def test_a_changed_number_changes_its_table_and_the_summary():
    """Oracle: by hand: two blocks of the text show it; the rest stays."""
    results = read_results()
    blocks = [
        f"<!-- results: {name} -->\n<!-- end -->"
        for name in ("summary", "reward_model_small", "moe")
    ]
    text = "\n".join(["before", *blocks, "after"])
    old = rewritten(text, results)
    assert old.startswith("before\n") and old.endswith("<!-- end -->\nafter")
    results["reward_model_small"]["rows"][0]["accuracy"]["after"] = [0.5, 0.4, 0.6]
    changed = [
        (a, b)
        for a, b in zip(old.split("\n"), rewritten(old, results).split("\n"), strict=True)
        if a != b
    ]
    assert len(changed) == 2 and all("→ 50.0%" in b for _, b in changed)


def test_a_block_of_no_file_is_named():
    """Oracle: the words a reader needs."""
    with pytest.raises(
        ValueError,
        match="results: judge_smal --> has no file; allowed: summary, reading, metrics, ",
    ):
        rewritten("<!-- results: judge_smal -->\n<!-- end -->", read_results())


@pytest.mark.parametrize(
    "cell, form, text",
    [
        (None, ".1%", ""),
        ("won", ".1%", "won"),
        (24, "", "24"),
        (0.5, ".1%", "50.0%"),
        ([0.5, 0.25, 0.75], ".0%", "50% (25% to 75%)"),
        ({"before": 0.5, "after": [1.0, 0.9, 1.0]}, ".0%", "50% → 100% (90% to 100%)"),
        ({"after": 0.5}, ".0%", "50%"),
        ({"low": 1.2, "high": 2.0}, "", "1.2 to 2.0"),
        ({"by_run": [0.1, -0.2, 0.3]}, "+.0%", "+10% -20% +30%"),
    ],
)
def test_a_cell_is_written_by_its_kind(cell, form, text):
    """Oracle: by hand."""
    assert cell_text(cell, form) == text


def test_a_table_has_the_columns_that_are_filled_and_those_facts_that_differ():
    """Oracle: by hand: no row has a y; the versions differ, and the minutes do not."""
    rows = [{"seed": s, "x": 0.5, "minutes": 3, "version": v} for s, v in (("0", "a"), ("1", "b"))]
    result = {"columns": {"seed": "", "x": ".1f", "y": ""}, "rows": rows}
    lines = ["| seed | x | version |", "|---|---|---|", "| 0 | 0.5 | a |", "| 1 | 0.5 | b |"]
    assert table(result).split("\n") == lines


def test_a_score_of_the_readme_is_one_rows_before_and_after():
    """Oracle: by hand: a column of before and after without its intervals; two columns, in the row's form."""
    columns = {"x": "{}.1f", "this": "{}", "that": "{}"}
    pair = {"before": [0.25, 0.2, 0.3], "after": [0.75, 0.7, 0.8]}
    rows = [{"x": {"before": 9, "after": 9}}, {"x": pair, "this": 0.5, "that": 0.4, "form": ".0%"}]
    readme = dict(cells=[[1, "that"], [1, "this"]], unit=" of all")
    result = {"columns": columns, "rows": rows, "readme": readme}
    assert before_and_after(result) == "40% → 50% of all"
    columns["x"], result["readme"] = ".1%", dict(cells=[[1, "x"]])
    assert before_and_after(result) == "25.0% → 75.0%"


def test_a_table_on_its_side_has_a_column_for_each_row():
    """Oracle: by hand."""
    rows = [{"arm": "off", "x": 1}, {"arm": "on", "x": 2}]
    result = {"columns": {"arm": "", "x": ".1f"}, "rows": rows, "on its side": True}
    assert table(result).split("\n") == ["| arm | off | on |", "|---|---|---|", "| x | 1.0 | 2.0 |"]


def test_an_interval_stays_within_what_can_be_and_a_cell_names_its_policy():
    """Oracle: by hand: a share from 0 to 1, a length from 0 on; a reward and a difference may be below 0."""
    wide = [0.5, -0.5, 1.5]
    columns = {"share": "{}.0%", "length": "{}.1f", "reward": "{}.1f"}
    row = dict.fromkeys(columns, wide) | {"policies": {"share": "R1"}}
    result = {"columns": columns, "rows": [row, row | {"form": "+", "policies": {}}]}
    cut = "| R1 50% (0% to 100%) | 0.5 (0.0 to 1.5) | 0.5 (-0.5 to 1.5) |"
    whole = "| +50% (-50% to +150%) | +0.5 (-0.5 to +1.5) | +0.5 (-0.5 to +1.5) |"
    assert table(result).split("\n")[2:] == [cut, whole]


def test_a_number_within_a_sentence_follows_its_file():
    """Oracle: by hand: without its interval, in its column's form; a file that is not there is named."""
    result = {"columns": {"x, y": ".1%"}, "rows": [{}, {"x, y": [0.5, 0.4, 0.6], "minutes": 3}]}
    text = "a <!-- cell: one 1 x, y -->9%<!-- end --> b <!-- cell: one 1 minutes --><!-- end --> c"
    wanted = (
        "a <!-- cell: one 1 x, y -->50.0%<!-- end --> b <!-- cell: one 1 minutes -->3<!-- end --> c"
    )
    assert rewritten(text, {"one": result}) == wanted
    with pytest.raises(
        ValueError, match="two --> has no file; allowed: summary, reading, metrics, one"
    ):
        rewritten(text.replace("one", "two"), {"one": result})


def test_lines_to_skip_are_not_counted(tmp_path):
    """Oracle: by hand."""
    path = tmp_path / "a.py"
    path.write_text(
        "x = 1\n\n\ndef f():\n    return 2\n\n\nclass A:\n    def g(self):\n        return 3\n"
    )
    assert reading_list.lines_to_read(path, ["f", "g"]) == 6
    with pytest.raises(KeyError):
        reading_list.lines_to_read(path, ["h"])


def test_what_a_rows_intervals_are_stands_above_the_table_while_the_row_does():
    """Oracle: by hand: said once for two rows, and no more when another row takes their place."""
    old = [{"seed": seed, "version": "a", "x": 0.5, "intervals": "Of old."} for seed in "01"]
    result = {"command": "go", "machine": "m", "columns": {"x": ""}, "caveats": [], "rows": old}
    command, said, lines, facts = block(result).split("\n\n")
    assert said == "Of old." and lines.startswith("| x |") and "seed" not in facts
    result["rows"] = [{"seed": "0", "version": "b", "x": 0.5}]
    assert "Of old." not in block(result)


def test_the_version_is_this_checkouts_commit():
    """Oracle: its form; git is asked where there is one."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    assert re.match(r"[0-9a-f]{7,}(-dirty)? \(20\d\d-\d\d-\d\d\)$", revision())


@pytest.mark.slow
def test_the_benchmark_of_accelerators_runs_on_a_cpu_in_small(tmp_path, monkeypatch):
    """Oracle: by hand: three kinds of work of a model, with the device's name; a second run takes their
    place.
    """
    monkeypatch.setattr(accelerator, "FOLDER", tmp_path)
    for _ in range(2):
        accelerator.main(["--rounds", "1", "--model", "v3_stack", "--write"])
    rows = json.loads((tmp_path / "accelerator.json").read_text())["rows"]
    assert [row["case"].rpartition(": ")[2] for row in rows] == ["decoding", "update", "GRPO step"]
    assert all(row["device"].endswith("x cpu") and row["tokens/s"] > 0 for row in rows)
