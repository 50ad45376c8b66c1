"""R1's findings on runs whose scores are written by hand."""

import json

import numpy as np
import pytest

from deepseek_jax.recipes.r1.findings import CLAIMS, SCORED, Claim, findings, report_sweep

STAGES = ("base", "zero", "reasoning", "sft", "scenarios", "distilled")
SCORES = ("pass@1", "cons@k", "language", "length", "helpful")
PROMPTS = 40
ABOVE = Claim("R1-Zero is better", ("zero", "pass@1"), ("base", "pass@1"), 0.2)
IMPURE = Claim("R1-Zero mixes languages", 1.0, ("zero", "language"), 0.1)


def write_run(folder, stages=STAGES[:-1], of="zero", **zero):
    """A finished run, each score one half for every prompt but those given of one stage."""
    for stage in stages:
        values = {score: [0.5] * PROMPTS for score in SCORES}
        if stage == of:
            values |= {name.replace("_at_", "@"): list(given) for name, given in zero.items()}
        path = folder / "measured" / stage / "scores.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"k": 16, "values": values}))
    return folder


def around(mean):
    """Numbers of that mean, so spread that the interval of 80 of them is within 0.03 of it."""
    return mean + 0.1 * np.resize([1.0, -1.0], PROMPTS)


@pytest.mark.parametrize(
    "means, reproduced",
    [
        ((0.8, 0.9), True),
        ((0.71, 0.72), False),  # above by more than the margin, but not beyond the noise
        ((0.65, 0.95), False),  # all in all beyond the noise, but one run is below the margin
        ((0.3, 0.4), False),
    ],
)
def test_a_finding_is_reproduced_beyond_margin_and_noise_in_every_run(tmp_path, means, reproduced):
    """Oracle: by hand, of a margin of 0.2 over one half; the interval's width, of the standard error."""
    runs = [write_run(tmp_path / str(i), pass_at_1=around(m)) for i, m in enumerate(means)]
    (found,) = findings(runs, [ABOVE])
    np.testing.assert_allclose(found.means, [np.mean(means), 0.5])
    np.testing.assert_allclose(found.by_run, np.array(means) - 0.5)
    pooled = np.concatenate([around(m) for m in means]) - 0.5
    mean, low, high = found.comparison.difference
    np.testing.assert_allclose(mean, pooled.mean())
    np.testing.assert_allclose(high - low, 2 * 1.96 * pooled.std() / np.sqrt(80), rtol=0.05)
    assert found.reproduced == reproduced


def test_a_claim_may_be_about_a_whole(tmp_path):
    """Oracle: by hand: 1 less 0.7 is above 0.1; 1 less 0.95 is not."""
    poor = write_run(tmp_path / "poor", language=around(0.7))
    good = write_run(tmp_path / "good", language=around(0.95))
    assert findings([poor], [IMPURE])[0].reproduced
    (found,) = findings([good], [IMPURE])
    assert not found.reproduced and found.by_run == pytest.approx([0.05])


def test_findings_are_printed_and_kept(tmp_path, capsys):
    """Oracle: by hand: of runs that are alike in all scores, only what may cost something is reproduced."""
    runs = [write_run(tmp_path / str(i)) for i in range(2)]
    report_sweep(tmp_path, runs)
    printed = capsys.readouterr().out
    assert "findings of 2 runs" in printed and "…" not in printed and "cons@16" in printed
    assert (tmp_path / "findings.txt").read_text() == printed
    kept = json.loads((tmp_path / "findings.json").read_text())["findings"]
    assert [row["text"] for row in kept] == [claim.text for claim in CLAIMS]
    expected = [claim.margin < 0 or claim.ours == 1.0 for claim in CLAIMS]
    assert [row["reproduced"] for row in kept] == expected


def test_a_run_with_distillation_alone_has_the_same_claims_about_it(tmp_path):
    """Oracle: by hand: those about R1 are about the distilled one, and the others stay."""
    run = write_run(tmp_path, [stage for stage in STAGES if stage != "scenarios"])
    report_sweep(tmp_path, [run])
    kept = json.loads((tmp_path / "findings.json").read_text())["findings"]
    assert len(kept) == len(CLAIMS)
    for row, claim in zip(kept, CLAIMS, strict=True):
        sides = [
            [side[0].replace("scenarios", "distilled"), side[1]] if side != 1.0 else side
            for side in claim[1:3]
        ]
        assert [row["ours"], row["theirs"]] == sides and row["margin"] == claim.margin
        assert row["text"].startswith("R1, distilled: ") == (
            ["distilled"] in [s[:1] for s in sides if s != 1.0]
        )


@pytest.mark.parametrize(
    "means, verdict",
    [
        ((0.6, 0.7), "higher"),
        ((0.3, 0.4), "lower"),
        ((0.8, 0.45), "no difference shown"),  # beyond the noise, but one run is lower
    ],
)
def test_two_forms_of_the_last_stage_stand_beside_each_other(tmp_path, means, verdict):
    """Oracle: by hand, beside one half; the other scores are alike."""
    runs = [
        write_run(tmp_path / str(i), STAGES, "distilled", helpful=around(mean))
        for i, mean in enumerate(means)
    ]
    report_sweep(tmp_path, runs)
    content = json.loads((tmp_path / "findings.json").read_text())
    beside = [
        (f["ours"][1], cells[-1])
        for f, cells in zip(content["findings"], content["rows"], strict=True)
        if f["beside"]
    ]
    assert beside == [
        (score, verdict if score == "helpful" else "no difference shown")
        for score in SCORED
        if score in SCORES
    ]


def test_a_run_that_is_not_finished_is_named(tmp_path):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match="has not measured base, reasoning, scenarios, sft, zero"):
        findings([tmp_path])
