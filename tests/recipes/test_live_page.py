"""The page of a run that goes on: when it is drawn, what it costs, and what becomes of its errors."""

import importlib
import itertools

import pytest

from deepseek_jax.recipes import driver, live_page
from deepseek_jax.recipes.live_page import EVERY_SECONDS, LivePage
from deepseek_jax.recipes.page import write_page
from deepseek_jax.recipes.results import Results
from deepseek_jax.settings import build
from tests.recipes.cases import CASES
from tests.recipes.pages import parts_of
from tests.recipes.small import run_recipe


class Clock:
    """A clock that only `write` moves, by the seconds that a page takes."""

    def __init__(self, patch, seconds):
        self.now, self.seconds, self.drawn = 0.0, seconds, []
        patch.setattr(live_page.time, "monotonic", lambda: self.now)

    def write(self):
        self.drawn.append(self.now)
        self.now += self.seconds

    def lines(self, page, every, until):
        """A line of metrics every so many seconds: -> the share of the time that pages took."""
        while self.now < until:
            self.now += every
            page.after_line()
        return self.seconds * len(self.drawn) / self.now


@pytest.mark.parametrize("seconds, pause", [(0.125, 60), (0.25, 60), (3.0, 600)])
def test_pages_are_a_minute_apart_and_take_less_than_a_hundredth_of_the_time(
    monkeypatch, seconds, pause
):
    """Oracle: by hand: with a line every two seconds a page comes with the first line after a minute, or
    after two hundred times the seconds of the last page.
    """
    clock = Clock(monkeypatch, seconds)
    share = clock.lines(LivePage(clock.write), 2, 4000)
    assert clock.drawn[0] == EVERY_SECONDS == 60
    gaps = [b - a - seconds for a, b in itertools.pairwise(clock.drawn)]
    assert len(gaps) >= 6 and all(pause <= gap <= pause + 2 for gap in gaps)
    assert share < 0.01


def test_an_early_end_draws_only_what_the_page_lacks(monkeypatch):
    """Oracle: by hand: a run without a line has no page, and lines since the last page draw one."""
    clock = Clock(monkeypatch, 1)
    page = LivePage(clock.write)
    page.at_end()
    assert not clock.drawn
    page.after_line()
    assert not clock.drawn
    page.at_end()
    page.at_end()
    assert clock.drawn == [0]


def test_an_error_is_printed_once_and_another_error_too(capsys):
    """Oracle: by hand: two kinds of errors in four drawings; each names itself and its line."""
    errors = iter([KeyError("score"), KeyError("score"), OSError("disk full"), KeyError("score")])

    def write():
        raise next(errors)

    page = LivePage(write)
    for _ in range(4):
        page.draw()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all("report.html was not drawn" in line for line in said)
    assert "KeyError: 'score'" in said[0] and "OSError: disk full" in said[1]
    assert "test_live_page.py, line" in said[0]


class Killed(BaseException):
    """What no recipe catches."""


def ended_early(name, workdir, end, stop):
    """Run a case of tests.recipes.cases until the stop-th time that it asks whether to stop.

    end: SystemExit for a run that is asked to stop, Killed for one that is killed.
    Returns (its page, the page of its files, the words of its curves).
    """
    case, calls = CASES[name], itertools.count(1)
    recipe = importlib.import_module(f"deepseek_jax.recipes.{case.recipe}.run")
    config = case.config(workdir.parent)

    def should_stop():
        is_due = next(calls) >= stop
        if is_due and end is Killed:
            raise Killed
        return is_due

    with pytest.MonkeyPatch.context() as patch:
        case.replace(patch)
        with pytest.raises(end):
            run_recipe(recipe, config, workdir, should_stop)
    drawn = (workdir / "report.html").read_bytes()
    settings = build(recipe.SETTINGS, config, "config")
    results = Results(settings, recipe.stages(settings), workdir)
    write_page(results, recipe.page(results))
    return drawn, (workdir / "report.html").read_bytes(), parts_of(workdir)["curves"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, stop, phases",
    [
        ("sft", 3, "pretrain sft"),
        ("grpo", 3, "pretrain grpo"),
        ("pretrain in stages", 5, "stage_1 stage_2_long"),
        ("reward_model", 3, "pretrain reward_model"),
        ("judge", 3, "pretrain judge"),
        ("generate", 1, "base"),
        ("distill", 1, "qwen"),
        ("r1", 3, "base zero"),
    ],
)
def test_a_run_that_is_stopped_in_the_middle_has_a_page_of_so_far(
    tmp_path, capsys, name, stop, phases
):
    """Oracle: the page drawn from the files that the run left, byte for byte; by hand, the phases that it has
    begun. It lasts less than a minute.
    """
    drawn, wanted, curves = ended_early(name, tmp_path / "run", SystemExit, stop)
    assert drawn == wanted and "was not drawn" not in capsys.readouterr().out
    assert all(phase in curves for phase in phases.split())


@pytest.mark.slow
@pytest.mark.parametrize("name, phase", [("grpo", "grpo"), ("pretrain", "stage_1")])
def test_a_run_that_is_killed_has_a_page_of_its_last_line(tmp_path, monkeypatch, name, phase):
    """Oracle: as above; here a page is due after every line."""
    monkeypatch.setattr(live_page, "EVERY_SECONDS", 0)
    monkeypatch.setattr(live_page, "PAUSE", 0)
    drawn, wanted, curves = ended_early(name, tmp_path / "run", Killed, 4 if name == "grpo" else 2)
    assert drawn == wanted and phase in curves


def test_a_page_that_cannot_be_drawn_does_not_end_a_run(tmp_path, capsys, monkeypatch):
    """Oracle: by hand: all stages are complete, and the error was printed once in a page of each line."""
    monkeypatch.setattr(live_page, "EVERY_SECONDS", 0)
    monkeypatch.setattr(live_page, "PAUSE", 0)

    def failing(*_):
        raise OSError("no space left")

    monkeypatch.setattr(driver, "write_page", failing)
    case = CASES["sft"]
    recipe = importlib.import_module("deepseek_jax.recipes.sft.run")
    run_recipe(recipe, case.config(tmp_path), tmp_path / "run")
    assert capsys.readouterr().out.count("no space left") == 1
    assert not (tmp_path / "run/report.html").exists()
    assert (tmp_path / "run/after/scores.json").exists()
