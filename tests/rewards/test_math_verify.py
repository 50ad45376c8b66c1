"""math-verify in real worker processes: verdicts, time limits, dead workers."""

import math
import multiprocessing
import os
import signal
import threading

import pytest

from deepseek_jax.rewards import Rewards
from deepseek_jax.rewards.math_verify import WAVE, MathVerifier
from tests.rewards.forms import forms

ENDLESS = r"\boxed{9^{9^{9^9}}}"


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(num_workers=1, time_limit_seconds=2.0) as verifier:
        verifier.score(
            ["1"], [r"$\sqrt{2}$"]
        )  # starts the worker, for the tests that time it or kill it
        yield verifier


@pytest.mark.parametrize(
    "gold, completion",
    [
        ("72", "<answer>72</answer>"),
        ("72", r"\boxed{72}"),
        ("72", "#### 72"),
        ("72", "That makes $72$ clips."),
        ("72", "That makes 72 clips."),
        ("72", r"\boxed{72\text{ clips}}"),
        ("#### 1,234", r"\boxed{1234}"),
        ("1,234", "it is 1,234"),
        (r"\frac{1}{2}", "<answer>0.5</answer>"),
        (r"$\frac{1}{2}$", r"\boxed{\dfrac{2}{4}}"),
        ("x^2+1", r"\boxed{1+x^2}"),
        (r"\frac{\sqrt{2}}{2}", r"\boxed{\frac{1}{\sqrt 2}}"),
        ("18", "<think> 17? no </think> So it makes $18$."),
        ("18", "<think> a </think> 17 <think> b </think> it is 18"),
        ("A", r"\boxed{A}"),
        (r"\text{Monday}", r"<answer>\text{Monday}</answer>"),
        ("5 million", r"\boxed{5 \text{ million}}"),
        ("5%", r"\boxed{5\%}"),
        ("5%", r"\boxed{0.05}"),
        ("8", "<answer>Tom has $8$ apples.</answer>"),
        ("8", "<answer>The answer is 8</answer>"),
        ("8", r"<answer>\(8\)</answer>"),
        ("x^2+1", r"<answer>it is \(1+x^2\) for all of them</answer>"),
    ],
)
def test_equal_answers_score_1(verifier, gold, completion):
    """Oracle: by hand; a grader that misses one of these gives 0 to everything, in silence."""
    assert verifier.score([gold], [completion]) == [1.0]


@pytest.mark.parametrize(
    "gold, completion",
    [
        ("72", "<answer>73</answer>"),
        ("72", r"<answer>73</answer>, not $72$"),
        ("72", "no idea"),
        ("72", ""),
        ("18", "<think> 18 </think> no idea"),
        ("18", "<think> it makes $18$ </think>"),
        ("18", r"<think> \boxed{18} </think> no idea"),
        ("18", "<think> 18 </think> 17"),
        (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}"),
        ("x^2+1", r"\boxed{x^2-1}"),
        ("A", r"\boxed{B}"),
        # Variables, where running text would say "5 a day"
        ("5", r"\boxed{5 a}"),
    ],
)
def test_other_answers_score_0(verifier, gold, completion):
    """Oracle: by hand."""
    assert verifier.score([gold], [completion]) == [0.0]


# Right answers to 5, or to the gold answer before the colon
FORMS = forms(r"""
    5 apples | $5 | 5.0 | 5cm | 5 \text{ cm}^2 | 5 km/h | 5^\circ | x = 5 | f(2) = 5 | AB=5 |
    \angle A = 5 | \text{Area} = 5 | 2 + 3 = 5 | x = \frac{10}{2} = 5 | \frac{10}{2} | 5个 |
    \sqrt{25} | \left(5\right) | \approx 5 | 1000: 1,000 | 1000: 1\,000 | 1000: 1{,}000 |
    1, -1: \pm 1 | 1,2: 1 \text{ and } 2 | 1,2: x=1 \text{ or } x=2 | x>5: (5,\infty) |
    \mathbb{R}: (-\infty,\infty) | y=2x+1: 1+2x | 2x+1: y = 1+2x | xy + 1: 1 + yx | -5: −5 |
    x^2: x² | 2\pi: 2π | \frac{5}{2}: 2\frac{1}{2} | 2\pi: 2\pi \text{ cm} |
    \frac{1}{2}: \frac24 \text{ cup}
""")


def test_forms_in_which_people_write_right_answers_score_1(verifier):
    """Oracle: by hand."""
    pairs = [form.split(": ") if ": " in form else ("5", form) for form in FORMS]
    scores = verifier.score([gold for gold, _ in pairs], [rf"\boxed{{{x}}}" for _, x in pairs])
    assert [form for form, score in zip(FORMS, scores, strict=True) if score != 1] == []


# math-verify reads 5 in most of these: it drops what it does not know
DROPPED = forms(r"""
    5 million | 5 minus two | 5 or six or seven | 5² | 4 = 6 = 5 | [5, 5] | 6 \boxed{5} |
    500\% | 5\% | 500 percent | 5, 5 | \{5, 5\} | 5½ | 5√2 | 5' | 5±0 | 5 \pm 0 | 5~6 | 5万 |
    5\mathrm{million} | \foo 5 | 5\foo{6} | 5 \mod 6 | 2x = 5 | -x = 5 | 5- | 5^ | 5_2 | 5:1 |
    5 \text{ is wrong} | 6 \to 5 | 6 \implies 5 | 6 \equiv 5 | 6 \\ 5 | \neg 5 | 5..6 |
    5\in\{5,6\} | not $5$ | $5$ million | 5 dozen | 5 thousand | 6 or $5$ | not x = 5 | 5M |
    5 M | 5**2 | 5|6 | [5] | 5打 | 5 mln | 5\left.0\right. | 5̸ | 5 hundredths |
    5 \text{ halves} | \text{minus } 5 | 5 plus two
""")


@pytest.mark.parametrize("form", [r"\boxed{%s}", "<answer>%s</answer>"])
def test_what_math_verify_would_drop_is_wrong(verifier, form):
    """Oracle: by hand: none of them is 5."""
    scores = verifier.score(["5"] * len(DROPPED), [form % text for text in DROPPED])
    # Within tags a box is the answer
    paid = [text for text, score in zip(DROPPED, scores, strict=True) if score]
    assert paid == ([] if "boxed" in form else ["6 \\boxed{5}"])


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{5} <answer>6</answer>",
        "<answer>5</answer> #### 6",
        r"\boxed{5}. No: the answer is 6",
    ]
    + [
        "The answer is 6. The answer is 5.",
        "It is 5 million.",
        "It is $5$ million",
        "It is $4$ or $5$.",
        "It is not $5$",
        "it is 5e3",
        "it is 2+3",
        "[4, 5]",
        "The answer is 6. So $5$",
        "minus $5$",
        "It is $5\\%$.",
        "so 5²",
    ],
)
def test_two_answers_and_a_changed_number_score_0(verifier, text):
    """Oracle: by hand."""
    assert verifier.score(["5"], [text]) == [0.0]


@pytest.mark.parametrize(
    "gold, text",
    [
        (r"\frac{\sqrt{3}}{2}", r"so $x = \frac{\sqrt{3}}{2}$."),
        ("x+1", r"For all 3 of them it is \(1 + x\)"),
        ("5", "She makes 5 toys in $x$ hours"),
        ("10", "It costs $5 for one, so $10 for two"),
        ("5", r"therefore \[ x = \frac{10}{2} \]"),
        ("0.5", "it is 1/2"),
    ],
)
def test_the_last_formula_or_number_is_the_answer_of_a_text_without_marks(verifier, gold, text):
    """Oracle: by hand."""
    assert verifier.score([gold], [text]) == [1.0]


def test_a_percent_counts_where_the_question_asks_for_one(verifier):
    """Oracle: by hand, through Rewards, which passes the question on."""
    texts = [r"\boxed{50\%}", "it is $50$", r"\boxed{50\text{ percent}}", r"\boxed{5000\%}"]
    with Rewards({"math_verify": 1.0}) as rewards:
        for question, want in (("What percent?", [1, 1, 1, 0]), ("How many?", [0, 1, 0, 0])):
            scores = rewards.score([{"question": question, "answer": "50"}] * 4, texts)
            assert scores.total.tolist() == want


def test_a_percentage_of_a_formula_counts_where_one_is_asked_for(verifier):
    """Oracle: by hand."""
    texts, questions = [r"\boxed{2\sqrt{2}\%}"] * 2, ["What percent?", "How many?"]
    assert verifier.score([r"\sqrt{8}"] * 2, texts, questions) == [1.0, 0.0]


MATRIX = r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"


@pytest.mark.parametrize(
    "gold, answer, want",
    [
        (MATRIX, MATRIX, 1),
        (MATRIX, r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", 1),
        (MATRIX, r"\begin{bmatrix} 1 & 2 \\ 3 & \frac{8}{2} \end{bmatrix}", 1),
        (MATRIX, r"\left(\begin{array}{cc}1&2\\3&4\end{array}\right)", 1),
        (MATRIX, r"A = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", 1),
        (MATRIX, r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}", 0),
        (MATRIX, r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}", 0),
        (r"x \in [1,2]", "[1,2]", 1),
        ("[1,2]", r"x \in [1, 2]", 1),
        (r"x \in [1,2]", "(1,2)", 0),
        ("101_2", "101", 0),
        ("101_2", "101_{2}", 1),
        ("0.1", "0.10000001", 0),
        ("0.1", r"\frac{1}{10}", 1),
        ("5", "x=6=5", 0),
        ("1500000", r"1.5 \text{ million}", 1),
    ],
)
def test_matrices_intervals_bases_and_decimals(verifier, gold, answer, want):
    """Oracle: by hand."""
    assert verifier.score([gold], [rf"\boxed{{{answer}}}"]) == [want]


def test_a_text_that_is_said_to_be_the_answer_is_read(verifier):
    """Oracle: by hand."""
    assert verifier.score(["B", "Paris"], ["The answer is B.", "The answer is Rome."]) == [1.0, 0.0]


def test_the_clock_of_a_busy_machine_costs_no_verdict():
    """Oracle: the verdict without a pause. The worker is stopped for longer than the limit of CPU time."""
    with MathVerifier(num_workers=1, time_limit_seconds=0.5) as verifier:
        verifier.score(["1"], [r"$\sqrt{2}$"])
        (worker,) = multiprocessing.active_children()[-1:]
        os.kill(worker.pid, signal.SIGSTOP)
        resume = threading.Timer(1.5, os.kill, (worker.pid, signal.SIGCONT))
        resume.start()
        assert verifier.score(["3"], [r"\boxed{\sqrt{9}}"]) == [1.0]
        resume.join()


def test_scores_keep_the_order_of_the_completions(verifier):
    """Oracle: i against i + i % 2, for golds whose equality only math-verify sees."""
    golds = [rf"\frac{{{i}}}{{7}}" for i in range(40)]
    completions = [rf"so \boxed{{\frac{{{2 * (i + i % 2)}}}{{14}}}}" for i in range(40)]
    assert verifier.score(golds, completions) == [1.0, 0.0] * 20


def test_hostile_text_is_not_run(verifier, tmp_path):
    """Oracle: the file that it would make."""
    touch = f"__import__('os').system('touch {tmp_path}/was_here')"
    assert verifier.score(["1"] * 2, [touch, rf"\boxed{{{touch}}}"]) != [1.0, 1.0]
    assert not list(tmp_path.iterdir())


def test_an_endless_answer_is_nan_and_counted_and_its_neighbours_are_scored(verifier):
    """Oracle: by hand; the limit is 2 s."""
    before = verifier.timeouts
    scores = verifier.score(["3"] * 3, [r"\boxed{\sqrt{9}}", ENDLESS, r"\boxed{\sqrt{8}}"])
    assert (scores[0], math.isnan(scores[1]), scores[2]) == (1.0, True, 0.0)
    assert verifier.timeouts == before + 1


@pytest.mark.slow
def test_a_batch_of_endless_answers_ends_at_its_limit_and_the_rest_is_nan_and_counted():
    """Oracle: by hand: of answers of half a second of CPU time each, in a batch of 2 s, one wave is begun and
    no other. The next batch is scored.
    """
    with MathVerifier(num_workers=1, time_limit_seconds=0.5, batch_limit_seconds=2.0) as verifier:
        verifier.score(["1"], [r"$\sqrt{2}$"])
        begun, run = [], verifier.run
        verifier.run = lambda jobs: begun.extend(jobs) or run(jobs)
        scores = verifier.score(["3"] * 22, ["3", r"\boxed{\sqrt{9}}", *[ENDLESS] * 20])
        assert len(begun) == WAVE
        assert scores[:2] == [1.0, 1.0] and all(map(math.isnan, scores[2:]))
        assert verifier.timeouts == 20
        assert verifier.score(["3"], [r"\boxed{\sqrt{9}}"]) == [1.0]


def test_a_worker_killed_between_batches_is_replaced(verifier):
    """Oracle: the same verdicts as from a worker that lives."""
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    before = verifier.timeouts
    assert verifier.score(["3"] * 2, [r"\boxed{\sqrt{9}}", r"\boxed{\sqrt{8}}"]) == [1.0, 0.0]
    assert verifier.timeouts == before


@pytest.mark.slow
def test_a_worker_killed_at_work_loses_no_other_verdict():
    """Oracle: by hand. The only worker dies at the endless answer, with two more in the queue."""
    others = set(multiprocessing.active_children())

    def kill():
        for process in set(multiprocessing.active_children()) - others:
            os.kill(process.pid, signal.SIGKILL)

    with MathVerifier(num_workers=1, time_limit_seconds=3.0) as verifier:
        verifier.score(["1"], [r"$\sqrt{2}$"])
        killer = threading.Timer(1.0, kill)
        killer.start()
        scores = verifier.score(["3"] * 3, [ENDLESS, r"\boxed{\sqrt{9}}", r"\boxed{\sqrt{8}}"])
        killer.join()
    assert (math.isnan(scores[0]), *scores[1:]) == (True, 1.0, 0.0)
    assert verifier.timeouts == 1


@pytest.mark.slow
def test_a_step_that_no_signal_can_stop_ends_the_worker_and_not_the_run():
    """Oracle: by hand. With the signal ignored, only the limit of 2 x 1.5 + 1 CPU seconds is left."""
    with MathVerifier(num_workers=1, time_limit_seconds=1.5) as verifier:
        verifier.score(["1"], [r"$\sqrt{2}$"])
        workers = set(multiprocessing.active_children())
        verifier.tell(0, signal.signal, signal.SIGPROF, signal.SIG_IGN)
        scores = verifier.score(["3"] * 2, [ENDLESS, r"\boxed{\sqrt{8}}"])
        assert not workers <= set(multiprocessing.active_children())
    assert (math.isnan(scores[0]), scores[1]) == (True, 0.0)


def test_lists_of_different_length_are_an_error(verifier):
    """Oracle: zip(strict=True)."""
    with pytest.raises(ValueError, match="shorter"):
        verifier.score(["1", "2"], ["1"])
