"use strict";
// Leafs through the texts. Everything that a dialogue or a summary says goes into the page as a text node.
(() => {
  const PAGE = 20;
  const MOST_CELLS = 4e6; // of the table of a word difference: texts longer than that are shown unmarked
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const others = data.systems.map((_, index) => index).filter((index) => index !== data.baseline);
  const independent = data.judges.findIndex((judge) => judge.role === "independent");
  const state = {
    filter: "all",
    rude: false,
    query: "",
    system: others.length ? others[0] : data.baseline,
    judge: Math.max(independent, 0),
    page: 0,
    open: false,
  };

  // -- elements

  function make(tag, name, ...children) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  // The direction of a text stays its own, so that a character in it cannot turn around what follows.
  function quoted(tag, name, ...children) {
    const element = make(tag, name, ...children);
    element.dir = "auto";
    return element;
  }

  function option(text, value) {
    const element = make("option", "", text);
    element.value = value;
    return element;
  }

  function shown(value, decimals) {
    if (value === null || value === undefined) return "–";
    return (Number.isInteger(value) && decimals < 3 ? String(value) : value.toFixed(decimals)).replace("-", "−");
  }

  // -- what a row says

  const texts = (row, system = state.system) => row.texts[system];

  function value(row, system, column) {
    const text = row.texts[system];
    return text ? text[4][column] : null;
  }

  function toxicity(row, system) {
    return data.judges.length ? value(row, system, data.judges[state.judge].column) : null;
  }

  function change(row) {
    const [before, after] = [toxicity(row, data.baseline), toxicity(row, state.system)];
    return before === null || after === null ? 0 : after - before;
  }

  const FILTERS = [
    { name: "all", title: "All", keeps: () => true },
    { name: "regressions", title: "Worst regressions", keeps: (row) => change(row) > 0, order: 1 },
    { name: "gains", title: "Best gains", keeps: (row) => change(row) < 0, order: -1 },
    { name: "omissions", title: "Omissions", keeps: (row) => texts(row)?.[2] === "omit" },
    { name: "inventions", title: "Inventions", keeps: (row) => texts(row)?.[2] === "invent" },
    { name: "speaker", title: "Wrong speaker", keeps: (row) => texts(row)?.[3] === false },
    { name: "quotes", title: "Quotes", keeps: (row) => texts(row)?.[2] === "quote" },
  ].filter((filter) => !filter.order || (others.length && data.judges.length));

  const haystacks = new Map();
  function haystack(row) {
    if (!haystacks.has(row)) {
      const parts = [row.id, row.dialogue, row.reference, ...row.texts.map((text) => (text ? text[0] : ""))];
      haystacks.set(row, parts.join("\n").toLowerCase());
    }
    return haystacks.get(row);
  }

  const kept = (filter) => data.rows.filter((row) => filter.keeps(row) && (row.rude || !state.rude));

  function chosen() {
    const filter = FILTERS.find(({ name }) => name === state.filter);
    const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = kept(filter).filter((row) => words.every((word) => haystack(row).includes(word)));
    return filter.order ? rows.sort((a, b) => filter.order * (change(b) - change(a))) : rows;
  }

  // -- words: what changed, what is rude

  const TOKEN = /[\p{L}\p{M}\p{N}_'’]+|\s+|[^]/gu;
  const escaped = data.rude_words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).filter(Boolean);
  escaped.sort((a, b) => b.length - a.length);
  const whole = (pattern) => new RegExp(`(?<![\\p{L}\\p{N}_])(?:${pattern})(?![\\p{L}\\p{N}_])`, "giu");
  const RUDE = escaped.length ? whole(escaped.join("|")) : null;

  function tokens(text) {
    const rude = RUDE ? [...text.matchAll(RUDE)].map((match) => [match.index, match.index + match[0].length]) : [];
    return [...text.matchAll(TOKEN)].map((match) => {
      const [start, end] = [match.index, match.index + match[0].length];
      return { text: match[0], rude: rude.some(([low, high]) => start < high && end > low), changed: false };
    });
  }

  // Marks the tokens of `mine` that have no place in a longest common subsequence with `theirs`.
  function compare(mine, theirs) {
    const [a, b] = [mine, theirs].map((side) => side.filter((token) => token.text.trim()));
    const [n, m, wide] = [a.length, b.length, b.length + 1];
    if ((n + 1) * wide > MOST_CELLS) return;
    const length = new Uint16Array((n + 1) * wide);
    for (let i = n - 1; i >= 0; i--)
      for (let j = m - 1; j >= 0; j--)
        length[i * wide + j] =
          a[i].text === b[j].text
            ? length[(i + 1) * wide + j + 1] + 1
            : Math.max(length[(i + 1) * wide + j], length[i * wide + j + 1]);
    for (let i = 0, j = 0; i < n; ) {
      if (j < m && a[i].text === b[j].text) i++, j++;
      else if (j < m && length[i * wide + j + 1] >= length[(i + 1) * wide + j]) j++;
      else a[i++].changed = true;
    }
    mine.forEach((token, index) => {
      if (!token.text.trim()) token.changed = Boolean(mine[index - 1]?.changed && mine[index + 1]?.changed);
    });
  }

  // Runs of equal tokens, as text nodes in <ins> or <del> and in <mark>.
  function marked(list, tag) {
    const place = document.createDocumentFragment();
    for (let start = 0; start < list.length; ) {
      const { changed } = list[start];
      let end = start;
      while (end < list.length && list[end].changed === changed) end++;
      const run = rudeMarked(list.slice(start, end));
      place.append(changed ? make(tag, "", run) : run);
      start = end;
    }
    return place;
  }

  function rudeMarked(list) {
    const place = document.createDocumentFragment();
    for (let start = 0; start < list.length; ) {
      const { rude } = list[start];
      let end = start;
      while (end < list.length && list[end].rude === rude) end++;
      const text = list.slice(start, end).map((token) => token.text).join("");
      place.append(rude ? make("mark", "", text) : text);
      start = end;
    }
    return place;
  }

  // -- one dialogue

  function speakers(dialogue) {
    const names = dialogue.split("\n").map((line) => /^([^:]{1,40}): /.exec(line)?.[1]);
    return [...new Set(names.filter(Boolean))].slice(0, 4).join(", ");
  }

  function turns(dialogue) {
    const lines = dialogue.split("\n").map((line) => {
      const name = /^[^:]{1,40}:(?= )/.exec(line)?.[0] ?? "";
      return quoted("div", "", name ? make("b", "", name) : null, marked(tokens(line.slice(name.length))));
    });
    return make("div", "turns", ...lines);
  }

  function part(title, ...children) {
    return make("section", "", make("h4", "", title), ...children);
  }

  function badges(row) {
    const text = texts(row);
    const found = [row.rude ? ["rude", ""] : null];
    if (text?.[2] === "omit") found.push(["omits", "strong"]);
    if (text?.[2] === "invent") found.push(["invents", "strong"]);
    if (text?.[2] === "quote") found.push(["quotes", "strong"]);
    if (text?.[3] === false) found.push(["wrong speaker", "strong"]);
    return found.filter(Boolean).map(([word, kind]) => make("span", `badge ${kind}`, word));
  }

  function changeLine(row) {
    if (!data.judges.length || !others.length) return null;
    const [before, after] = [data.baseline, state.system].map((system) => shown(toxicity(row, system), 3));
    return make("span", "change", make("span", "muted", "toxicity "), `${before} → `, make("b", "", after));
  }

  function chips(row, system) {
    const text = row.texts[system];
    const facts = data.judges.map((judge) => [judge.name, shown(text[4][judge.column], 3)]);
    const rouge = data.measures.findIndex((measure) => measure.name === "rougeL");
    if (rouge >= 0) facts.push([data.measures[rouge].title, shown(text[4][rouge], data.measures[rouge].decimals)]);
    const conflict = { report: "reported", quote: "quoted", omit: "omitted", invent: "invented" }[text[2]];
    if (conflict) facts.push(["conflict", conflict]);
    if (typeof text[3] === "boolean") facts.push(["speaker", text[3] ? "right" : "wrong"]);
    if (!text[1]) facts.push(["ended", "no"]);
    const pairs = facts.map(([term, fact]) => make("div", "", make("dt", "", term), make("dd", "", fact)));
    return make("dl", "chips", ...pairs);
  }

  function summaries(row) {
    const base = row.texts[data.baseline];
    return data.systems.map((name, system) => {
      const text = row.texts[system];
      if (!text) return part(name, make("p", "muted", "no summary"));
      const other = system === data.baseline ? texts(row) : base;
      const mine = tokens(text[0]);
      if (other && other !== text) compare(mine, tokens(other[0]));
      const words = text[0].trim() ? marked(mine, system === data.baseline ? "del" : "ins") : "(empty)";
      return part(name, quoted("p", "text", words), chips(row, system));
    });
  }

  function cell(tag, scope, text) {
    const element = make(tag, "", text);
    if (scope) element.scope = scope;
    return element;
  }

  function allValues(row) {
    const head = make("tr", "", cell("td", "", ""), ...data.systems.map((name) => cell("th", "col", name)));
    const body = data.measures.map((measure, column) => {
      const values = data.systems.map((_, system) => shown(value(row, system, column), measure.decimals));
      return make("tr", "", cell("th", "row", measure.title), ...values.map((text) => cell("td", "", text)));
    });
    const box = make("div", "scroll", make("table", "", make("thead", "", head), make("tbody", "", ...body)));
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "All values of this dialogue");
    return make("details", "", make("summary", "", "All values"), box);
  }

  function conflicts(row) {
    if (!row.conflicts.length) return null;
    const each = row.conflicts.map(([by, to, act]) => `${by ?? "somebody"}${to ? ` → ${to}` : ""}: ${act}`);
    return quoted("p", "conflict", make("b", "", "Conflict "), each.join("; "));
  }

  function body(row) {
    const left = make("div", "", part("Dialogue", turns(row.dialogue), conflicts(row)));
    const reference = part("Reference", quoted("p", "text", marked(tokens(row.reference))));
    return make("div", "body", left, make("div", "", reference, ...summaries(row)), allValues(row));
  }

  function article(row) {
    const title = quoted("h3", "", speakers(row.dialogue) || row.id);
    const head = make("summary", "", title, ...badges(row), quoted("span", "id", row.id), changeLine(row));
    const element = make("details", "dialogue", head, body(row));
    element.open = state.open;
    return element;
  }

  // -- the page

  function draw() {
    const rows = chosen();
    const pages = Math.max(Math.ceil(rows.length / PAGE), 1);
    state.page = Math.min(state.page, pages - 1);
    const first = state.page * PAGE;
    const part = rows.slice(first, first + PAGE);
    at("list").replaceChildren(...part.map(article));
    const count = rows.length.toLocaleString("en");
    at("count").textContent = rows.length
      ? `${first + 1}–${first + part.length} of ${count} ${rows.length === 1 ? "dialogue" : "dialogues"}`
      : "No dialogue is like that.";
    at("pages").hidden = pages === 1;
    at("place").textContent = `Page ${state.page + 1} of ${pages}`;
    at("previous").disabled = state.page === 0;
    at("next").disabled = state.page === pages - 1;
  }

  function drawFilters() {
    const labels = FILTERS.map((filter) => {
      const input = make("input");
      const checked = filter.name === state.filter;
      Object.assign(input, { type: "radio", name: "filter", value: filter.name, checked });
      input.addEventListener("change", () => update({ filter: filter.name }));
      const count = kept(filter).length.toLocaleString("en");
      return make("label", "", input, make("span", "", `${filter.title} ${count}`));
    });
    at("filters").replaceChildren(at("filters").firstElementChild, ...labels);
  }

  function update(changes) {
    Object.assign(state, { page: 0 }, changes);
    draw();
  }

  function recount(changes) {
    Object.assign(state, changes);
    drawFilters();
    update({});
  }

  function leaf(step) {
    update({ page: state.page + step });
    at("list").scrollIntoView();
    at("list").querySelector("summary")?.focus({ preventScroll: true });
  }

  function start() {
    at("system").append(...others.map((system) => option(data.systems[system], system)));
    at("judge").append(...data.judges.map((judge, index) => option(judge.name, index)));
    at("judge").value = state.judge;
    at("compared").hidden = others.length < 2;
    at("legend").hidden = !others.length;
    at("judged").hidden = data.judges.length < 2;
    at("rude").addEventListener("change", (event) => recount({ rude: event.target.checked }));
    at("search").addEventListener("input", (event) => update({ query: event.target.value }));
    at("system").addEventListener("change", (event) => recount({ system: Number(event.target.value) }));
    at("judge").addEventListener("change", (event) => recount({ judge: Number(event.target.value) }));
    at("previous").addEventListener("click", () => leaf(-1));
    at("next").addEventListener("click", () => leaf(1));
    at("open").addEventListener("click", () => {
      const open = !state.open;
      at("open").textContent = open ? "Close all" : "Open all";
      update({ open, page: state.page });
    });
    at("controls").hidden = at("open").hidden = false;
    recount({});
  }

  start();
})();
