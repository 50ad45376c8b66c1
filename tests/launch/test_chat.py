"""launch/chat.py as a user starts it: with --say, at a terminal, and beside what a run began from."""

import dataclasses
import json
import os
import pty
import re
import select
import shutil
import time
from pathlib import Path

import pytest

import deepseek_jax as ds
from launch.chat import ChatSettings, define_flags
from tests import warm
from tests.in_process import launched
from tests.recipes.small import LEARNS, longer_is_better, small_config
from tests.tiny import save_tiny_model

ROOT = Path(__file__).resolve().parents[2]
QUESTION, OTHER = "What is 1 + 2?", "What is 3 + 4 + 5?"
# A reward's file that nobody may import
EVIL = "open('mark', 'w')\nraise RuntimeError\n"


@pytest.fixture(scope="module")
def run(toys, tmp_path_factory):
    """The folder of a run that has trained for two steps."""
    made = toys.run(small_config(**LEARNS), longer_is_better)
    return shutil.copytree(made, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A checkpoint that answers QUESTION with fours, without an end."""
    folder = tmp_path_factory.mktemp("endless") / "params"
    save_tiny_model(folder, max_position_embeddings=100_000)
    return folder


def said(place, *texts, **flags):
    """The lines that a chat prints, greedily."""
    given = [f"--say={text}" for text in texts]
    given += [f"--{name}={value}" for name, value in flags.items()]
    end = launched("chat", str(place), *given, "--temperature=0", "--max_tokens=12")
    assert end.status == 0, end.err
    return end.out.split("\n")[:-1]


def answers(policy, *questions, length=12):
    options = ds.AnswerOptions(max_completion_length=length, temperature=0.0, slots=1)
    asked = policy.with_prompts([{"question": question} for question in questions])
    return list(policy.answer(asked, options).texts)


def test_it_says_what_the_policy_answers_and_imports_nothing_of_the_run(run, tmp_path, monkeypatch):
    """Oracle: Policy.answer; a file that the run's config names would leave a mark, and raise."""
    folder = shutil.copytree(run, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text(EVIL)
    config = json.loads((folder / "config.json").read_text())
    config |= {"rewards": {"evil.py:f": 1.0}, "accuracy": "evil.py:f", "code": {"evil.py": "0"}}
    (folder / "config.json").write_text(json.dumps(config))
    expected = answers(ds.load_policy(run), QUESTION, OTHER)
    assert said(folder, QUESTION, "/reset", "/help", OTHER) == expected
    assert not Path("mark").exists()


ENVIRONMENT = """
class Own:
    def reset(self, question):
        assert question
    def step(self, text: str) -> str | None:
        return None
    def get_reward(self) -> float:
        return 0.25
"""


def test_an_environment_that_a_flag_names_answers_under_the_limits_of_the_run(
    run, tmp_path, monkeypatch
):
    """Oracle: by hand, from Policy.answer: as many tokens as a turn of the run's config has, and the reward.
    Without the flag the text alone is answered, what the run's config names is printed, and its file would
    leave a mark.
    """
    folder = shutil.copytree(run, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text(EVIL)
    Path("own.py").write_text(ENVIRONMENT)
    config = json.loads((folder / "config.json").read_text())
    config |= {"environment": "evil.py:Env", "conversation": {"turn_length": 3}}
    (folder / "config.json").write_text(json.dumps(config))
    (answer,) = answers(ds.load_policy(run), QUESTION)
    flags = f"--say={QUESTION}", "--temperature=0", "--max_tokens=12"
    end = launched("chat", str(folder), *flags)
    assert end.out == f"{answer}\n" and "add --environment=evil.py:Env\n" in end.err
    end = launched("chat", str(folder), *flags, "--environment=own.py:Own")
    (answer,) = answers(ds.load_policy(run), QUESTION, length=3)
    ended = "ended by conversation.turn_length=3"
    assert end.out == f"model {answer}\n{ended}\nreward 0.25\n", end.err
    assert "each line in a new environment" in end.err
    assert not Path("mark").exists()


def test_a_mistake_in_a_tool_names_the_flag(run, tmp_path, monkeypatch):
    """Oracle: one message, status 2, and the flag."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("def f(a):\n    return a\n")
    for flag in ("--tools=none.py:f", "--tools=own.py:f", "--environment=own.py:f"):
        end = launched("chat", str(run), "--say=x", flag)
        assert end.status == 2 and f"error: {flag.partition('=')[0]}: " in end.err, end.err


def test_what_the_run_began_from_answers_beside_it(run):
    """Oracle: the greedy answers that the run kept before and after it trained."""
    samples = {
        when: json.loads((run / when / "scores.json").read_text())["greedy"]["samples"]
        for when in ("before", "after")
    }
    asked = [sample["prompt"] for sample in samples["before"]]
    lines = said(run, *asked, beside="before")
    expected = [
        [f"{'tiny' if when == 'after' else when}: {sample['completion']}" for sample in of]
        for when, of in samples.items()
    ]
    assert asked == [sample["prompt"] for sample in samples["after"]]
    assert lines == [line for pair in zip(*expected, strict=True) for line in pair]
    assert expected[0] != [line.replace("tiny", "before") for line in expected[1]]


def test_any_checkpoint_answers_beside_it(run, endless):
    """Oracle: the answers of both policies."""
    (ours,), (theirs,) = (answers(ds.load_policy(each), QUESTION) for each in (run, endless))
    assert said(run, QUESTION, beside=endless) == [
        f"tiny: {ours}",
        f"{endless.parent.name}: {theirs}",
    ]


def test_a_text_that_cannot_be_asked_is_one_message_and_the_others_are_asked(run):
    """Oracle: by hand: status 2, for a script; the notes are on the standard error."""
    says = [f"--say={text}" for text in ("héllo", "/rest", QUESTION, "/quit", OTHER)]
    end = launched("chat", str(run), *says, "--temperature=0", "--max_tokens=12")
    assert end.status == 2 and end.out.splitlines() == answers(ds.load_policy(run), QUESTION)
    # Before them it may say what it waits for
    form, refused, unknown = end.err.splitlines()[-3:]
    assert re.fullmatch(r"tiny: asked by the template .*, which holds one question: .*", form)
    assert refused.startswith("error: cannot encode") and "did you mean /reset?" in unknown
    assert "vocabulary of 19 words: ' + ' ' = '" in refused and "'What is '" in refused


def test_every_range_has_a_flag():
    """Oracle: the fields of the settings."""
    from absl import flags

    before = set(flags.FLAGS)
    define_flags()
    defined = set(flags.FLAGS) - before
    for name in defined:
        delattr(flags.FLAGS, name)
    fields = {field.name for field in dataclasses.fields(ChatSettings)}
    assert fields | {"run", "beside", "say", "mesh"} == defined


# Ctrl-C reaches the program that the terminal belongs to
CHAT = """
import os, runpy
os.close(os.open(os.ttyname(0), os.O_RDWR))
runpy.run_path("launch/chat.py", run_name="__main__")
"""


class Terminal:
    """A chat at a terminal of its own."""

    def __init__(self, *arguments):
        (self.ours, theirs), self.text = pty.openpty(), ""
        # One device
        own = dict(env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}, cwd=ROOT)
        streams = dict(stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        self.program = warm.Program("-c", CHAT, *arguments, **own, **streams)
        os.close(theirs)

    def type(self, text):
        os.write(self.ours, text.encode())

    def until(self, words):
        """Read what it writes, up to these words."""
        end = time.monotonic() + 120
        while words not in self.text:
            assert time.monotonic() < end, self.text
            if select.select([self.ours], [], [], 1)[0]:
                self.text += os.read(self.ours, 4096).decode(errors="replace")
        self.text = self.text.partition(words)[2]


@pytest.fixture
def terminal(endless):
    found = Terminal(endless, "--temperature=0", "--max_tokens=90000")
    yield found
    found.program.kill()
    found.program.wait()
    os.close(found.ours)


def test_ctrl_c_drops_a_line_and_stops_an_answer_each_time_and_ctrl_d_ends_the_program(terminal):
    """Oracle: by hand: a fresh prompt and a hint after each line that is dropped; fours as they are sampled,
    and a prompt after each stop; exit status 0.
    """
    terminal.until("> ")
    for typed in ("What is", "", "/rest"):
        # The prompt comes before the wait for a key, in which a signal is served
        time.sleep(1.5)
        terminal.type(f"{typed}\x03")
        terminal.until("(Ctrl-D or /quit ends)")
        terminal.until("> ")
    for _ in range(2):
        terminal.type(f"{QUESTION}\n")
        terminal.until("444444")
        terminal.type("\x03")
        terminal.until(" [stopped]")
        terminal.until("> ")
        time.sleep(1.5)
    terminal.type("\x04")
    assert terminal.program.wait(60) == 0
