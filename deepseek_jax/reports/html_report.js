"use strict";
// A model's text enters the page as text nodes alone, never as HTML.
(() => {
  const PAGE = 10;  // groups at a time
  const byId = (id) => document.getElementById(id);

  function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children);  // strings become text nodes
    return made;
  }

  const round = (number, digits) => String(Number(number.toFixed(digits)));
  const words = (name) => name.replaceAll("_", " ");
  const percent = (share) => Math.round(100 * share) + "%";

  // ---- samples: groups of completions, filtered ----
  const groups = JSON.parse(byId("samples-data").textContent);
  const filters = byId("filters");
  let shown = PAGE;

  function wanted() {
    const form = new FormData(filters);
    const number = (name, otherwise) => form.get(name) === "" ? otherwise : Number(form.get(name));
    return {
      stage: form.get("stage"), kind: form.get("kind"), language: form.get("language"),
      answer: form.get("answer"), text: form.get("text").trim().toLowerCase(),
      low: number("low", -Infinity), high: number("high", Infinity),
    };
  }

  // [group, its completions that pass], for the groups in which any does
  function passing(want) {
    const has = (text) => text.toLowerCase().includes(want.text);
    return groups
      .filter((group) => ["stage", "kind", "language"].every((key) => !want[key] || group[key] === want[key]))
      .map((group) => [group, group.completions.filter((completion) =>
        (has(group.prompt) || has(completion.text))
        && (!want.answer || completion.right === (want.answer === "right"))
        && completion.total >= want.low && completion.total <= want.high)])
      .filter(([, completions]) => completions.length > 0);
  }

  // Merge equal completions and count them; the best rewarded come first
  function distinct(completions) {
    const found = new Map();
    for (const completion of completions) {
      const key = JSON.stringify([completion.text, completion.length, completion.total]);
      const entry = found.get(key) ?? { completion, times: 0 };
      entry.times += 1;
      found.set(key, entry);
    }
    return [...found.values()].sort((a, b) => b.completion.total - a.completion.total);
  }

  // A completion's text, with its tags and its reasoning in spans of their own
  function marked(text) {
    const pieces = element("p", "text");
    let thinking = false;
    for (const piece of text.split(/(<\/?(?:think|answer)>)/)) {
      const tag = /^<\/?(?:think|answer)>$/.test(piece);
      if (piece === "<think>") thinking = true;
      if (piece) pieces.append(element("span", tag ? "tag" : thinking ? "thought" : "", piece));
      if (piece === "</think>") thinking = false;
    }
    if (!text) pieces.append(element("span", "tag", "(nothing)"));
    return pieces;
  }

  function languages(shares) {
    const bar = element("span", "bar");
    bar.setAttribute("aria-hidden", "true");
    Object.values(shares).forEach((share) => {
      const part = element("span");
      part.style.width = percent(share);
      bar.append(part);
    });
    const said = Object.entries(shares).filter(([, share]) => share > 0)
      .map(([language, share]) => `${language} ${percent(share)}`);
    return element("span", "languages", bar, said.join(" · ") || "no words");
  }

  function card({ completion, times }) {
    const { advantage } = completion;
    const sign = advantage > 0 ? "+" : "";
    const chip = element("b", "advantage", `advantage ${sign}${advantage.toFixed(2)}`);
    const parts = Object.entries(completion.parts).map(([name, value]) => `${words(name)} ${round(value, 2)}`);
    const facts = element("div", "facts",
      chip,
      element("b", "", `reward ${round(completion.total, 2)}`),
      element("span", completion.right ? "right" : "wrong", completion.right ? "✓ right" : "✗ wrong"),
      element("b", "times", times > 1 ? `× ${times}` : ""),
      element("span", "", parts.join(" · ")),
      languages(completion.languages),
      element("span", "", `${completion.length} tokens`));
    const made = element("li", "completion " + (advantage > 0 ? "above" : advantage < 0 ? "below" : "even"),
      facts, marked(completion.text));
    made.style.setProperty("--strength", percent(Math.min(Math.abs(advantage) / 2, 1)));
    return made;
  }

  function section([group, completions]) {
    const compare = element("button", "", "this prompt in all stages");
    compare.type = "button";
    compare.addEventListener("click", () => {
      filters.reset();
      filters.elements.text.value = group.prompt;
      update();
    });
    const right = group.completions.filter((completion) => completion.right).length;
    const facts = [
      `${group.kind}, ${group.language}`, `a right answer: ${group.answer}`,
      `${right} of ${group.completions.length} right`,
    ];
    if (completions.length < group.completions.length) facts.push(`${completions.length} shown`);
    return element("article", "group",
      element("h3", "prompt", group.prompt),
      element("div", "facts",
        element("b", "", group.stage), ...facts.map((fact) => element("span", "", fact)), compare),
      element("ul", "", ...distinct(completions).map(card)));
  }

  function update() {
    const found = passing(wanted());
    const number = found.reduce((sum, [, completions]) => sum + completions.length, 0);
    byId("count").textContent = `${number} completions of ${found.length} groups`;
    byId("groups").replaceChildren(...found.slice(0, shown).map(section));
    byId("more").hidden = found.length <= shown;
  }

  if (filters) {
    const restart = () => { shown = PAGE; update(); };
    filters.addEventListener("input", restart);
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.addEventListener("reset", () => setTimeout(restart));  // once the fields are empty
    byId("more").addEventListener("click", () => { shown += PAGE; update(); });
    update();
  }

  // ---- curves: the value under the pointer ----
  for (const figure of document.querySelectorAll(".curve")) {
    const svg = figure.querySelector("svg"), output = figure.querySelector("output");
    const points = svg.dataset.points.split(" ").map((point) => point.split(":"));
    const [first, last, left, right] = ["first", "last", "left", "right"].map((key) => Number(svg.dataset[key]));
    const atRest = output.textContent;
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      const step = first + (last - first) * (x - left) / (right - left);
      const nearest = points.reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
      output.textContent = `step ${nearest[0]}: ${nearest[1]}`;
    });
    svg.addEventListener("pointerleave", () => { output.textContent = atRest; });
  }
})();
