// The atlas without a network: data lie in the page as JSON, and every text enters it as text, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const make = (tag, text, attributes = {}) => {
    const node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const svg = (tag, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = (v, digits = 3) => (v === null || v === undefined ? "–" : v.toFixed(digits));
  const small = (p) => (p === null || p === undefined ? "–" : p < 0.001 ? p.toExponential(0) : String(Number(p.toPrecision(2))));
  const stars = (p) => (p === null || p >= 0.05 ? "" : p < 0.001 ? " ***" : p < 0.01 ? " **" : " *");
  const cells = data.cells;
  const byPlace = new Map(cells.map((c, i) => [JSON.stringify([c.probe, c.row, c.audio]), i]));
  let chosen = null;

  // ---- heat map
  function drawMap() {
    const probe = $("probe").value, rows = [], columns = [];
    for (const c of cells) {
      if (c.probe !== probe) continue;
      if (!rows.includes(c.row)) rows.push(c.row);
      if (!columns.includes(c.audio)) columns.push(c.audio);
    }
    rows.sort((a, b) => a - b);
    columns.sort((a, b) => a - b);
    const far = Math.max(1e-9, ...cells.filter((c) => c.probe === probe).map((c) => c.z ?? 0));
    const head = make("tr");
    head.append(make("th", data.names.model, { scope: "col", class: "name" }));
    for (const a of columns) head.append(make("th", data.audios[a], { scope: "col" }));
    const body = rows.map((row) => {
      const line = make("tr");
      line.append(make("th", data.rows[row], { scope: "row" }));
      for (const a of columns) {
        const box = make("td"), at = byPlace.get(JSON.stringify([probe, row, a]));
        if (at !== undefined) {
          const c = cells[at], share = Math.round(90 * Math.max(0, Math.min(1, (c.z ?? 0) / far)));
          const words = `${data.rows[row]}, ${data.audios[a]}: ${c.metric} ${number(c.value)}, adjusted p ${small(c.adjusted)}`;
          const button = make("button", number(c.value) + stars(c.adjusted), { type: "button", "aria-label": words, "data-cell": at });
          button.style.setProperty("--share", share + "%");
          if (share > 55) button.dataset.dark = "";
          if (c.baseline) button.className = "baseline";
          button.setAttribute("aria-pressed", String(at === chosen));
          button.addEventListener("click", () => show(at, true));
          box.append(button);
        }
        line.append(box);
      }
      return line;
    });
    $("map").tHead.replaceChildren(head);
    $("map").tBodies[0].replaceChildren(...body);
  }
  // Arrow keys walk the map, as in a grid.
  $("map").addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    const here = event.target.closest("td");
    if (!step || !here) return;
    event.preventDefault();
    const line = $("map").rows[here.parentNode.rowIndex + step[0]];
    line?.cells[here.cellIndex + step[1]]?.querySelector("button")?.focus();
  });

  // ---- one pair
  function show(at, remember) {
    const c = cells[at];
    chosen = at;
    for (const b of document.querySelectorAll("#map button")) b.setAttribute("aria-pressed", String(Number(b.dataset.cell) === at));
    const parts = make("div", null, { class: "parts" });
    const facts = make("section");
    facts.append(make("h3", "The test"));
    const list = make("table");
    for (const [name, value] of [
      [c.metric, number(c.value) + (c.low === null ? "" : ` (95% over fresh classes: ${number(c.low)} to ${number(c.high)})`)],
      ["null", `${number(c.mean)}, sd ${number(c.sd)}`],
      ["p", `${small(c.p)}; adjusted for the run's pairs ${small(c.adjusted)}`],
      ["probe", c.probe], ["run", data.runs[c.run].name],
      ...(c.rank ? [["rank", `${c.rank[0]} (95%: ${c.rank[1]} to ${c.rank[2]}), group ${c.rank[3]}`]] : []),
    ]) {
      const line = make("tr");
      line.append(make("th", name, { scope: "row" }), make("td", value, { class: "name" }));
      list.append(line);
    }
    facts.append(list, make("p", c.said));
    const nulls = make("section");
    nulls.append(make("h3", "Its null"), histogram(c));
    parts.append(facts, nulls);
    if (c.classes.length) parts.append(section("Its classes, best and worst", ["class", "acc@" + c.k], c.classes.map(([n, v]) => [data.labels[n], number(v, 2)])));
    if (c.instead.length) parts.append(section("What came first instead", ["class", "retrieved", "share"], c.instead.map(([a, b, v]) => [data.labels[a], data.labels[b], number(v, 2)])));
    $("detail").replaceChildren(make("h2", `${data.rows[c.row]} × ${data.audios[c.audio]}`), parts);
    if (remember) history.replaceState(null, "", "#" + at);
  }
  function section(title, header, rows) {
    const part = make("section"), table = make("table"), head = make("tr");
    header.forEach((h, i) => head.append(make("th", h, { scope: "col", class: i < header.length - 1 ? "name" : "" })));
    table.createTHead().append(head);
    const body = table.createTBody();
    for (const row of rows) {
      const line = make("tr");
      row.forEach((v, i) => line.append(make("td", v, i < row.length - 1 ? { class: "name" } : {})));
      body.append(line);
    }
    part.append(make("h3", title), table);
    return part;
  }
  function histogram(c) {
    const width = 400, height = 130;
    if (!c.counts.length) return make("p", "No permutation was run.");
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height + 22}`, role: "img" });
    picture.append(svg("title", {}, `Null distribution from ${number(c.from)} to ${number(c.to)}; observed ${number(c.value)}`));
    const most = Math.max(...c.counts), step = width / c.counts.length;
    c.counts.forEach((n, i) => n && picture.append(svg("rect", { class: "null", x: i * step + 0.5, width: step - 1, y: height * (1 - n / most), height: (height * n) / most })));
    const x = (width * (c.value - c.from)) / (c.to - c.from || 1);
    picture.append(svg("line", { class: "axis", x1: 0, x2: width, y1: height, y2: height }), svg("line", { class: "observed", x1: x, x2: x, y1: 0, y2: height }));
    picture.append(svg("text", { x: 0, y: height + 15 }, number(c.from)), svg("text", { x: width, y: height + 15, "text-anchor": "end" }, number(c.to)));
    picture.append(svg("text", { x: Math.min(Math.max(x, 40), width - 40), y: 12, "text-anchor": x > width / 2 ? "end" : "start", dx: x > width / 2 ? -5 : 5 }, "observed"));
    return picture;
  }

  // ---- table
  const body = $("pairs").tBodies[0], lines = [...body.rows];
  const key = (line, column) => {
    const shown = line.cells[column].dataset.value ?? line.cells[column].textContent;
    return shown !== "" && !Number.isNaN(Number(shown)) ? Number(shown) : shown;
  };
  [...$("pairs").tHead.rows[0].cells].forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of $("pairs").tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
    lines.sort((a, b) => (down ? -1 : 1) * compare(key(a, column), key(b, column)));
    body.replaceChildren(...lines);
  }));
  function filter() {
    const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean), found = $("found").checked;
    let n = 0;
    for (const line of lines) {
      const text = line.textContent.toLowerCase();
      line.hidden = !words.every((w) => text.includes(w)) || (found && !(Number(line.dataset.adjusted) < 0.05));
      n += !line.hidden;
    }
    $("count").textContent = `${n} of ${lines.length} pairs`;
  }
  $("filter").addEventListener("input", filter);
  $("found").addEventListener("change", filter);
  body.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-cell]");
    if (!button) return;
    show(Number(button.dataset.cell), true);
    $("detail").scrollIntoView({ block: "nearest" });
    $("detail").focus();
  });

  // ---- export
  for (const [id, name, type] of [["csv", "atlas.csv", "text/csv"], ["json", "atlas.json", "application/json"]]) {
    $(id).addEventListener("click", () => {
      const link = make("a", null, { download: name, href: URL.createObjectURL(new Blob([data.exports[id]], { type })) });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }
  $("probe").addEventListener("change", drawMap);
  drawMap();
  filter();
  const asked = Number(location.hash.slice(1));
  show(location.hash && Number.isInteger(asked) && cells[asked] ? asked : data.first, false);
})();
