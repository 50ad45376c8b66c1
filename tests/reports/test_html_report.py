"""The page of a run: its content, and, in a browser, its table and its safety from a model's text."""

import html
import json
import re
import shutil

import pytest

from deepseek_jax.reports.html_curves import PANELS
from deepseek_jax.reports.html_report import PAGE_BYTES, report_page
from deepseek_jax.reports.page import Page

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
FORMS = {"pass@1": ".1%", "length": ".1f"}


def completion(text, advantage, *, right=False, total=0.5, length=7):
    return dict(text=text, total=total, parts={"puzzle_answer": float(right)}, advantage=advantage,
                right=right, languages={"en": 0.75, "zh": 0.25}, length=length)  # fmt: skip


def group(stage, kind, prompt, completions, language="en"):
    return dict(
        stage=stage,
        kind=kind,
        language=language,
        prompt=prompt,
        answer="9",
        completions=completions,
    )


SUM = "What is 4 + 5?"
SAMPLES = [
    group("base", "sum", "What is 4 + 5?", [completion("wrong one", -0.7), completion("wrong one", -0.7),
          completion("<think>4加5</think><answer>9</answer>", 1.4, right=True, total=3.0)]),
    group("R1", "sum", "What is 4 + 5?", [completion("nine", 0.0, right=True, total=2.0)]),
    group("R1", "lookup", HOSTILE, [completion(HOSTILE, 0.5, total=-1.0)], language="zh"),
]  # fmt: skip
STAGES = [
    dict(name="base", title="base", hash="aaaa", state="complete", inputs={"settings": ("a1", None)}),
    dict(name="scenarios", title="R1", hash="bbbb", state="outdated", inputs={"parent": ("a2", "base")}),
    dict(name="later", title="R2", hash=None, state="not begun", inputs={}),
]  # fmt: skip


PAIRS = [
    dict(prompt=SUM, facts={"answer": "9"}, sides=[
        completion("eight", 0.0, total=None) | {"title": "before", "advantage": None},
        completion("nine", 0.0, right=True, total=2.0) | {"title": HOSTILE, "advantage": None}]),
]  # fmt: skip
# Groups of three steps, as run_page chooses them
STEPS = [
    dict(stage="training", phase="grpo", step=step, place=place, remark=f"remark {step}", answer="9",
         prompt=SUM, completions=completions)
    for step, place, completions in (
        (0, "first step", [completion("eight", -0.7), completion("eight", -0.7),
                           completion(HOSTILE, 1.4, total=1.0)]),
        (4, "middle step", [completion("nine", 0.0), completion("nine", 0.0)]),
        (9, "last step", [completion("9", 0.0)]),
    )
]  # fmt: skip
SCORES = {
    "base": {"pass@1": (0.5, 0.25, 0.75)},
    "R1": {"pass@1": (1, 0.9, 1), "length": (23.04, 20, 26)},
    "R2": {"pass@1": (0.75, None, None)},
}
CONFIG = {"recipe": "r1", "base": {"steps": 5, "optimizer": {"rate": 0.25}}, "empty": {}}


def content(**other):
    """A Page of two stages, and one to come."""
    curves = {
        "R1 (scenarios)": [{"step": s, "phase": "scenarios", "reward": s / 4} for s in range(5)]
    }
    parts = dict(stages=STAGES, scores=SCORES, compared=[("base", "R1")], curves=curves)
    parts |= dict(samples=SAMPLES, pairs=PAIRS, config=CONFIG, digests={"code": {"own.py": "dddd"}})
    return Page("A run", **parts | dict(forms=FORMS) | other)


def page(**other):
    return report_page(content(**other))


def data_of(text, name):
    """What a data element of the page holds, by a JSON parser."""
    return json.loads(re.search(f'id="{name}">(.*?)</script>', text)[1])


def words(markup):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", markup))


def test_every_stage_stands_with_its_hash_its_parents_and_its_inputs():
    """Oracle: the rows, by hand."""
    text = words(page())
    assert "base base complete aaaa settings a1" in text
    assert "R1 scenarios outdated bbbb base parent a2" in text
    assert "R2 later not begun" in text


def test_a_record_of_a_stage_is_shown_as_text():
    """Oracle: state, hashes and the names of inputs that are markup stand escaped, in the table and in the
    graph: a stage.json may come from anybody.
    """
    stage = dict(name="base", title="base", hash=HOSTILE, state=HOSTILE)
    text = page(stages=[stage | dict(inputs={HOSTILE: (HOSTILE, None)})])
    assert text.count("<script") == page().count("<script")
    lineage = text.partition('id="lineage"')[2]
    assert "<img" not in lineage and lineage.count(html.escape(HOSTILE)) == 5


def test_the_parts_stand_in_a_readers_order_and_the_hashes_are_folded_at_the_end():
    """Oracle: the order that a reader asks in, by hand; the last part is in a closed <details>."""
    order = ["results", "rewarded", "curves", "completions", "samples", "configuration", "lineage"]
    text = page(samples=[*STEPS, *SAMPLES])
    assert re.findall(r'<section id="(\w+)">', text) == order
    assert "rewarded" not in re.findall(r'<section id="(\w+)">', page())
    last = page().partition('id="lineage"')[2]
    assert re.match(r"><h2>Lineage</h2>\n<details><summary>1 of 3 stages are complete", last)
    assert last.index("aaaa") < last.index("dddd") < last.index("</details>\n</section>")


def test_what_was_run_stands_under_the_title_before_the_results():
    """Oracle: by hand: the facts in their order, then the command, all as text; a page without facts."""
    text = page(facts={"model": "deepseek_v3", "data": "<img>"}, command=f"train {HOSTILE}")
    begin = text.partition("<main>")[2].partition('<section id="results">')[0]
    said = f"model deepseek_v3 data <img> train {HOSTILE} copy"
    assert html.unescape(words(begin)).strip() == said
    assert "<img" not in begin and '<div id="facts">' not in page()


def test_a_greedy_score_stands_in_the_card_of_the_sampled_one():
    """Oracle: by hand: sampled and greedy, before and after; the cards have the next score too."""
    names = ("accuracy", "reward", "greedy_accuracy", "greedy_reward", "greedy_only")
    scores = {
        when: {name: (mean + i / 10, 0.0, 1.0) for i, name in enumerate(names)}
        for when, mean in (("before", 0.1), ("after", 0.5))
    }
    text = page(scores=scores, compared=[("before", "after")])
    cards = words(text.partition('<div class="cards">')[2].partition("<details>")[0]).strip()
    assert cards.startswith(
        "accuracy 10.0% → 50.0% sampled 30.0% → 70.0% greedy before 0.0% to 100.0%"
    )
    assert "reward 0.20 → 0.60 sampled 0.40 → 0.80 greedy" in cards and "greedy only" in cards
    assert text.count('<div class="score">') == 3


def test_the_headline_has_first_and_last_with_their_intervals():
    """Oracle: by hand: a score that the first stage lacks has one number; two pairs share the cards."""
    cards = words(page().partition('<div class="cards">')[2]).strip()
    said = (
        "pass@1 50.0% → 100.0% base 25.0% to 75.0% R1 90.0% to 100.0% length 23.0 R1 20.0 to 26.0"
    )
    assert cards.startswith(said)
    two = page(compared=[("base", "R1"), (None, "R2")])
    assert two.count('<div class="score">') == 3 and "75.0% R2" in words(two)


def test_the_scores_stand_with_their_intervals():
    """Oracle: the rows, by hand; what a stage lacks is blank, and so is an interval that is not known."""
    rows = "base 50.0% 25.0% to 75.0% R1 100.0% 90.0% to 100.0% 23.0 20.0 to 26.0 R2 75.0%"
    assert f"pass@1 length {rows}" in words(page())


def test_the_scores_of_two_rows_are_rows_themselves():
    """Oracle: by hand: names as a reader says them; a share as a percentage, and others as numbers."""
    names = (
        "accuracy",
        "own.py:brief",
        "greedy_own.py:brief",
        "completion_length",
        "held_out_loss",
    )
    scores = {
        when: dict.fromkeys(names, [number, 0.0, 1.0])
        for when, number in (("before", 0.25), ("after", float("nan")))
    }
    text = words(page(scores=scores, compared=[("before", "after")]))
    for row in (
        "accuracy 25.0% 0.0% to 100.0% nan% 0.0% to 100.0%",
        "greedy brief 25.0%",
        "completion length 0.2 0.0 to 1.0",
        "held out loss 0.250 0.000 to 1.000",
    ):
        assert row in text.partition("all 5 scores")[2], row


def test_findings_stand_as_they_are_told():
    """Oracle: the row, by hand; what a page without them has."""
    rows = [["<b> is better", "+5.0%\n+1.0% to +9.0%", "reproduced"]]
    text = page(findings=(("finding", "difference", "verdict"), rows))
    assert "finding difference verdict &lt;b> is better" in words(text).replace("&gt;", ">")
    assert "+5.0% +1.0% to +9.0% reproduced" in words(text)
    assert "Findings" not in page().partition("<body>")[2]


def test_the_config_stands_in_its_blocks():
    """Oracle: by hand: dotted names within a block, text without quotes, and an empty block."""
    text = words(page().partition('id="configuration"')[2])
    assert "recipe r1 base steps 5 optimizer.rate 0.25" in text
    hostile = page(config={"data": {"path": HOSTILE}})
    assert "<img" not in hostile and "&lt;img" in hostile


def test_what_is_not_there_yet_is_said():
    """Oracle: by hand; parts without content are left out."""
    text = report_page(Page("A run"))
    said = words(text.partition("<main>")[2].partition("</main>")[0]).strip()
    assert said == ("Results Nothing is measured yet. Curves No stage has logged a step yet.")
    assert "0 of 1 stages are complete" in page(stages=STAGES[2:])


def test_the_groups_that_were_rewarded_stay_where_samples_are_too_many():
    """Oracle: by hand: of groups that do not fit, those with a place, which are the last ones."""
    long = [completion("x" * 8000, 0.0)] * 64
    samples = [group("R1", f"{i}", SUM, long) for i in range(20)]
    samples += [STEPS[0] | {"step": step, "completions": long} for step in range(3)]
    shown = data_of(page(samples=samples), "samples-data")
    assert [g["step"] for g in shown if "place" in g] == [0, 1, 2] and len(shown) < 20


def test_a_page_has_a_bound():
    """Oracle: PAGE_BYTES, for texts, metrics and configs that are far too large; the first prompts stay."""
    long = [completion("\u4e2d" * 100_000, 0.0)] * 200
    samples = [group("R1", "sum", f"{i}", long) for i in range(50)]
    records = [
        {"step": s, "phase": "p"} | {f"m{i}": s / 7 for i in range(PANELS + 99)} for s in range(300)
    ]
    config = {"block": {f"field{i}": "x" * 10_000 for i in range(1000)}}
    pairs = [PAIRS[0] | {"prompt": f"{i}", "sides": long[:4]} for i in range(9)]
    text = page(samples=samples, pairs=pairs, curves={"p": records}, config=config)
    assert len(text.encode()) < PAGE_BYTES
    shown = data_of(text, "samples-data")
    assert 0 < len(shown) < 50 and [g["prompt"] for g in shown] == [
        f"{i}" for i in range(len(shown))
    ]
    assert f"{len(shown)} of 50 prompts are here" in text and "99 more are in metrics.jsonl" in text
    shown = [pair["prompt"] for pair in data_of(text, "pairs-data")]
    assert 0 < len(shown) < 9 and shown == [f"{i}" for i in range(len(shown))]


def test_each_stage_keeps_its_first_prompts_where_they_are_too_many():
    """Oracle: by hand: the same prompts of both stages."""
    long = [completion("x" * 8000, 0.0)] * 64
    samples = [group(stage, "sum", f"{i}", long) for stage in ("base", "R1") for i in range(20)]
    shown = data_of(page(samples=samples), "samples-data")
    of_stage = [[g["prompt"] for g in shown if g["stage"] == s] for s in ("base", "R1")]
    assert of_stage[0] == of_stage[1] and 0 < len(of_stage[0]) < 20


def test_the_page_refers_to_nothing_outside_itself():
    """Oracle: no address in it but the links within, and a policy that forbids any other."""
    text = page(samples=SAMPLES[:2], pairs=[])
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')>]+)""", text)
    parts = {f"#{part}" for part in re.findall(r'<section id="(\w+)">', text)}
    assert set(addresses) == {"data:,", "#tip"} | parts
    assert "http" not in text.replace("http-equiv", "") and "default-src 'none'" in text


def test_what_a_model_wrote_is_nowhere_markup():
    """Oracle: none of its tags is in the page, and a JSON parser reads the whole text back."""
    text = page()
    assert "<img" not in text and text.count("<script") == 3
    assert data_of(text, "samples-data") == SAMPLES
    assert data_of(text, "pairs-data") == PAIRS


def test_numbers_that_are_not_finite_are_left_out():
    """Oracle: by hand: JSON of the page has null, and the curve a gap."""
    sample = group("R1", "sum", SUM, [completion("x", float("nan"), total=float("inf"))])
    shown = data_of(page(samples=[sample]), "samples-data")[0]["completions"][0]
    assert shown["advantage"] is None and shown["total"] is None
    records = [{"step": s, "phase": "p", "loss": v} for s, v in enumerate((1.0, None, 2.0))]
    assert page(curves={"p": records}).count("<circle") == 2


def calling(*texts):
    """The messages of a conversation: a call, what its tool answered, the model's texts and their replies."""
    call = {"function": {"name": "run", "arguments": {"code": HOSTILE}}}
    messages = [dict(role="assistant", content="", tool_calls=[call])]
    messages.append(dict(role="tool", name="run", content=HOSTILE))
    for text in texts:
        messages += [dict(role="assistant", content=text), dict(role="user", content=f"re: {text}")]
    return messages


def test_a_conversation_has_its_lines_in_place_of_messages_within_a_bound():
    """Oracle: by hand: who says what; of very many lines the first and the last, of long ones the ends."""
    talk = completion("x", 0.0) | {"messages": calling("nine")}
    many = completion("x", 0.0) | {"messages": calling(*map(str, range(500)))}
    long = completion("x", 0.0) | {"messages": calling("\u4e2d" * 10**6, "b" * 10**6)}
    text = page(pairs=[PAIRS[0] | {"sides": [talk, many, long]}] * 5)
    assert len(text.encode()) < PAGE_BYTES and "<img" not in text
    talk, many, long = (side["lines"] for side in data_of(text, "pairs-data")[0]["sides"])
    assert talk == [
        ["call", f"run(code={json.dumps(HOSTILE)})"],
        ["tool", HOSTILE],
        ["model", "nine"],
        ["reply", "re: nine"],
    ]
    assert len(many) == 201 and many[100] == ["", "802 lines left out"]
    assert many[:2] == talk[:2] and many[-1] == ["reply", "re: 499"]
    assert long[:2] == talk[:2] and len(json.dumps(long, ensure_ascii=False)) < 9000


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    flags += " disable-background-networking disable-component-update disable-dev-shm-usage"
    for flag in (*flags.split(), f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """The page in the browser, whose console must stay empty."""
    (tmp_path / "report.html").write_text(page())
    browser.get((tmp_path / "report.html").as_uri())
    yield browser
    assert browser.get_log("browser") == []


def shown(browser):
    """What a reader sees of the table: (the line of counts, [[prompt, beginning of the completion]])."""
    return browser.execute_script(
        "return [document.getElementById('count').textContent,"
        " [...document.querySelectorAll('#completions-table tbody tr')].map(row => ["
        " row.querySelector('td > .text').textContent, row.querySelector('summary').textContent])]"
    )


def unfold(browser, row=0):
    """Open the completion of a row of the table, and return its card."""
    line = browser.find_elements("css selector", "#completions-table tbody tr")[row]
    line.find_element("tag name", "summary").click()
    # The browser tells the page of it in a task of its own
    browser.execute_async_script("setTimeout(arguments[0])")
    return line.find_element("class name", "completion")


def choose(browser, **fields):
    """Fill in the filters, from empty ones, as a reader's input events do."""
    browser.execute_script(
        "const form = document.getElementById('filters');"
        "form.querySelector('[type=reset]').click();"
        "for (const [name, value] of Object.entries(arguments[0])) {"
        "  form.elements[name].value = value;"
        "  form.elements[name].dispatchEvent(new Event('input', {bubbles: true})); }",
        fields,
    )


RIGHT = "<think>4加5</think><answer>9</answer>"
WRONG, BEST = [SUM, "wrong one"], [SUM, RIGHT]
R1, OTHER = [SUM, "nine"], [HOSTILE, HOSTILE]


def test_completions_are_filtered_in_a_browser(opened):
    """Oracle: by hand: the completions that pass, in the order of the data."""
    assert shown(opened) == ["5 completions of 3 groups", [WRONG, WRONG, BEST, R1, OTHER]]
    for fields, wanted in (
        (dict(stage="base"), [WRONG, WRONG, BEST]),
        (dict(kind="lookup"), [OTHER]),
        (dict(language="zh"), [OTHER]),
        (dict(answer="right"), [BEST, R1]),
        (dict(answer="wrong", stage="base"), [WRONG, WRONG]),
        (dict(text="NINE"), [R1]),
        (dict(text="what is"), [WRONG, WRONG, BEST, R1]),
        (dict(low="1"), [BEST, R1]),
        (dict(low="0", high="2.5"), [WRONG, WRONG, R1]),
        (dict(text="nowhere"), []),
    ):
        choose(opened, **fields)
        assert shown(opened)[1] == wanted, fields


def test_the_table_is_sorted_by_any_column_in_a_browser(browser, tmp_path):
    """Oracle: Python's sorted, which is stable too; what is not known is last in either direction."""
    rewards = [0.5, None, 3.0, -1.0, 0.5, 20.0]
    completions = [
        completion(f"c{i}", None if reward is None else reward / 2, total=reward)
        for i, reward in enumerate(rewards)
    ]
    sample = group("R1", "sum", SUM, completions)
    (tmp_path / "sorted.html").write_text(page(samples=[sample]))
    browser.get((tmp_path / "sorted.html").as_uri())
    known = [c for c in completions if c["total"] is not None]
    for name, key in (("reward", "total"), ("advantage", "advantage"), ("completion", "text")):
        places = known if key != "text" else completions
        for is_descending in (False, True):
            browser.find_element("xpath", f"//thead//button[.='{name}']").click()
            head = browser.find_element("xpath", f"//th[button='{name}']")
            wanted = sorted(places, key=lambda c: c[key], reverse=is_descending)
            texts = [text for _, text in shown(browser)[1]]
            assert texts[: len(wanted)] == [c["text"] for c in wanted], (name, is_descending)
            direction = "descending" if is_descending else "ascending"
            assert head.get_attribute("aria-sort") == direction
        if key != "text":
            assert texts[-1] == "c1"
    assert browser.get_log("browser") == []


def test_the_rows_of_the_table_are_copied_as_json_lines_in_a_browser(opened):
    """Oracle: the samples that the page was written from, by a JSON parser: those that pass the filter."""
    opened.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    for fields in ({}, {"stage": "R1"}):
        choose(opened, **fields)
        opened.find_element("id", "copy").click()
        opened.execute_async_script("setTimeout(arguments[0], 100)")
        text = opened.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
        wanted = [
            {key: value for key, value in sample.items() if key != "completions"}
            | {key: value for key, value in one.items() if key != "total"}
            | {"reward": one["total"]}
            for sample in SAMPLES
            for one in sample["completions"]
            if fields.get("stage") in (None, sample["stage"])
        ]
        assert [json.loads(line) for line in text.splitlines()] == wanted and text.endswith("\n")
        button = opened.find_element("id", "copy")
        assert button.text == f"copied {len(wanted)} lines"
    opened.execute_async_script("setTimeout(arguments[0], 2100)")
    assert button.text == "copy as jsonl"


def test_long_lists_are_shown_in_parts(browser, tmp_path):
    """Oracle: by hand: 50 rows, then all 60; another filter begins with 50 again. Five pairs, then all."""
    pairs = [PAIRS[0] | {"prompt": f"{i} + 1?"} for i in range(7)]
    (tmp_path / "many.html").write_text(page(samples=SAMPLES[1:2] * 60, pairs=pairs))
    browser.get((tmp_path / "many.html").as_uri())
    assert [shown(browser)[0], len(shown(browser)[1])] == ["60 completions of 60 groups", 50]
    more = browser.find_element("id", "more")
    more.click()
    assert len(shown(browser)[1]) == 60 and not more.is_displayed()
    choose(browser, text="nine")
    assert len(shown(browser)[1]) == 50 and more.is_displayed()
    more = browser.find_element("id", "more-pairs")
    for number in (5, 7):
        prompts = [p.text for p in browser.find_elements("css selector", "#pairs .prompt")]
        assert prompts == [f"{i} + 1?" for i in range(number)]
        assert more.is_displayed() == (number == 5)
        if number == 5:
            # A click of the mouse may meet the header, which stays in view
            browser.execute_script("arguments[0].click()", more)


def test_a_prompt_can_be_followed_through_the_stages(opened):
    """Oracle: by hand: the other filters are emptied."""
    choose(opened, stage="R1", kind="sum")
    unfold(opened)
    opened.find_element("css selector", "#completions-table details button").click()
    assert shown(opened)[1] == [WRONG, WRONG, BEST, R1]


def test_a_completion_opens_with_all_that_is_known_of_it(opened):
    """Oracle: by hand; the colours of what is above and below its group differ."""
    choose(opened, stage="base")
    colours = set()
    for row, facts in (
        (2, "advantage +1.40 reward 3 ✓ right puzzle answer 1 en 75% · zh 25% 7 tokens"),
        (0, "advantage -0.70 reward 0.5 ✗ wrong puzzle answer 0 en 75% · zh 25% 7 tokens"),
    ):
        item = unfold(opened, row)
        assert item.find_element("class name", "facts").text.split() == facts.split()
        colours.add(item.value_of_css_property("border-left-color"))
    assert len(colours) == 2


def test_what_was_rewarded_stands_by_step_in_a_browser(browser, tmp_path):
    """Oracle: by hand: three steps next to each other; in a group the best rewarded first and equal ones
    once; a group without a signal says so; a model's text is text.
    """
    (tmp_path / "rewarded.html").write_text(page(samples=[*SAMPLES, *STEPS]))
    browser.set_window_size(1280, 1000)
    browser.get((tmp_path / "rewarded.html").as_uri())
    steps = browser.find_elements("css selector", "#rewards .step")
    heads = [step.find_element("tag name", "h4").text for step in steps]
    assert heads == ["first step: 0 remark 0", "middle step: 4 remark 4", "last step: 9 remark 9"]
    assert len({step.rect["y"] for step in steps}) == 1
    cards = steps[0].find_elements("css selector", ".completion .text")
    assert [card.text for card in cards] == [HOSTILE, "eight"]
    facts = [card.text for card in steps[0].find_elements("css selector", ".completion .facts")]
    assert facts[0].startswith("advantage +1.40") and "× 2" in facts[1]
    signals = ["equal rewards, no signal" in step.text for step in steps]
    assert signals == [False, True, True] and browser.get_log("browser") == []


def test_the_command_is_copied_in_a_browser(browser, tmp_path):
    """Oracle: the command, read back from the clipboard."""
    command = "python launch/train.py --config=grpo_small '--config.rewards={\"a\": 1}'"
    (tmp_path / "command.html").write_text(page(command=command))
    browser.get((tmp_path / "command.html").as_uri())
    browser.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    browser.find_element("css selector", "#facts button").click()
    browser.execute_async_script("setTimeout(arguments[0], 100)")
    text = browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert text == command and browser.get_log("browser") == []


def test_completions_stand_side_by_side_in_a_browser(opened):
    """Oracle: by hand: what is not known is not there; a title is text too."""
    (item,) = opened.find_elements("css selector", "#pairs .group")
    lines = [SUM, "answer: 9", "before", "✗ wrong", "eight", HOSTILE, "reward 2 ✓ right", "nine"]
    text = item.text.replace("\n", " ")
    for line in lines:
        assert line in text, line
    assert "advantage" not in text
    left, right = (side.rect for side in item.find_elements("class name", "side"))
    assert left["y"] == right["y"] and left["x"] < right["x"]


def test_the_lines_of_a_conversation_stand_apart_in_a_browser(browser, tmp_path):
    """Oracle: by hand, side by side and in the table; what a turn thinks is marked where its prompt had
    opened the thought; whatever was called stays text, and no line is wider than its card.
    """
    talk = completion("x", 0.5) | {"messages": calling("hm</think>9")}
    samples, pairs = (
        [group("R1", "sum", SUM, [talk])],
        [PAIRS[0] | {"sides": [talk | {"title": "a"}]}],
    )
    (tmp_path / "talk.html").write_text(page(samples=samples, pairs=pairs))
    browser.get((tmp_path / "talk.html").as_uri())
    said = [f"run(code={json.dumps(HOSTILE)})", HOSTILE, "hm</think>9", "re: hm</think>9"]
    assert shown(browser)[1] == [[SUM, " · ".join(said)]]
    for card in (browser.find_element("css selector", "#pairs .completion"), unfold(browser)):
        names = [name.text for name in card.find_elements("tag name", "dt")]
        texts = [text.text for text in card.find_elements("tag name", "dd")]
        assert names == ["call", "tool", "model", "reply"]
        assert texts == said
        thoughts = [t.text for t in card.find_elements("class name", "thought")]
        assert thoughts == ["hm"]
        for line in card.find_elements("tag name", "dd"):
            assert line.rect["x"] + line.rect["width"] <= card.rect["x"] + card.rect["width"] + 1
    assert browser.find_elements("tag name", "img") == [] and browser.get_log("browser") == []


def test_steps_of_training_are_filtered_and_show_what_is_known_in_a_browser(browser, tmp_path):
    """Oracle: by hand: three steps of one phase; without a reward, there are no bounds of it."""
    samples = [
        dict(stage="training", phase="grpo", step=step, prompt=f"{step} + 5?", answer=None,
             completions=[dict(text="x", total=None, parts={"own": None}, advantage=None, length=3,
                               truncated=True)])
        for step in (0, 10, 20)
    ]  # fmt: skip
    (tmp_path / "training.html").write_text(page(samples=samples))
    browser.get((tmp_path / "training.html").as_uri())
    names = [s.get_attribute("name") for s in browser.find_elements("css selector", "form select")]
    assert names == ["step"] and shown(browser)[0] == "3 completions of 3 groups"
    choose(browser, step="10")
    assert shown(browser)[1] == [["10 + 5?", "x"]]
    heads = [head.text for head in browser.find_elements("css selector", "#completions-table th")]
    assert heads == ["step", "prompt", "completion", "tokens"]
    cells = browser.find_elements("css selector", "#completions-table tbody td")
    assert [cell.text for cell in cells][::3] == ["10", "3 truncated"]
    facts = unfold(browser).find_element("class name", "facts").text
    assert facts.split() == "own none 3 tokens truncated".split()
    assert browser.find_elements("name", "low") == [] and browser.get_log("browser") == []


def test_what_no_rule_reads_is_marked_and_can_be_looked_at_in_a_browser(browser, tmp_path):
    """Oracle: by hand: of two completions, the one that is unread."""
    unread = completion("5 squared", 0.0) | {"unread": True}
    sample = group("R1", "sum", SUM, [unread, completion("6", 0.0) | {"unread": False}])
    (tmp_path / "unread.html").write_text(page(samples=[sample]))
    browser.get((tmp_path / "unread.html").as_uri())
    assert shown(browser)[1] == [[SUM, "5 squared"], [SUM, "6"]]
    choose(browser, read="unread")
    assert shown(browser)[1] == [[SUM, "5 squared"]]
    assert "7 unread" in browser.find_element("css selector", "#completions-table tbody").text
    assert "unread" in unfold(browser).find_element("class name", "facts").text


def test_what_has_no_reward_is_within_no_bounds_in_a_browser(browser, tmp_path):
    """Oracle: by hand: of two completions, the one that was scored."""
    sample = group("R1", "sum", SUM, [completion("x", 0.0, total=None), completion("y", 0.0)])
    (tmp_path / "unscored.html").write_text(page(samples=[sample]))
    browser.get((tmp_path / "unscored.html").as_uri())
    assert shown(browser)[1] == [[SUM, "x"], [SUM, "y"]]
    choose(browser, low="-9")
    assert shown(browser)[1] == [[SUM, "y"]]


def test_a_link_to_the_lineage_unfolds_it_in_a_browser(opened):
    """Oracle: by hand: its graph is seen after the click alone."""
    graph = opened.find_element("class name", "lineage")
    assert not graph.is_displayed()
    opened.find_element("link text", "Lineage").click()
    assert graph.is_displayed()


def test_what_a_model_wrote_stays_text_in_a_browser(opened):
    """Oracle: the page has its three scripts, no picture, its own title, and shows the text whole."""
    choose(opened, kind="lookup")
    assert shown(opened)[1] == [OTHER] and opened.title == "A run"
    assert len(opened.find_elements("tag name", "script")) == 3
    assert opened.find_elements("tag name", "img") == []


def test_the_page_runs_no_script_but_its_own(browser, tmp_path):
    """Oracle: a page that a second script was smuggled into keeps its title, and the console says why."""
    smuggled = page().replace("</main>", "<script>document.title = 'owned'</script></main>")
    (tmp_path / "smuggled.html").write_text(smuggled)
    browser.get((tmp_path / "smuggled.html").as_uri())
    assert browser.title == "A run"
    (entry,) = browser.get_log("browser")
    assert "Content Security Policy" in entry["message"]


def test_a_curve_tells_the_value_under_the_pointer(opened):
    """Oracle: by hand: five rewards, s / 4; the last one stands where nothing is pointed at."""
    from selenium.webdriver import ActionChains

    figure = opened.find_element("class name", "curve")
    read = figure.find_element("tag name", "output")
    assert read.text == "1"
    ActionChains(opened).move_to_element(figure.find_element("tag name", "svg")).perform()
    assert read.text == "step 2: 0.5"
    ActionChains(opened).move_to_element(opened.find_element("tag name", "h1")).perform()
    assert read.text == "1"
