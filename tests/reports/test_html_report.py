"""The page of a run: its content, and, in a browser, its filters and its safety from a model's text."""

import json
import re
import shutil

import pytest

from deepseek_jax.reports.html_report import report_page

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


def page(**other):
    """Two stages and one to come."""
    scores = {
        "base": {"pass@1": (0.5, 0.25, 0.75)},
        "R1": {"pass@1": (1, 0.9, 1), "length": (23.04, 20, 26)},
    }
    curves = {
        "R1 (scenarios)": [{"step": s, "phase": "scenarios", "reward": s / 4} for s in range(5)]
    }
    told = dict(stages=STAGES, scores=scores, curves=curves, samples=SAMPLES)
    return report_page("A run", forms=FORMS, names={name: name for name in FORMS}, **told | other)


def words(markup):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", markup))


def test_every_stage_stands_with_its_hash_its_parents_and_its_inputs():
    """Oracle: the rows, by hand."""
    text = words(page())
    assert "base base complete aaaa settings a1" in text
    assert "R1 scenarios outdated bbbb base parent a2" in text
    assert "R2 later not begun" in text


def test_the_scores_stand_with_their_intervals():
    """Oracle: the rows, by hand; what a stage lacks is blank."""
    text = words(page())
    assert (
        "stage pass@1 length base 50.0% 25.0% to 75.0% R1 100.0% 90.0% to 100.0% 23.0 20.0 to 26.0"
        in text
    )


def test_findings_stand_as_they_are_told():
    """Oracle: the row, by hand; what a page without them has."""
    rows = [["<b> is better", "+5.0%\n+1.0% to +9.0%", "reproduced"]]
    text = page(findings=(("finding", "difference", "verdict"), rows))
    assert "finding difference verdict &lt;b> is better" in words(text).replace("&gt;", ">")
    assert "+5.0% +1.0% to +9.0% reproduced" in words(text) and 'href="#findings"' in text
    assert "findings" not in page().partition("<body>")[2]


def test_what_is_not_there_yet_is_said():
    """Oracle: by hand."""
    text = words(page(stages=STAGES[2:], scores={}, curves={}, samples=[]))
    assert (
        text.count("No stage is measured yet.") == 2 and "No stage has logged a step yet." in text
    )


def test_the_page_refers_to_nothing_outside_itself():
    """Oracle: no address in it but the links within, and a policy that forbids any other."""
    text = page(samples=SAMPLES[:2])
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')>]+)""", text)
    assert set(addresses) == {"data:,", "#lineage", "#scores", "#curves", "#samples", "#tip"}
    assert "http" not in text.replace("http-equiv", "") and "default-src 'none'" in text


def test_what_a_model_wrote_is_nowhere_markup():
    """Oracle: none of its tags is in the page, and a JSON parser reads the whole text back."""
    text = page()
    assert "<img" not in text and text.count("<script") == 2
    data = re.search('id="samples-data">(.*?)</script>', text)[1]
    assert json.loads(data) == SAMPLES


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
        " [...document.querySelectorAll('.group')].map(group => [group.querySelector('h3').textContent,"
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


SUM, RIGHT = "What is 4 + 5?", "<think>4加5</think><answer>9</answer>"
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
    choose(browser, stage="R1")
    assert len(shown(browser)[1]) == 10 and more.is_displayed()


def test_a_prompt_can_be_followed_through_the_stages(opened):
    """Oracle: by hand: the other filters are emptied."""
    choose(opened, stage="R1", kind="sum")
    opened.find_element("css selector", ".group button").click()
    assert shown(opened)[1] == [BASE, R1]


def test_a_group_shows_what_its_completions_earned(opened):
    """Oracle: by hand; the colours of what is above and below its group differ."""
    choose(opened, stage="base")
    best, rest = opened.find_elements("class name", "completion")
    for item, facts in (
        (best, "advantage +1.40 reward 3 ✓ right puzzle answer 1 en 75% · zh 25% 7 tokens"),
        (rest, "advantage -0.70 reward 0.5 ✗ wrong × 2 puzzle answer 0 en 75% · zh 25% 7 tokens"),
    ):
        assert item.find_element("class name", "facts").text.split() == facts.split()
    colours = {item.value_of_css_property("border-left-color") for item in (best, rest)}
    assert len(colours) == 2


def test_what_a_model_wrote_stays_text_in_a_browser(opened):
    """Oracle: the page has its two scripts, no picture, its own title, and shows the text whole."""
    choose(opened, kind="lookup")
    assert shown(opened)[1] == [OTHER] and opened.title == "A run"
    assert len(opened.find_elements("tag name", "script")) == 2
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
