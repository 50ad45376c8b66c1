"""The page of a run: its content, and, in a browser, its filters and its safety from a model's text."""

import html
import json
import re
import shutil

import pytest

from deepseek_jax.reports.html_report import PAGE_BYTES, PANELS, report_page
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
    order = ["results", "curves", "completions", "samples", "configuration", "lineage"]
    assert re.findall(r'<section id="(\w+)">', page()) == order
    last = page().partition('id="lineage"')[2]
    assert re.match(r"><h2>Lineage</h2>\n<details><summary>1 of 3 stages are complete", last)
    assert last.index("aaaa") < last.index("dddd") < last.index("</details>\n</section>")


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


def test_what_is_paid_is_the_first_curve_and_the_base_is_folded():
    """Oracle: by hand: rewards, own ones too, then losses; metrics about rewards with the rest."""
    names = ("loss", "reward_seconds", "reward_own.py:brief", "reward", "held_out_loss/a", "other")
    records = [{"step": 0, "phase": "p"} | dict.fromkeys(names, 1.0)]
    text = page(curves={"p": records}, base_curves={"base": [{"step": 0, "phase": "b", "loss": 2}]})
    titles = re.findall(r"<figcaption><b>(.*?)</b>", text)
    first = ["reward own.py:brief", "reward", "loss", "held out loss/a"]
    assert titles == [*first, "reward seconds", "other", "loss"]
    open_, folded = text.partition("<summary>2 more</summary>")[::2]
    assert all(f"<b>{title}</b>" in open_ for title in first)
    assert "<summary>before that: base</summary>" in folded


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


def test_a_page_has_a_bound():
    """Oracle: PAGE_BYTES, for texts, metrics and configs that are far too large; the first prompts stay."""
    long = [completion("\u4e2d" * 100_000, 0.0)] * 200
    samples = [group("R1", "sum", f"{i}", long) for i in range(50)]
    records = [
        {"step": s, "phase": "p"} | {f"m{i}": s / 7 for i in range(PANELS + 99)} for s in range(300)
    ]
    config = {"block": {f"field{i}": "x" * 10_000 for i in range(1000)}}
    text = page(samples=samples, pairs=PAIRS * 9, curves={"p": records}, config=config)
    assert len(text.encode()) < PAGE_BYTES
    shown = data_of(text, "samples-data")
    assert 0 < len(shown) < 50 and [g["prompt"] for g in shown] == [
        f"{i}" for i in range(len(shown))
    ]
    assert f"{len(shown)} of 50 prompts are here" in text and "99 more are in metrics.jsonl" in text
    assert len(data_of(text, "pairs-data")) == 5


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
    """What a reader sees of the samples: (the line of counts, [(prompt, its completions' texts)])."""
    return browser.execute_script(
        "return [document.getElementById('count').textContent,"
        " [...document.querySelectorAll('#groups .group')].map(group => ["
        " group.querySelector('h3').textContent,"
        " [...group.querySelectorAll('.text')].map(text => text.textContent)])]"
    )


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
BASE, R1, OTHER = [SUM, [RIGHT, "wrong one"]], [SUM, ["nine"]], [HOSTILE, [HOSTILE]]


def test_samples_are_filtered_in_a_browser(opened):
    """Oracle: by hand: groups and completions that pass; equal ones once, the best rewarded first."""
    assert shown(opened) == ["5 completions of 3 groups", [BASE, R1, OTHER]]
    for fields, wanted in (
        (dict(stage="base"), [BASE]),
        (dict(kind="lookup"), [OTHER]),
        (dict(language="zh"), [OTHER]),
        (dict(answer="right"), [[SUM, [RIGHT]], R1]),
        (dict(answer="wrong", stage="base"), [[SUM, ["wrong one"]]]),
        (dict(text="NINE"), [R1]),
        (dict(text="what is"), [BASE, R1]),
        (dict(low="1"), [[SUM, [RIGHT]], R1]),
        (dict(low="0", high="2.5"), [[SUM, ["wrong one"]], R1]),
        (dict(text="nowhere"), []),
    ):
        choose(opened, **fields)
        assert shown(opened)[1] == wanted, fields


def test_long_lists_are_shown_in_parts(browser, tmp_path):
    """Oracle: by hand: 10 groups, then all 12; another filter begins with 10 again."""
    (tmp_path / "many.html").write_text(page(samples=SAMPLES[1:2] * 12))
    browser.get((tmp_path / "many.html").as_uri())
    assert [shown(browser)[0], len(shown(browser)[1])] == ["12 completions of 12 groups", 10]
    more = browser.find_element("id", "more")
    more.click()
    assert len(shown(browser)[1]) == 12 and not more.is_displayed()
    choose(browser, text="nine")
    assert len(shown(browser)[1]) == 10 and more.is_displayed()


def test_a_prompt_can_be_followed_through_the_stages(opened):
    """Oracle: by hand: the other filters are emptied."""
    choose(opened, stage="R1", kind="sum")
    opened.find_element("css selector", "#groups .group button").click()
    assert shown(opened)[1] == [BASE, R1]


def test_a_group_shows_what_its_completions_earned(opened):
    """Oracle: by hand; the colours of what is above and below its group differ."""
    choose(opened, stage="base")
    best, rest = opened.find_elements("css selector", "#groups .completion")
    for item, facts in (
        (best, "advantage +1.40 reward 3 ✓ right puzzle answer 1 en 75% · zh 25% 7 tokens"),
        (rest, "advantage -0.70 reward 0.5 ✗ wrong × 2 puzzle answer 0 en 75% · zh 25% 7 tokens"),
    ):
        assert item.find_element("class name", "facts").text.split() == facts.split()
    colours = {item.value_of_css_property("border-left-color") for item in (best, rest)}
    assert len(colours) == 2


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
    """Oracle: by hand, side by side and in a group; what a turn thinks is marked where its prompt had opened
    the thought; whatever was called stays text, and no line is wider than its card.
    """
    talk = completion("x", 0.5) | {"messages": calling("hm</think>9")}
    samples, pairs = (
        [group("R1", "sum", SUM, [talk])],
        [PAIRS[0] | {"sides": [talk | {"title": "a"}]}],
    )
    (tmp_path / "talk.html").write_text(page(samples=samples, pairs=pairs))
    browser.get((tmp_path / "talk.html").as_uri())
    for place in ("pairs", "groups"):
        card = browser.find_element("css selector", f"#{place} .completion")
        names = [name.text for name in card.find_elements("tag name", "dt")]
        texts = [text.text for text in card.find_elements("tag name", "dd")]
        assert names == ["call", "tool", "model", "reply"]
        said = [f"run(code={json.dumps(HOSTILE)})", HOSTILE, "hm</think>9", "re: hm</think>9"]
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
    assert shown(browser)[1] == [["10 + 5?", ["x"]]]
    facts = browser.find_element("css selector", "#groups .completion .facts").text
    assert facts.split() == "own none 3 tokens truncated".split()
    assert browser.find_elements("name", "low") == [] and browser.get_log("browser") == []


def test_what_no_rule_reads_is_marked_and_can_be_looked_at_in_a_browser(browser, tmp_path):
    """Oracle: by hand: of two completions, the one that is unread."""
    unread = completion("5 squared", 0.0) | {"unread": True}
    sample = group("R1", "sum", SUM, [unread, completion("6", 0.0) | {"unread": False}])
    (tmp_path / "unread.html").write_text(page(samples=[sample]))
    browser.get((tmp_path / "unread.html").as_uri())
    assert shown(browser)[1] == [[SUM, ["5 squared", "6"]]]
    choose(browser, read="unread")
    assert shown(browser)[1] == [[SUM, ["5 squared"]]]
    assert "unread" in browser.find_element("css selector", "#groups .completion .facts").text


def test_what_has_no_reward_is_within_no_bounds_in_a_browser(browser, tmp_path):
    """Oracle: by hand: of two completions, the one that was scored; it stands first."""
    sample = group("R1", "sum", SUM, [completion("x", 0.0, total=None), completion("y", 0.0)])
    (tmp_path / "unscored.html").write_text(page(samples=[sample]))
    browser.get((tmp_path / "unscored.html").as_uri())
    assert shown(browser)[1] == [[SUM, ["y", "x"]]]
    choose(browser, low="-9")
    assert shown(browser)[1] == [[SUM, ["y"]]]


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
