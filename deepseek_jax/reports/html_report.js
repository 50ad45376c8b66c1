"use strict";
// A model's text enters the page as text nodes alone, never as HTML.
(() => {
  const PAGE = 50, PAIRS = 5;  // rows and prompts at a time
  const byId = (id) => document.getElementById(id);

  function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children);  // strings become text nodes
    return made;
  }

  const round = (number, digits) => String(Number(number.toFixed(digits)));
  const signed = (number) => (number > 0 ? "+" : "") + number.toFixed(2);
  const tone = (advantage) => advantage > 0 ? "above" : advantage < 0 ? "below" : "even";
  const words = (name) => name.replaceAll("_", " ");
  const percent = (share) => Math.round(100 * share) + "%";
  const known = (value) => value !== null && value !== undefined && value !== "";
  const read = (id) => JSON.parse(byId(id).textContent);

  // ---- all completions: a table, filtered and sorted ----
  const groups = read("samples-data");
  const filters = byId("filters");
  let shown = PAGE, sorting = { column: null, descending: false };

  const CHOICES = filters
    ? [...filters.querySelectorAll("select")].map((select) => select.name).filter((name) => name !== "answer" && name !== "read") : [];
  const rows = groups.flatMap((group) => group.completions.map((completion) => ({ group, completion })));
  // A conversation is all that was said in it
  const textOf = ({ text, lines }) => lines ? lines.map(([, said]) => said).join(" · ") : text;

  // The table's columns: [name, value of a row for sorting and for the cell]
  const COLUMNS = [
    ...CHOICES.map((key) => [key, ({ group }) => group[key]]),
    ["prompt", ({ group }) => group.prompt],
    ["completion", ({ completion }) => textOf(completion)],
    ["right answer", ({ group }) => group.answer],
    ["reward", ({ completion }) => completion.total],
    ["advantage", ({ completion }) => completion.advantage],
    ["right", ({ completion }) => known(completion.right) ? Number(completion.right) : null],
    ["tokens", ({ completion }) => completion.length],
  ].filter(([, value]) => rows.some((row) => known(value(row))));

  function wanted() {
    const form = new FormData(filters);
    const number = (name, otherwise) => !form.get(name) ? otherwise : Number(form.get(name));
    return {
      choices: CHOICES.map((key) => [key, form.get(key)]).filter(([, value]) => value),
      answer: form.get("answer"), unread: form.get("read"), text: form.get("text").trim().toLowerCase(),
      low: number("low", -Infinity), high: number("high", Infinity),
    };
  }

  // The rows that pass the filters
  function passing(want) {
    const has = (text) => text.toLowerCase().includes(want.text);
    const anyReward = want.low === -Infinity && want.high === Infinity;
    return rows.filter(({ group, completion }) =>
      want.choices.every(([key, value]) => String(group[key]) === value)
      && (has(group.prompt) || has(textOf(completion)))
      && (!want.answer || completion.right === (want.answer === "right"))
      && (!want.unread || completion.unread)
      && (anyReward
        || known(completion.total) && completion.total >= want.low && completion.total <= want.high));
  }

  // What is not known comes last in either direction; equal rows keep their order
  function sorted(found) {
    const column = COLUMNS.find(([name]) => name === sorting.column);
    if (!column) return found;
    const sign = sorting.descending ? -1 : 1;
    return [...found].sort((first, second) => {
      const [a, b] = [first, second].map(column[1]);
      if (!known(a) || !known(b)) return Number(!known(a)) - Number(!known(b));
      return a < b ? -sign : a > b ? sign : 0;
    });
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
    add(known(advantage), () => element("b", "advantage", `advantage ${signed(advantage)}`));
    add(known(total) || known(advantage), () => element("b", "", `reward ${value(total)}`));
    add(known(completion.right), () => verdict(completion.right));
    add(times > 1, () => element("b", "times", `× ${times}`));
    add(parts && Object.keys(parts).length > 0, () => element("span", "",
      Object.entries(parts).map(([name, part]) => `${words(name)} ${value(part)}`).join(" · ")));
    add(completion.languages, () => languages(completion.languages));
    add(known(length), () => element("span", "", `${length} tokens`));
    add(completion.unread, () => element("span", "wrong", "unread"));
    add(completion.truncated, () => element("span", "wrong", "truncated"));
    const made = element(tag, `completion ${tone(advantage)}`, facts,
      completion.lines ? conversation(completion.lines) : marked(completion.text));
    made.style.setProperty("--strength", percent(Math.min(Math.abs(advantage ?? 0) / 2, 1)));
    return made;
  }

  // What is known of a group: facts in words
  function factsOf(group) {
    const facts = ["kind", "task", "language"].map((key) => group[key]).filter(known);
    if (known(group.answer)) facts.push(`a right answer: ${group.answer}`);
    const judged = group.completions.filter((completion) => known(completion.right));
    const right = judged.filter((completion) => completion.right).length;
    if (judged.length > 1) facts.push(`${right} of ${judged.length} right`);
    if (known(group.place) && !group.completions.some(({ advantage }) => advantage)) facts.push("equal rewards, no signal");
    return element("div", "facts", ...facts.map((fact) => element("span", "", fact)));
  }

  // A completion in the table: the beginning of its text, which opens
  function folded({ group, completion }) {
    const text = textOf(completion);
    const summary = element("summary", "text", text || "(nothing)");
    const details = element("details", "", summary);
    details.addEventListener("toggle", () => {
      if (!details.open || details.children.length > 1) return;
      const facts = factsOf(group), others = element("button", "", "all completions of this prompt");
      others.type = "button";
      others.addEventListener("click", () => {
        filters.reset();
        filters.elements.text.value = group.prompt;
        restart();
      });
      facts.append(others);
      details.append(facts, card(completion, 1, "div"));
    });
    return details;
  }

  function cell(name, value, row) {
    if (name === "completion") return element("td", "", folded(row));
    if (!known(value)) return element("td");
    if (name === "right") return element("td", "", verdict(row.completion.right));
    if (name === "prompt" || name === "right answer") return element("td", "", element("div", "text", String(value)));
    if (typeof value !== "number") return element("td", "", String(value));
    if (name === "advantage") return element("td", `number ${tone(value)}`, signed(value));
    const { unread, truncated } = row.completion, marks = { unread, truncated };
    const remarks = Object.keys(marks).filter((mark) => name === "tokens" && marks[mark]);
    return element("td", "number", round(value, 2), ...remarks.map((mark) => element("small", "wrong", ` ${mark}`)));
  }

  // Rows as JSON lines; a reward has its name in completions.jsonl
  function jsonLines(found) {
    return found.map(({ group: { completions, place, remark, ...facts }, completion: { total, ...other } }) =>
      JSON.stringify({ ...facts, ...other, reward: total }) + "\n").join("");
  }

  async function copy(button, text, said) {
    button.dataset.label ??= button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = said;
    } catch {
      button.textContent = "the browser does not allow it";
    }
    setTimeout(() => { button.textContent = button.dataset.label; }, 2000);
  }

  // [[value of the key, the groups with it]], in order
  function grouped(chosen, key) {
    const values = [...new Set(chosen.map((group) => group[key]))];
    return values.map((value) => [value, chosen.filter((group) => group[key] === value)]);
  }

  // ---- what was rewarded: groups of the first, the middle and the last step of each phase ----
  function rewarded() {
    const phases = grouped(groups.filter((group) => group.place), "phase");
    return phases.flatMap(([phase, chosen]) => {
      const steps = grouped(chosen, "step").map(([step, ofStep]) =>
        element("div", "step", element("h4", "", `${ofStep[0].place}: ${step} `, element("small", "", ofStep[0].remark)),
          ...ofStep.map((group) => element("article", "group", element("h3", "prompt", group.prompt), factsOf(group),
            element("ul", "", ...distinct(group.completions).map(({ completion, times }) => card(completion, times, "li")))))));
      const columns = element("div", "steps", ...steps);
      return phases.length > 1 ? [element("h3", "", phase), columns] : [columns];
    });
  }

  // ---- completions of one prompt side by side ----
  function besides({ prompt, facts, right, sides }) {
    const said = Object.entries(facts ?? {}).filter(([, value]) => known(value))
      .map(([name, value]) => element("span", "", `${words(name)}: ${value}`));
    if (known(right)) said.unshift(verdict(right));
    return element("article", "group", element("h3", "prompt", prompt), element("div", "facts", ...said),
      element("div", "sides", ...sides.map((side) =>
        element("div", "side", element("h4", "", side.title), card(side, 1, "div")))));
  }

  // The name of a column, which sorts by it: first upwards, then downwards
  function head([name]) {
    const button = element("button", "", name), made = element("th", "", button);
    button.type = "button";
    made.scope = "col";
    button.addEventListener("click", () => {
      sorting = { column: name, descending: sorting.column === name && !sorting.descending };
      for (const other of made.parentElement.cells) other.ariaSort = "none";
      made.ariaSort = sorting.descending ? "descending" : "ascending";
      restart();
    });
    return made;
  }

  function update() {
    const found = sorted(passing(wanted()));
    const number = new Set(found.map(({ group }) => group)).size;
    byId("count").textContent = `${found.length} completions of ${number} groups`;
    byId("completions-table").tBodies[0].replaceChildren(...found.slice(0, shown).map((row) =>
      element("tr", "", ...COLUMNS.map(([name, value]) => cell(name, value(row), row)))));
    byId("more").hidden = found.length <= shown;
  }

  function restart() {
    shown = PAGE;
    update();
  }

  if (filters) {
    filters.addEventListener("input", restart);
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.addEventListener("reset", () => setTimeout(restart));  // once the fields are empty
    byId("more").addEventListener("click", () => { shown += PAGE; update(); });
    byId("copy").addEventListener("click", ({ target }) => {
      const found = sorted(passing(wanted()));
      copy(target, jsonLines(found), `copied ${found.length} lines`);
    });
    byId("completions-table").tHead.append(element("tr", "", ...COLUMNS.map(head)));
    update();
  }

  byId("rewards")?.append(...rewarded());

  const pairs = read("pairs-data");
  function showPairs() {
    const first = byId("pairs").children.length;
    byId("pairs").append(...pairs.slice(first, first + PAIRS).map(besides));
    byId("more-pairs").hidden = first + PAIRS >= pairs.length;
  }
  if (byId("pairs")) {
    byId("more-pairs").addEventListener("click", showPairs);
    showPairs();
  }

  const command = document.querySelector("#facts code");
  document.querySelector("#facts button")?.addEventListener("click", ({ target }) =>
    copy(target, command.textContent, "copied"));

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
