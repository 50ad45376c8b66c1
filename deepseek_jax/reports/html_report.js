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
  const known = (value) => value !== null && value !== undefined && value !== "";
  const read = (id) => JSON.parse(byId(id).textContent);

  // ---- samples: groups of completions, filtered ----
  const groups = read("samples-data");
  const filters = byId("filters");
  let shown = PAGE;

  const CHOICES = filters
    ? [...filters.querySelectorAll("select")].map((select) => select.name).filter((name) => name !== "answer" && name !== "read") : [];

  function wanted() {
    const form = new FormData(filters);
    const number = (name, otherwise) => !form.get(name) ? otherwise : Number(form.get(name));
    return {
      choices: CHOICES.map((key) => [key, form.get(key)]).filter(([, value]) => value),
      answer: form.get("answer"), unread: form.get("read"), text: form.get("text").trim().toLowerCase(),
      low: number("low", -Infinity), high: number("high", Infinity),
    };
  }

  // [group, its completions that pass], for the groups in which any does
  function passing(want) {
    const has = (text) => text.toLowerCase().includes(want.text);
    const anyReward = want.low === -Infinity && want.high === Infinity;
    return groups
      .filter((group) => want.choices.every(([key, value]) => String(group[key]) === value))
      .map((group) => [group, group.completions.filter((completion) =>
        (has(group.prompt) || has(completion.text))
        && (!want.answer || completion.right === (want.answer === "right"))
        && (!want.unread || completion.unread)
        && (anyReward
          || known(completion.total) && completion.total >= want.low && completion.total <= want.high))])
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
    const total = ({ completion }) => completion.total ?? -Infinity;
    return [...found.values()].sort((a, b) => total(a) < total(b) ? 1 : total(a) > total(b) ? -1 : 0);
  }

  // A text with its tags and its reasoning in spans of their own; a turn may begin within its reasoning
  function marked(text, tag = "p", thinking = false) {
    const pieces = element(tag, "text");
    for (const piece of text.split(/(<\/?(?:think|answer)>)/)) {
      const isTag = /^<\/?(?:think|answer)>$/.test(piece);
      if (piece === "<think>") thinking = true;
      if (piece) pieces.append(element("span", isTag ? "tag" : thinking ? "thought" : "", piece));
      if (piece === "</think>") thinking = false;
    }
    if (!text) pieces.append(element("span", "tag", "(nothing)"));
    return pieces;
  }

  // A conversation: a line for each turn of the model, each call, what each tool answered, and each reply
  function conversation(lines) {
    return element("dl", "lines", ...lines.map(([who, text]) => {
      const opened = who === "model" && /^(?:(?!<think>)[^])*<\/think>/.test(text);
      return element("div", who, element("dt", "", who), marked(text, "dd", opened));
    }));
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

  function verdict(right) {
    return element("span", right ? "right" : "wrong", right ? "✓ right" : "✗ wrong");
  }

  // What is known of a completion, then its text
  function card(completion, times, tag) {
    const { advantage, total, parts, length } = completion, facts = element("div", "facts");
    const add = (wanted, fact) => { if (wanted) facts.append(fact()); };
    const value = (number) => known(number) ? round(number, 2) : "none";
    add(known(advantage), () => element("b", "advantage", `advantage ${advantage > 0 ? "+" : ""}${advantage.toFixed(2)}`));
    add(known(total) || known(advantage), () => element("b", "", `reward ${value(total)}`));
    add(known(completion.right), () => verdict(completion.right));
    add(times > 1, () => element("b", "times", `× ${times}`));
    add(parts && Object.keys(parts).length > 0, () => element("span", "",
      Object.entries(parts).map(([name, part]) => `${words(name)} ${value(part)}`).join(" · ")));
    add(completion.languages, () => languages(completion.languages));
    add(known(length), () => element("span", "", `${length} tokens`));
    add(completion.unread, () => element("span", "wrong", "unread"));
    add(completion.truncated, () => element("span", "wrong", "truncated"));
    const tone = advantage > 0 ? "above" : advantage < 0 ? "below" : "even";
    const made = element(tag, `completion ${tone}`, facts,
      completion.lines ? conversation(completion.lines) : marked(completion.text));
    made.style.setProperty("--strength", percent(Math.min(Math.abs(advantage ?? 0) / 2, 1)));
    return made;
  }

  function section([group, completions]) {
    const facts = ["kind", "task", "language", "phase"].map((key) => group[key]).filter(known);
    if (known(group.step)) facts.push(`step ${group.step}`);
    if (known(group.answer)) facts.push(`a right answer: ${group.answer}`);
    const judged = group.completions.filter((completion) => known(completion.right));
    const right = judged.filter((completion) => completion.right).length;
    if (judged.length > 1) facts.push(`${right} of ${judged.length} right`);
    if (completions.length < group.completions.length) facts.push(`${completions.length} shown`);
    const head = element("div", "facts", ...facts.map((fact) => element("span", "", fact)));
    if (known(group.stage)) head.prepend(element("b", "", group.stage));
    if (CHOICES.includes("stage")) {
      const compare = element("button", "", "this prompt in all stages");
      compare.type = "button";
      compare.addEventListener("click", () => {
        filters.reset();
        filters.elements.text.value = group.prompt;
        update();
      });
      head.append(compare);
    }
    const cards = distinct(completions).map(({ completion, times }) => card(completion, times, "li"));
    return element("article", "group", element("h3", "prompt", group.prompt), head, element("ul", "", ...cards));
  }

  // ---- completions of one prompt side by side ----
  function besides({ prompt, facts, sides }) {
    const said = Object.entries(facts ?? {}).filter(([, value]) => known(value))
      .map(([name, value]) => element("span", "", `${words(name)}: ${value}`));
    return element("article", "group", element("h3", "prompt", prompt), element("div", "facts", ...said),
      element("div", "sides", ...sides.map((side) =>
        element("div", "side", element("h4", "", side.title), card(side, 1, "div")))));
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

  byId("pairs")?.append(...read("pairs-data").map(besides));

  // ---- what is folded opens for a reader who comes by a link ----
  for (const link of document.querySelectorAll("nav a")) {
    link.addEventListener("click", () => {
      const folded = document.querySelector(`${link.getAttribute("href")} > details`);
      if (folded && folded.parentElement.id === "lineage") folded.open = true;
    });
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
