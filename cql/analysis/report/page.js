// Draws the maps over alpha from the numbers in #maps-data (cql/analysis/report/slider.py says what they are).
(() => {
  const element = id => document.getElementById(id);
  if (!element("maps-data")) return;
  const data = JSON.parse(element("maps-data").textContent);
  const sides = { exact: "exact solution", trained: "trained network" };
  const shown = { dataset: 0, position: 0, seed: null, quantity: "true", cell: data.start[0] || 0 };
  const has = Object.fromEntries(["hazard", "goal", "terminal", "start"].map(name => [name, new Set(data[name])]));
  const count = data.rows * data.columns;

  // ---------------------------------------------------------------------------------------------- numbers and words

  const words = x => (x === null || x === undefined) ? "–" : String(x).replace("-", "−");
  const difference = (a, b) => (a === null || b === null) ? null : Number((a - b).toPrecision(4));
  const digit = letter => parseInt(letter, 36);
  const dataset = () => data.draws[shown.dataset];
  const alphas = () => dataset().exact ? dataset().exact.alphas : data.alphas;
  const apart = (a, b) => a === b ? 0 : (a > 0 && b > 0) ? Math.abs(Math.log(a / b)) : Infinity;
  const closest = (values, alpha) => values.reduce((best, a) => apart(a, alpha) < apart(best, alpha) ? a : best);
  const rowOf = cell => Math.floor(cell / data.columns), columnOf = cell => cell % data.columns;

  function nearestTrained(alpha) {  // on the log scale; 0 is near to 0 alone
    const positive = data.alphas.filter(a => a > 0);
    return closest(data.alphas.includes(alpha) || !positive.length ? data.alphas : positive, alpha);
  }

  function entry(side) {  // the index of what a side shows, or -1
    if (!dataset()[side]) return -1;
    if (side === "exact") return shown.position;
    const { alphas: trained, seeds } = dataset().trained, wanted = nearestTrained(alphas()[shown.position]);
    return trained.findIndex((a, n) => a === wanted && seeds[n] === shown.seed);
  }

  function cellNumbers(side, n, cell) {
    const from = dataset()[side];
    const estimate = from.estimate[n][cell], value = from.true[n][cell];
    return { action: from.actions[n][cell], estimate, true: value, difference: difference(estimate, value),
             passing: Number((from.passing[n][cell] * data.step).toFixed(4)) };
  }

  function colour(quantity, value) {
    const { low, high, log, colours } = data.scales[quantity];
    if (value === null) return "#e4e4e4";
    if (log && value === 0) return "#ffffff";
    const t = log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    return colours[Math.round(Math.min(Math.max(t, 0), 1) * (colours.length - 1))];
  }

  // ----------------------------------------------------------------------------------------------------- the maps

  const FULL = { width: 1, height: 1 };
  const DISC = { cx: 0.5, cy: 0.5, r: 0.44, fill: "#ffffff", stroke: "#8f2000", "stroke-width": 0.05 };
  const LOOKS = {
    greedy: { fill: "#000000", stroke: "none", "stroke-width": 0 },
    ood: { fill: "#8f2000", stroke: "none", "stroke-width": 0 },
    unseen: { fill: "#ffffff", stroke: "#000000", "stroke-width": 0.05 },
  };
  const MARKS = {  // what stands in a cell for good
    terminal: [["rect", { ...FULL, fill: "#1a1a1a" }]],
    hazard: [["rect", { ...FULL, fill: "#1a1a1a" }],
             ["path", { d: "M.3 .3L.7 .7M.7 .3L.3 .7", stroke: "#ffffff", "stroke-width": 0.12 }]],
    goal: [["rect", { ...FULL, fill: "#ffffff" }],
           ["path", { d: STAR, transform: "translate(.5 .52)", fill: "#000000" }]],
    unseen: [["path", { d: "M0 1L1 0M0 .5L.5 0M.5 1L1 .5", stroke: "#4d4d4d", "stroke-width": 0.045 }]],
    start: [["rect", { x: 0.06, y: 0.06, width: 0.88, height: 0.88, fill: "none",
                       stroke: "#000000", "stroke-width": 0.1 }]],
  };
  const mark = (node, kind) => (MARKS[kind] || []).forEach(([name, attributes]) => make(name, attributes, node));

  function drawArrow(node, disc, action, kind) {
    disc.setAttribute("visibility", kind === "ood" ? "visible" : "hidden");
    if (action === null) return node.setAttribute("d", "");
    set(node, { ...arrowOf(data.moves[action]), ...LOOKS[kind] });
  }

  function build(side, look = cell => { shown.cell = cell; drawCell(); }) {
    const svg = element(`${side}-map`), cells = [];
    svg.setAttribute("viewBox", `0 0 ${data.columns} ${data.rows}`);
    for (let s = 0; s < count; s++) {
      const group = make("g", { transform: `translate(${columnOf(s)} ${rowOf(s)})` }, svg);
      const cell = { rect: make("rect", { ...FULL, stroke: "#ffffff", "stroke-width": 0.03 }, group) };
      cell.hatch = make("g", {}, group);
      mark(cell.hatch, "unseen");
      cell.disc = make("circle", DISC, group);
      cell.arrow = make("path", {}, group);
      if (has.terminal.has(s)) mark(group, has.goal.has(s) ? "goal" : has.hazard.has(s) ? "hazard" : "terminal");
      if (has.start.has(s)) mark(group, "start");
      cells.push(cell);
    }
    const cursor = make("rect", { ...FULL, fill: "none", stroke: "#00538a", "stroke-width": 0.16 }, svg);
    const select = cell => cell !== null && look(cell);
    svg.addEventListener("pointermove", event => select(cellUnder(event, svg, data)));
    svg.addEventListener("pointerdown", event => select(cellUnder(event, svg, data)));
    svg.addEventListener("keydown", event =>
      select(cellBeside(event, side === "snapshot" ? way.cell : shown.cell, data)));
    return { svg, cells, cursor };
  }

  const maps = Object.fromEntries(Object.keys(sides).map(side => [side, build(side)]));

  function drawMap(side) {
    const { svg, cells } = maps[side], n = entry(side), logged = dataset().logged;
    svg.dataset.alpha = n < 0 ? "" : dataset()[side].alphas[n];
    svg.style.visibility = n < 0 ? "hidden" : "visible";
    if (n < 0) return;
    cells.forEach(({ rect, hatch, disc, arrow }, s) => {
      const numbers = cellNumbers(side, n, s), unseen = logged[s] === "";
      const blank = unseen && ["estimate", "difference"].includes(shown.quantity);
      rect.setAttribute("fill", colour(shown.quantity, blank ? null : numbers[shown.quantity]));
      hatch.setAttribute("visibility", unseen ? "visible" : "hidden");
      const action = has.terminal.has(s) || numbers.action === "." ? null : digit(numbers.action);
      const kind = logged[s].includes(numbers.action) ? "greedy" : "ood";
      drawArrow(arrow, disc, action, action === null || unseen ? "unseen" : kind);
      arrow.setAttribute("data-action", action === null ? "" : action);
    });
  }

  function title(side) {
    const n = entry(side), alpha = alphas()[shown.position];
    if (side === "exact") return n < 0 ? "No exact solution" : `Exact solution, α ${alpha ? "= " + alpha : "→ 0"}`;
    if (!dataset().trained) return "No trained policy on this data set";
    const wanted = nearestTrained(alpha);
    const near = `Trained network, α = ${wanted}` + (wanted === alpha ? "" : " (the nearest trained)");
    if (n < 0) return `${near}: no policy, its values are not finite`;
    return near + (dataset().trained.diverged[n] ? `: diverged (${dataset().trained.diverged[n]})` : "");
  }

  // ----------------------------------------------------------------------------------------------- what stands around

  function row(id, texts) {
    element(id).replaceChildren(...texts.map((text, n) => {
      const cell = document.createElement(n ? "td" : "th");
      if (!n) cell.scope = "row";
      cell.textContent = text;
      return cell;
    }));
  }

  function drawNumbers(side) {
    const n = entry(side), from = dataset()[side];
    const at = column => n < 0 || !from[column] ? null : from[column][n];
    const [estimate, value] = [at("estimateAtStart"), at("trueAtStart")];
    const numbers = [at("return"), at("hazard"), estimate, value, difference(estimate, value)];
    row(`${side}-numbers`, [sides[side], ...numbers.map(words)]);
  }

  function actionName(letter) {
    if (letter === ".") return "any";
    const names = { "-1,0": "↑ up", "1,0": "↓ down", "0,-1": "← left", "0,1": "→ right" };
    return data.names ? data.names[digit(letter)] : names[data.moves[digit(letter)].join()] || letter;
  }

  function drawCell() {
    const s = shown.cell, kind = ["hazard", "goal", "start"].filter(name => has[name].has(s));
    if (dataset().logged[s] === "" && !has.terminal.has(s)) kind.push("no data");
    element("cell-name").textContent = `Row ${rowOf(s) + 1}, column ${columnOf(s) + 1}`
      + (kind.length ? ` (${kind.join(", ")})` : "");
    for (const side of Object.keys(sides)) {
      const n = entry(side), ended = has.terminal.has(s);
      maps[side].cursor.setAttribute("transform", `translate(${columnOf(s)} ${rowOf(s)})`);
      const numbers = n < 0 ? {} : cellNumbers(side, n, s);
      const values = ended ? [null, null, null] : [numbers.estimate, numbers.true, numbers.difference];
      row(`${side}-cell`, [sides[side], n < 0 || ended ? "–" : actionName(numbers.action), ...values.map(words),
                           words(numbers.passing)]);
    }
  }

  function drawLegend(id = "legend", quantity = shown.quantity) {
    const svg = element(id), { low, high, log, colours, words: meaning } = data.scales[quantity];
    const inner = Math.max(svg.clientWidth, 200) - 60, width = inner / colours.length;
    svg.replaceChildren();
    colours.forEach((fill, k) => make("rect", { x: 30 + width * k, y: 2, width: width + 0.6, height: 16, fill }, svg));
    for (let k = 0; k <= 4; k++) {
      const value = log ? low * (high / low) ** (k / 4) : low + (high - low) * k / 4;
      const text = make("text", { x: 30 + inner * k / 4, y: 36, "text-anchor": "middle" }, svg);
      text.textContent = (k === 0 ? "≤ " : k === 4 && quantity !== "passing" ? "≥ " : "") + words(Number(value.toPrecision(2)));
    }
    element(`${id}-words`).textContent = meaning;
  }

  function drawStrip() {  // return and hazard over the positions of the slider, with what is shown now
    const svg = element("strip"), positions = alphas(), width = Math.max(svg.clientWidth, 240);
    const x = n => 8 + (width - 16) * (positions.length > 1 ? n / (positions.length - 1) : 0.5);
    const now = x(shown.position);
    svg.replaceChildren();
    make("line", { x1: now, x2: now, y1: 0, y2: 164, stroke: "#00538a", "stroke-width": 2 }, svg);
    drawStripCurve(svg, x, "return", "return of the greedy policy", 0);
    drawStripCurve(svg, x, "hazard", "hazard probability", 82);
    let last = -Infinity;
    positions.forEach((alpha, n) => {  // decades, as far as there is space for them
      const round = alpha === 0 || Math.abs(Math.log10(alpha) - Math.round(Math.log10(alpha))) < 1e-9;
      if (!round || x(n) - last < 30) return;
      last = x(n);
      make("line", { x1: x(n), x2: x(n), y1: 162, y2: 167, stroke: "#4d4d4d" }, svg);
      const anchor = x(n) < 20 ? "start" : x(n) > width - 20 ? "end" : "middle";
      make("text", { x: x(n), y: 180, "text-anchor": anchor }, svg).textContent = alpha;
    });
  }

  function drawStripCurve(svg, x, name, label, top) {  // the exact numbers as a line, the trained ones as points
    const { exact, trained } = dataset(), curve = exact && exact[name] || [];
    const dots = !(trained && trained[name]) ? [] : trained[name]
      .map((y, n) => [alphas().indexOf(trained.alphas[n]), y, trained.seeds[n]])
      .filter(([n, , seed]) => n >= 0 && seed === shown.seed);
    const values = dots.map(dot => dot[1]).filter(value => value !== null), framed = curve.length ? curve : values;
    if (!framed.length) return;
    let [low, high] = [Math.min(...framed), Math.max(...framed)];
    const reach = Math.max(high - low, 1e-3);
    const near = values.filter(value => low - reach <= value && value <= high + reach);
    [low, high] = [Math.min(low, ...near), Math.max(high, ...near)];
    const share = value => high > low ? Math.min(Math.max((value - low) / (high - low), -0.1), 1.1) : 0.5;
    const y = value => top + 76 - 44 * share(value);
    if (curve.length) {
      const points = curve.map((value, n) => `${x(n)},${y(value)}`).join(" ");
      make("polyline", { points, fill: "none", stroke: "#222222", "stroke-width": 1.5 }, svg);
    }
    dots.forEach(([n, value]) => {  // beyond the frame: a triangle that points there
      const far = value < low ? 1 : value > high ? -1 : 0, look = { fill: "#0072b2", stroke: "#ffffff" };
      if (!far) make("circle", { cx: x(n), cy: y(value), r: 4, ...look }, svg);
      else make("path", { d: `M${x(n) - 5} ${y(value) - 4 * far}h10l-5 ${9 * far}Z`, ...look }, svg);
    });
    make("text", { x: 8, y: top + 12 }, svg).textContent =
      `${label}, ${words(Number(low.toPrecision(3)))} to ${words(Number(high.toPrecision(3)))}`;
  }

  function redraw() {
    const alpha = alphas()[shown.position];
    element("alpha").value = shown.position;
    element("alpha").setAttribute("aria-valuetext", `alpha ${alpha}`);
    element("alpha-shown").textContent = alpha === 0 && dataset().exact ? "0 (exact: the limit)" : String(alpha);
    for (const side of Object.keys(sides)) {
      element(`${side}-title`).textContent = title(side);
      drawMap(side);
      drawNumbers(side);
    }
    drawCell();
    drawLegend();
    drawStrip();
  }

  // ----------------------------------------------------------------------------- the slider over updates, if it is kept

  const way = { entry: 0, cell: shown.cell, quantity: "estimate", map: null };

  function drawWay() {
    const { updates, q, distance: distances, returns, logged, member } = data.snapshots, n = way.entry;
    const { svg, cells, cursor } = way.map, actions = data.moves.length;
    const numbers = s => q[n].slice(s * actions, (s + 1) * actions);
    element("update").value = n;
    element("update").setAttribute("aria-valuetext", `${updates[n]} updates`);
    element("update-shown").textContent = updates[n].toLocaleString("en");
    element("snapshot-title").textContent = `${member} after ${updates[n].toLocaleString("en")} updates`
      + (returns && returns[n] !== null ? `: exact return ${words(returns[n])}` : "");
    svg.dataset.update = updates[n];
    cells.forEach(({ rect, hatch, disc, arrow }, s) => {
      const values = numbers(s).map(x => x === null ? -Infinity : x), best = Math.max(...values);
      const unseen = logged[s] === "", action = has.terminal.has(s) || best === -Infinity ? null : values.indexOf(best);
      const value = unseen ? null : way.quantity === "distance" ? distances[n][s] : best === -Infinity ? null : best;
      rect.setAttribute("fill", colour(way.quantity, value));
      hatch.setAttribute("visibility", unseen && !has.terminal.has(s) ? "visible" : "hidden");
      const known = action !== null && [...logged[s]].some(letter => digit(letter) === action);
      drawArrow(arrow, disc, action, action === null || unseen ? "unseen" : known ? "greedy" : "ood");
    });
    cursor.setAttribute("transform", `translate(${columnOf(way.cell)} ${rowOf(way.cell)})`);
    element("snapshot-cell-name").textContent = `Row ${rowOf(way.cell) + 1}, column ${columnOf(way.cell) + 1}`;
    row("snapshot-numbers", ["Q", ...numbers(way.cell).map(words), words(distances && distances[n][way.cell])]);
    drawLegend("snapshot-legend", way.quantity);
  }

  if (data.snapshots && element("update")) {
    way.map = build("snapshot", cell => { way.cell = cell; drawWay(); });
    way.entry = data.snapshots.updates.length - 1;
    element("update").max = way.entry;
    document.querySelectorAll("#snapshot-cell [data-action]").forEach(head => {
      head.textContent = actionName(Number(head.dataset.action).toString(36));
    });
    element("update-controls").addEventListener("submit", event => event.preventDefault());
    element("update").addEventListener("input", ({ target }) => { way.entry = Number(target.value); drawWay(); });
    element("update-quantity").addEventListener("change", ({ target }) => { way.quantity = target.value; drawWay(); });
    window.addEventListener("resize", drawWay);
    drawWay();
  }

  // ----------------------------------------------------------------------------------------------------- controls

  function fillOptions(id, values, chosen) {
    element(id).replaceChildren(...values.map(value => new Option(value, value, false, value === chosen)));
    element(id).parentElement.hidden = values.length < 2;
  }

  function choose(index, alpha, seed) {  // a data set, the slider's position nearest to an alpha, a training seed
    shown.dataset = index;
    shown.position = alphas().indexOf(closest(alphas(), alpha));
    const seeds = dataset().trained ? [...new Set(dataset().trained.seeds)] : [];
    shown.seed = [seed, shown.seed, ...seeds].find(known => seeds.includes(known)) ?? null;
    fillOptions("draw", data.draws.map(d => d.seed), dataset().seed);
    fillOptions("seed", seeds, shown.seed);
    element("alpha").max = alphas().length - 1;
    redraw();
  }

  function follow() {  // #alpha=6&draw=43&seed=42&quantity=passing&cell=17
    const asked = new URLSearchParams(location.hash.slice(1));
    const index = data.draws.findIndex(d => String(d.seed) === asked.get("draw"));
    const number = (name, otherwise) =>
      asked.has(name) && Number(asked.get(name)) >= 0 ? Number(asked.get(name)) : otherwise;
    if (Object.hasOwn(data.scales, asked.get("quantity"))) shown.quantity = asked.get("quantity");
    if (number("cell", -1) in maps.exact.cells) shown.cell = number("cell");
    element("quantity").value = shown.quantity;
    choose(index >= 0 ? index : shown.dataset, number("alpha", alphas()[shown.position]), number("seed", shown.seed));
  }

  function on(id, event, action) {
    element(id).addEventListener(event, ({ target }) => {
      action(target.value);
      redraw();
    });
  }

  element("controls").addEventListener("submit", event => event.preventDefault());
  on("alpha", "input", value => { shown.position = Number(value); });
  on("quantity", "change", value => { shown.quantity = value; });
  on("seed", "change", value => { shown.seed = Number(value); });
  on("draw", "change", value =>
    choose(data.draws.findIndex(d => String(d.seed) === value), alphas()[shown.position], shown.seed));
  document.querySelectorAll("[data-symbol]").forEach(svg => {
    const kind = svg.dataset.symbol;
    mark(svg, kind);
    if (!(kind in LOOKS) || !data.moves.length) return;
    const disc = make("circle", DISC, svg);
    drawArrow(make("path", {}, svg), disc, data.moves.length - 1, kind);
  });
  window.addEventListener("resize", redraw);
  window.addEventListener("hashchange", follow);
  shown.position = alphas().indexOf(closest(alphas(), data.first));
  follow();
})();
