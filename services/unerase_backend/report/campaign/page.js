"use strict";
// Sorts and filters the tables of a campaign's page and opens the evidence of a cell. Everything that it shows is in the
// page; text is put on the page as text only. The keys of a cell are described in report/campaign/rows.py.
(() => {
  const data = JSON.parse(document.getElementById("cells").textContent);
  const cells = new Map(data.cells.map((cell) => [cell.i, cell]));
  const $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";

  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "line", "circle", "rect", "polygon", "title"].includes(tag);
    const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null && child !== ""));
    return element;
  }
  // Names and sentences from outside do not change the direction of the text around them.
  const outside = (text) => make("bdi", {}, text);

  // Sorting. A cell's value is its data-v, or else its text.
  const collator = new Intl.Collator("en", { numeric: true });
  function sortBy(header) {
    const table = header.closest("table"), body = table.tBodies[0];
    const down = header.getAttribute("aria-sort") === "ascending";
    const numbers = header.firstElementChild.dataset.by === "number", column = header.cellIndex;
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => {
      const cell = row.cells[column], text = cell.dataset.v ?? cell.textContent;
      return [numbers ? Number(text) : text, row];
    });
    // The sort is stable, so that equal rows keep their order.
    rows.sort(([one], [other]) => (down ? -1 : 1) * (numbers ? one - other : collator.compare(one, other)));
    body.append(...rows.map(([, row]) => row));
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.sort");
    if (button) sortBy(button.parentElement);
  });

  // Moving in a heat map: one of its links takes part in the order of Tab, and arrow keys move from it.
  const seen = (element) => !element.hidden;
  const cellOf = (link) => Number(link.getAttribute("href").slice(6));
  // A link's name says its row and column. Naming all of them at once would cost a large page a second.
  function takeTurn(link) {
    const cell = link.parentElement, table = link.closest("table");
    for (const other of table.querySelectorAll('td a[tabindex="0"]')) other.tabIndex = -1;
    link.tabIndex = 0;
    const words = [cell.parentElement.cells[0], table.tHead.rows[0].cells[cell.cellIndex], ...link.childNodes];
    link.setAttribute("aria-label", words.map((part) => part.textContent.trim()).filter(Boolean).join(", "));
  }
  const linksOf = (table) => [...table.querySelectorAll("tbody tr:not([hidden]) td:not([hidden]) a")];
  for (const table of document.querySelectorAll("table.matrix")) {
    const links = linksOf(table);
    for (const link of links) link.tabIndex = -1;
    if (links.length) takeTurn(links[0]);
    table.addEventListener("focusin", (event) => event.target.matches("td a") && takeTurn(event.target));
    table.addEventListener("keydown", (event) => {
      const cell = event.target.closest("td");
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!cell || (!move && event.key !== "Home" && event.key !== "End")) return;
      event.preventDefault();
      const rows = [...table.tBodies[0].rows].filter(seen);
      let row = rows.indexOf(cell.parentElement), column = cell.cellIndex, found = null;
      if (move) {
        do {
          row += move[0];
          column += move[1];
          const next = rows[row]?.cells[column];
          found = next && seen(next) ? next.querySelector("a") : null;
        } while (!found && row >= 0 && row < rows.length && column > 0 && column < rows[row].cells.length);
      } else {
        const links = [...cell.parentElement.querySelectorAll("td:not([hidden]) a")];
        found = event.key === "Home" ? links[0] : links.at(-1);
      }
      if (found) {
        takeTurn(found);
        found.focus();
      }
    });
  }

  // Filtering.
  const form = $("filters");
  const chosen = (id) => $(id)?.value ?? "";
  const facts = new Map();
  for (const row of document.querySelectorAll("#all-cells tbody tr")) {
    const at = (column) => row.cells[column]?.textContent.trim() ?? "";
    const heads = [...row.closest("table").tHead.rows[0].cells].map((head) => head.textContent.trim());
    facts.set(Number(row.dataset.cell), { row, gate: at(heads.indexOf("Gate")), change: at(heads.indexOf("Change")) });
  }
  function filter() {
    const words = chosen("search").toLowerCase().split(/\s+/).filter(Boolean);
    const concept = chosen("concept"), conclusion = chosen("conclusion");
    const gate = chosen("gated"), change = chosen("change");
    const said = (cell) => words.every((word) => `${cell.s} ${cell.c}`.toLowerCase().includes(word));
    const shown = new Set();
    for (const cell of data.cells) {
      const { row, gate: found, change: moved } = facts.get(cell.i);
      const fits = said(cell) && (!concept || cell.c === concept) && (!gate || found.includes(gate)) &&
        (!change || moved.includes(change)) && (!conclusion || cell.w.replace(", damaged", "").slice(2) === conclusion);
      row.hidden = !fits;
      if (fits) shown.add(cell.i);
    }
    const filtered = shown.size < data.cells.length;
    filterMatrix($("subjects-concepts"), shown, filtered);
    filterEvaluations($("subjects-evaluations"), shown);
    for (const figure of document.querySelectorAll("figure[data-concept]")) {
      figure.hidden = concept !== "" && figure.dataset.concept !== concept;
      for (const link of figure.querySelectorAll("a")) {
        link.classList.toggle("faded", !shown.has(cellOf(link)));
      }
    }
    for (const row of document.querySelectorAll("table.counts tbody tr")) {
      row.hidden = !words.every((word) => row.dataset.row.toLowerCase().includes(word));
    }
    if (data.cells.length) $("shown").textContent = `${shown.size} of ${data.cells.length} cell${data.cells.length === 1 ? "" : "s"}`;
    for (const table of document.querySelectorAll("table.matrix")) keepOneInOrder(table);
  }
  function keepOneInOrder(table) {
    const links = linksOf(table);
    if (links.length && !links.some((link) => link.tabIndex === 0)) takeTurn(links[0]);
  }
  // Rows and columns without a cell that is shown disappear; other cells fade.
  function filterMatrix(table, shown, filtered) {
    if (!table) return;
    const columns = new Set([0]);
    for (const row of table.tBodies[0].rows) {
      let some = false;
      for (const cell of row.querySelectorAll("td")) {
        const link = cell.firstElementChild, fits = link !== null && shown.has(cellOf(link));
        cell.classList.toggle("faded", filtered && !fits && link !== null);
        if (fits) columns.add(cell.cellIndex);
        some ||= fits;
      }
      row.hidden = !some;
    }
    for (const row of table.rows) {
      for (const cell of row.cells) cell.hidden = !columns.has(cell.cellIndex);
    }
  }
  // Which cells each row of evaluations is about now, and which at first.
  const filled = new Map();
  const everything = new Map();
  for (const { s, i } of data.cells) everything.set(s, everything.has(s) ? `${everything.get(s)},${i}` : String(i));
  // The worst of the cells that are shown, as the page has it for all cells.
  function filterEvaluations(table, shown) {
    if (!table) return;
    const bySubject = new Map();
    for (const cell of data.cells) {
      if (!shown.has(cell.i)) continue;
      if (!bySubject.has(cell.s)) bySubject.set(cell.s, []);
      bySubject.get(cell.s).push(cell);
    }
    for (const row of table.tBodies[0].rows) {
      const some = bySubject.get(row.dataset.row) ?? [];
      row.hidden = !some.length;
      const wanted = some.map((cell) => cell.i).join();
      if (row.hidden || wanted === (filled.get(row) ?? everything.get(row.dataset.row))) continue;
      filled.set(row, wanted);
      [...row.cells].slice(1).forEach((place, at) => fill(place, at, some));
    }
  }
  function fill(place, title, some) {
    const found = some.flatMap((cell) => (cell.e ?? []).filter((one) => one[0] === title).map((one) => [cell, one]));
    place.replaceChildren();
    place.className = "heat";
    place.dataset.v = 9000;
    if (!found.length) return;
    const order = ([, one]) => 1000 * severity(one[1]) - (one[7] ? one[7][1] : 0);
    const [cell, worst] = found.reduce((best, next) => (order(next) < order(best) ? next : best));
    const [kind, sign] = outcome(worst[1]), excess = worst[7] ? worst[7][1] : 0;
    place.classList.add(kind === "recovers" ? `recovers-${1 + (excess > 33) + (excess > 66)}` : kind);
    place.dataset.v = order([cell, worst]);
    const link = make("a", { href: `#cell-${cell.i}`, tabindex: -1 }, worst[7] ? `${sign} ${worst[7][0]}` : sign);
    if (found.length > 1) {
      const recovering = found.filter(([, one]) => outcome(one[1])[0] === "recovers").length;
      link.append(make("small", {}, `${recovering} of ${found.length}`));
    }
    place.append(link);
  }
  const outcome = (at) => data.outcomes[at] ?? ["silent", "·", "no outcome"];
  const severity = (at) => (at < 0 ? 3 : at);

  if (form) {
    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(filter));
    filter();
  }

  // Evidence.
  const dialog = $("evidence"), body = $("evidence-body");
  let current = null, unveiled = false;

  function open(index, push) {
    const cell = cells.get(index);
    if (!cell) return;
    current = index;
    body.replaceChildren(...evidence(cell));
    const order = listed();
    $("before").disabled = order.indexOf(index) <= 0;
    $("after").disabled = order.indexOf(index) === order.length - 1 || !order.includes(index);
    if (push) history.replaceState(null, "", `#cell-${index}`);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }
  const listed = () =>
    [...document.querySelectorAll("#all-cells tbody tr")].filter((row) => !row.hidden).map((row) => Number(row.dataset.cell));
  function step(by) {
    const order = listed(), next = order[order.indexOf(current) + by];
    if (next !== undefined) open(next, true);
  }
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    current = null;
    history.replaceState(null, "", location.href.split("#")[0]);
  });
  const asked = (href) => Number((/^#cell-(\d+)$/.exec(href) ?? [])[1] ?? NaN);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a"), index = asked(link?.getAttribute("href") ?? "");
    if (!cells.has(index) || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    open(index, true);
  });
  addEventListener("hashchange", () => cells.has(asked(location.hash)) && open(asked(location.hash), false));

  function evidence(cell) {
    const parts = [
      make("h2", { id: "evidence-title" }, outside(cell.s), " × ", outside(cell.c)),
      make("div", { class: `verdict ${cell.k}` },
        make("p", { class: "conclusion" }, make("span", { class: `swatch ${cell.k}`, "aria-hidden": "true" }, cell.w[0]), cell.w.slice(1)),
        ...(cell.n ?? []).map((text, at) => make("p", { class: at ? "soft" : "lead" }, outside(text)))),
    ];
    if (cell.g) {
      parts.push(make("h3", {}, "What the gate found"), make("ul", { class: "grounds" }, ...cell.g.map(([kind, sign, word, clause, text]) =>
        make("li", { class: kind }, make("span", { class: "sign", role: "img", "aria-label": word }, sign),
          make("span", {}, outside(text), " ", make("span", { class: "soft" }, outside(`${clause}: ${word}`)))))));
    }
    if (cell.x) parts.push(...changes(cell.x));
    if (cell.p || cell.o) parts.push(...pictures(cell));
    if (cell.e) parts.push(make("h3", {}, "Evaluations"), evaluations(cell.e));
    if (cell.f) {
      parts.push(make("h3", {}, "Further figures"), make("dl", { class: "facts" },
        ...cell.f.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, outside(value))))));
    }
    if (cell.d) {
      parts.push(make("h3", {}, "As deployed, with its guards"), make("p", {}, make("b", {}, `${cell.d[0]}. `), outside(cell.d[1])),
        evaluations(cell.d[2]));
    }
    if (cell.a) parts.push(make("p", { class: "under" }, "Audit ", make("code", {}, cell.a), ". Its whole report: ",
      make("code", {}, `unerase report ${cell.a} --html audit.html`)));
    return parts;
  }
  function changes([word, statement, replaced, moved]) {
    const title = `Since the compared campaign: ${word}${replaced ? ", the model was replaced" : ""}`;
    return [make("h3", {}, title), make("p", {}, outside(statement)), make("ul", {},
      ...moved.map(([name, what, text]) => make("li", {}, outside(name), `: ${what}; `, outside(text))))];
  }
  function pictures(cell) {
    const strip = make("div", { class: "pictures" });
    for (const [source, caption, hit] of cell.p ?? []) {
      strip.append(make("figure", { class: hit ? "hit" : "" }, make("img", { src: source, alt: caption }),
        make("figcaption", {}, outside(caption))));
    }
    const parts = [make("h3", {}, "Pictures of the subject")];
    if (cell.v && cell.p) {
      const box = make("input", { type: "checkbox", id: "unveil" });
      box.checked = unveiled;
      const veil = () => strip.classList.toggle("veiled", !box.checked);
      box.addEventListener("change", () => { unveiled = box.checked; veil(); });
      veil();
      parts.push(make("p", { class: "note" }, box, " ", make("label", { for: "unveil" },
        "Show the pictures. They are blurred because this concept may be distressing to see.")));
    }
    if (cell.p) parts.push(strip);
    if (cell.o) parts.push(make("p", { class: "under" }, `${cell.o} ${cell.p ? "more are" : "are"} in the audit's report.`));
    return parts;
  }
  function evaluations(each) {
    const rows = each.map(([title, at, budget, stopped, subject, reference, control, excess]) => {
      const [kind, sign, word] = outcome(at);
      return make("tr", {},
        make("th", { scope: "row" }, outside(data.titles[title]),
          make("span", { class: "under" }, budget === 1 ? "one draw a case" : `budget ${budget} a case`,
            stopped ? `; stopped after ${stopped} case${stopped === 1 ? "" : "s"}` : ""),
          make("span", { class: `chip ${kind}` }, `${sign} ${word}`)),
        make("td", { "data-label": "Detected, of cases" },
          ...[["subject", subject], ["reference", reference], ["control", control]].filter(([, rate]) => rate)
            .map(([role, rate]) => rateOf(role, rate))),
        make("td", { "data-label": "Excess over the control, points" },
          excess ? excessOf(excess, Boolean(control)) : make("span", { class: "soft" }, "no test")));
    });
    return make("table", { class: "cards evaluations" },
      make("thead", {}, make("tr", {}, ...["Evaluation and outcome", "Detected, of cases", "Excess over the control, points"]
        .map((title) => make("th", { scope: "col" }, title)))),
      make("tbody", {}, ...rows));
  }
  const minus = (value) => String(value ?? "none").replace("-", "−");
  function rateOf(role, [hits, count, lower, upper, note]) {
    const interval = count ? ` (${minus(lower)} to ${minus(upper)} %)` : "";
    return figure(role, role, lane(role, count ? (100 * hits) / count : 0, lower, upper, 0, 100, [0, 25, 50, 75, 100], null,
      `${role}: ${hits} of ${count}${interval}`), `${hits} of ${count}`, interval, note);
  }
  function excessOf([said, value, lower, upper, p, tolerance], tested) {
    const interval = ` (${minus(lower)} to ${minus(upper)})`;
    const text = tested ? said : `at most ${minus(upper)}`;
    return figure("subject", "", lane("subject", value ?? 0, lower, upper, -100, 100, [-100, -50, 50, 100], tolerance,
      `Excess ${said}${interval}`), text, tested ? interval : "", p ? `p ${p} after Holm` : "no control and so no test");
  }
  function figure(role, name, drawn, text, interval, note) {
    return make("div", { class: name ? "figure" : "figure short" }, key(role), name && make("span", { class: "who" }, name), drawn,
      make("span", { class: "n" }, text, make("span", { class: "soft" }, interval), note ? make("span", { class: "under" }, note) : ""));
  }
  function key(role) {
    return make("svg", { class: "key", width: 14, height: 14, viewBox: "0 0 14 14", "aria-hidden": "true" }, mark(role, 7, 7));
  }
  function mark(role, x, y) {
    if (role === "subject") return make("circle", { class: "mark subject", cx: x, cy: y, r: 4.5 });
    if (role === "reference") {
      return make("polygon", { class: "mark reference", points: `${x},${y - 5.4} ${x + 5.4},${y} ${x},${y + 5.4} ${x - 5.4},${y}` });
    }
    return make("rect", { class: "mark control", x: x - 3.8, y: y - 3.8, width: 7.6, height: 7.6 });
  }
  // A figure with its interval on a scale, as charts.py draws it.
  function lane(role, value, lower, upper, low, high, ticks, limit, label) {
    const across = (number) => 7 + ((Math.min(Math.max(number ?? low, low), high) - low) / (high - low)) * 154;
    const line = (kind, from, to, y1, y2) => make("line", { class: kind, x1: from, y1, x2: to, y2 });
    const parts = ticks.map((tick) => line("grid", across(tick), across(tick), 0, 20));
    if (low < 0) parts.push(line("zero", across(0), across(0), 0, 20));
    if (limit !== null) parts.push(line("limit", across(limit), across(limit), 0, 20));
    parts.push(line(`whisker ${role}`, across(lower), across(upper), 10, 10), mark(role, across(value), 10));
    return make("svg", { class: "lane", viewBox: "0 0 168 20", width: 168, height: 20, role: "img" },
      make("title", {}, label), ...parts);
  }

  if (cells.has(asked(location.hash))) open(asked(location.hash), false);
})();
