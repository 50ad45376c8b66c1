"""Which held-out response a reward model prefers, on its page: measurements written by hand."""

from deepseek_jax.reports.page import Page
from deepseek_jax.reports.preferences import with_preferences


def measurement(titles, rewards):
    """A measurement of one prompt for each entry of rewards. titles: of its responses."""
    samples = [
        {
            "prompt": f"prompt {i}",
            "responses": [dict(title=title, text=title, length=1) for title in titles],
            "rewards": numbers,
        }
        for i, numbers in enumerate(rewards)
    ]
    return {"samples": {"held_out": samples}}


def verdicts(measured):
    """[(prompt, right, facts)] of the page's pairs, and its sentence about them."""
    page = with_preferences(Page("title"), measured)
    return [(p["prompt"], p["right"], p["facts"]) for p in page.pairs], page.pairs_note


def test_pairs_say_which_answer_is_preferred_and_by_how_much_wrong_ones_first():
    """Oracle: by hand: differences of the rewards; a tie is wrong, as in the accuracy."""
    titles = ("chosen", "rejected")
    before = measurement(titles, [(0.0, 1.0), (2.0, 1.5), (0.0, 0.0)])
    after = measurement(titles, [(3.0, 1.0), (1.0, 1.25), (0.5, 0.5)])
    shown, note = verdicts({"before": before, "after": after})
    assert shown == [
        (
            "prompt 1",
            False,
            {
                "before": "prefers the chosen one by 0.50",
                "after": "prefers the rejected one by 0.25",
            },
        ),
        ("prompt 2", False, dict.fromkeys(("before", "after"), "prefers none of them")),
        (
            "prompt 0",
            True,
            {
                "before": "prefers the rejected one by 1.00",
                "after": "prefers the chosen one by 2.00",
            },
        ),
    ]
    assert note == "3 held-out prompts, those on which the reward model is most wrong first."


def test_labelled_responses_say_what_they_are_called():
    """Oracle: by hand: above 0 a response is called safe."""
    records = [measurement(("unsafe",), [(0.75,)]), measurement(("safe",), [(0.75,)])]
    shown = [verdicts({"after": record})[0][0] for record in records]
    fact = {"after": "safe, 0.75 from the border at 0"}
    assert shown == [("prompt 0", False, fact), ("prompt 0", True, fact)]
    assert verdicts({"after": measurement(("unsafe",), [(-0.25,)])})[0] == [
        ("prompt 0", True, {"after": "unsafe, 0.25 from the border at 0"})
    ]
