"use strict";
// Draws the maps over alpha from the numbers in #maps-data (cql/analysis/report_data.py says what they are).
(() => {
  const element = id => document.getElementById(id);
  if (!element("maps-data")) return;
  const data = JSON.parse(element("maps-data").textContent);
  const sides = ["exact", "trained"];
  const shown = { draw: 0, position: 0, seed: null, quantity: "true", cell: data.start[0] || 0 };
  const has = Object.fromEntries(["hazard", "goal", "terminal", "start"].map(name => [name, new Set(data[name])]));
  const count = data.rows * data.columns;

  // ---------------------------------------------------------------------------------------------- numbers and words

  const words = x => (x === null || x === undefined) ? "–" : String(x).replace("-", "−");
  const difference = (a, b) => (a === null || b === null) ? null : Number((a - b).toPrecision(4));
  const digit = letter => parseInt(letter, 36);
  const draw = () => data.draws[shown.draw];
  const alphas = () => draw().exact ? draw().exact.alphas : data.alphas;
  const apart = (a, b) => a === b ? 0 : (a > 0 && b > 0) ? Math.abs(Math.log(a / b)) : Infinity;

  function nearest(alpha) {  // of the trained ones, on the log scale; 0 is near to 0 alone
    const positive = data.alphas.filter(a => a > 0);
    const choice = data.alphas.includes(alpha) ? [alpha] : positive.length ? positive : data.alphas;
    return choice.reduce((best, a) => apart(a, alpha) < apart(best, alpha) ? a : best);
  }

  function entry(side) {  // the index of what a side shows, or -1
    const alpha = alphas()[shown.position];
    if (!draw()[side]) return -1;
    if (side === "exact") return shown.position;
    const { alphas: trained, seeds } = draw().trained, wanted = nearest(alpha);
    return trained.findIndex((a, n) => a === wanted && seeds[n] === shown.seed);
  }

  function cellNumbers(side, n, cell) {
    const from = draw()[side];
    const estimate = from.estimate[n][cell], value = from.true[n][cell];
    return { action: from.actions[n][cell], estimate, true: value, difference: difference(estimate, value),
             passing: Number((from.passing[n][cell] * data.step).toFixed(4)) };
  }

  // ----------------------------------------------------------------------------------------------------- colours

  function mixed(colours, t) {
    const place = Math.min(Math.max(t, 0), 1) * (colours.length - 1), low = Math.min(Math.floor(place), colours.length - 2);
    const channels = [1, 3, 5].map(k => {
      const [a, b] = [0, 1].map(n => parseInt(colours[low + n].slice(k, k + 2), 16));
      return Math.round(a + (b - a) * (place - low));
    });
    return `rgb(${channels.join(",")})`;
  }

  function scaled(quantity, value) {  // to 0 ... 1
    const { low, high, log } = data.scales[quantity];
    return log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  }

  function colour(quantity, value) {
    if (value === null) return "#e4e4e4";
    if (data.scales[quantity].log && value === 0) return "#ffffff";
    return mixed(data.scales[quantity].colours, scaled(quantity, value));
  }

  // ----------------------------------------------------------------------------------------------------- the maps

  function make(name, attributes, parent) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    set(made, attributes);
    if (parent) parent.append(made);
    return made;
  }

  function set(node, attributes) {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  }

  const ARROW = "M-.36 -.07H.04V-.22L.38 0L.04 .22V.07H-.36Z", REST = "M-.17 0a.17 .17 0 1 0 .34 0a.17 .17 0 1 0 -.34 0Z";
  const STAR = "M0 -.4L.095 -.13L.38 -.124L.153 .05L.235 .324L0 .16L-.235 .324L-.153 .05L-.38 -.124L-.095 -.13Z";
  const looks = {
    greedy: { fill: "#000000", stroke: "none" },
    unsupported: { fill: "#8f2000", stroke: "none" },
    unseen: { fill: "#ffffff", stroke: "#000000", "stroke-width": 0.05 },
  };

  function mark(node, kind) {  // what stands in a cell for good
    if (kind === "hazard" || kind === "terminal") make("rect", { width: 1, height: 1, fill: "#1a1a1a" }, node);
    if (kind === "hazard") make("path", { d: "M.3 .3L.7 .7M.7 .3L.3 .7", stroke: "#ffffff", "stroke-width": 0.12 }, node);
    if (kind === "goal") {
      make("rect", { width: 1, height: 1, fill: "#ffffff" }, node);
      make("path", { d: STAR, transform: "translate(.5 .52)", fill: "#000000" }, node);
    }
    if (kind === "unseen") make("path", { d: "M0 1L1 0M0 .5L.5 0M.5 1L1 .5", stroke: "#4d4d4d", "stroke-width": 0.045 }, node);
    if (kind === "start") make("rect", { x: 0.06, y: 0.06, width: 0.88, height: 0.88, fill: "none", stroke: "#000000", "stroke-width": 0.1 }, node);
  }

  function arrow(node, disc, action, kind) {
    disc.setAttribute("visibility", kind === "unsupported" ? "visible" : "hidden");
    if (action === null) {
      node.setAttribute("d", "");
      return;
    }
    const [down, right] = data.moves[action], angle = Math.atan2(down, right) * 180 / Math.PI;
    set(node, { d: down || right ? ARROW : REST, transform: `translate(.5 .5) rotate(${angle})`, ...looks[kind] });
    if (kind !== "unseen") node.removeAttribute("stroke-width");
  }

  function build(side) {
    const svg = element(`${side}-map`);
    svg.setAttribute("viewBox", `0 0 ${data.columns} ${data.rows}`);
    const cells = [];
    for (let s = 0; s < count; s++) {
      const group = make("g", { transform: `translate(${s % data.columns} ${Math.floor(s / data.columns)})` }, svg);
      const cell = { rect: make("rect", { width: 1, height: 1, stroke: "#ffffff", "stroke-width": 0.03 }, group) };
      cell.hatch = make("g", {}, group);
      mark(cell.hatch, "unseen");
      cell.disc = make("circle", { cx: 0.5, cy: 0.5, r: 0.44, fill: "#ffffff", stroke: "#8f2000", "stroke-width": 0.05 }, group);
      cell.arrow = make("path", {}, group);
      if (has.terminal.has(s)) mark(group, has.goal.has(s) ? "goal" : has.hazard.has(s) ? "hazard" : "terminal");
      if (has.start.has(s)) mark(group, "start");
      cells.push(cell);
    }
    const cursor = make("rect", { width: 1, height: 1, fill: "none", stroke: "#00538a", "stroke-width": 0.16 }, svg);
    const point = event => {
      const box = svg.getBoundingClientRect(), size = Math.min(box.width / data.columns, box.height / data.rows);
      const column = Math.floor((event.clientX - box.left - (box.width - size * data.columns) / 2) / size);
      const row = Math.floor((event.clientY - box.top - (box.height - size * data.rows) / 2) / size);
      if (row >= 0 && row < data.rows && column >= 0 && column < data.columns) choose(row * data.columns + column);
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("keydown", event => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const row = Math.floor(shown.cell / data.columns) + step[0], column = shown.cell % data.columns + step[1];
      if (row >= 0 && row < data.rows && column >= 0 && column < data.columns) choose(row * data.columns + column);
    });
    return { svg, cells, cursor };
  }

  const boards = Object.fromEntries(sides.map(side => [side, build(side)]));

  function drawMap(side) {
    const { svg, cells } = boards[side], n = entry(side), logged = draw().logged;
    svg.dataset.alpha = n < 0 ? "" : draw()[side].alphas[n];
    svg.style.visibility = n < 0 ? "hidden" : "visible";
    if (n < 0) return;
    for (let s = 0; s < count; s++) {
      const { rect, hatch, disc, arrow: node } = cells[s], unseen = logged[s] === "";
      const numbers = cellNumbers(side, n, s), blank = unseen && ["estimate", "difference"].includes(shown.quantity);
      rect.setAttribute("fill", colour(shown.quantity, blank ? null : numbers[shown.quantity]));
      hatch.setAttribute("visibility", unseen ? "visible" : "hidden");
      const action = has.terminal.has(s) || numbers.action === "." ? null : digit(numbers.action);
      arrow(node, disc, action, action === null || unseen ? "unseen" : logged[s].includes(numbers.action) ? "greedy" : "unsupported");
      node.setAttribute("data-action", action === null ? "" : action);
    }
  }

  function title(side) {
    const n = entry(side), alpha = alphas()[shown.position];
    if (side === "exact") return n < 0 ? "No exact solution" : `Exact solution, α ${alpha === 0 ? "→ 0" : "= " + alpha}`;
    if (!draw().trained) return "No trained policy on this draw";
    const wanted = nearest(alpha), near = `Trained network, α = ${wanted}` + (wanted === alpha ? "" : " (the nearest trained)");
    if (n < 0) return `${near}: no policy, its values are not finite`;
    return near + (draw().trained.diverged[n] ? `: diverged (${draw().trained.diverged[n]})` : "");
  }

  // ----------------------------------------------------------------------------------------------- what stands around

  function row(id, cells) {
    const [first, ...others] = cells, head = document.createElement("th");
    head.scope = "row";
    head.textContent = first;
    element(id).replaceChildren(head, ...others.map(text => {
      const cell = document.createElement("td");
      cell.textContent = text;
      return cell;
    }));
  }

  function drawNumbers(side) {
    const n = entry(side), from = draw()[side], name = side === "exact" ? "exact solution" : "trained network";
    const at = column => n < 0 || !from[column] ? null : from[column][n];
    const [estimate, value] = [at("estimateAtStart"), at("trueAtStart")];
    row(`${side}-numbers`, [name, ...[at("return"), at("hazard"), estimate, value, difference(estimate, value)].map(words)]);
  }

  function actionName(letter) {
    if (letter === ".") return "any";
    const [down, right] = data.moves[digit(letter)];
    return { "-1,0": "↑ up", "1,0": "↓ down", "0,-1": "← left", "0,1": "→ right" }[`${down},${right}`] || letter;
  }

  function drawCell() {
    const s = shown.cell, kind = ["hazard", "goal", "start"].filter(name => has[name].has(s));
    if (draw().logged[s] === "" && !has.terminal.has(s)) kind.push("no data");
    element("cell-name").textContent = `Row ${Math.floor(s / data.columns) + 1}, column ${s % data.columns + 1}`
      + (kind.length ? ` (${kind.join(", ")})` : "");
    for (const side of sides) {
      const n = entry(side), name = side === "exact" ? "exact solution" : "trained network";
      boards[side].cursor.setAttribute("transform", `translate(${s % data.columns} ${Math.floor(s / data.columns)})`);
      if (n < 0) {
        row(`${side}-cell`, [name, "–", "–", "–", "–", "–"]);
        continue;
      }
      const found = cellNumbers(side, n, s), ended = has.terminal.has(s);
      const numbers = ended ? [null, null, null] : [found.estimate, found.true, found.difference];
      row(`${side}-cell`, [name, ended ? "–" : actionName(found.action), ...numbers.map(words), words(found.passing)]);
    }
  }

  function choose(cell) {
    shown.cell = cell;
    drawCell();
  }

  function drawLegend() {
    const svg = element("legend"), { low, high, log, colours, words: meaning } = data.scales[shown.quantity];
    const width = Math.max(svg.clientWidth, 200), inner = width - 60;
    svg.replaceChildren();
    for (let k = 0; k < 64; k++) {
      make("rect", { x: 30 + inner * k / 64, y: 2, width: inner / 64 + 0.6, height: 16, fill: mixed(colours, k / 63) }, svg);
    }
    for (let k = 0; k <= 4; k++) {
      const value = log ? low * (high / low) ** (k / 4) : low + (high - low) * k / 4;
      const text = make("text", { x: 30 + inner * k / 4, y: 36, "text-anchor": "middle" }, svg);
      text.textContent = (k === 0 ? "≤ " : k === 4 && !log ? "≥ " : "") + words(Number(value.toPrecision(2)));
    }
    element("legend-words").textContent = meaning;
  }

  function drawStrip() {  // return and hazard over the slider's places, with what is shown now
    const svg = element("strip"), places = alphas(), width = Math.max(svg.clientWidth, 240), left = 8, right = 8;
    const x = n => left + (width - left - right) * (places.length > 1 ? n / (places.length - 1) : 0.5);
    svg.replaceChildren();
    make("line", { x1: x(shown.position), x2: x(shown.position), y1: 0, y2: 164, stroke: "#00538a", "stroke-width": 2 }, svg);
    [["return", "return of the greedy policy", 0], ["hazard", "hazard probability", 82]].forEach(([name, label, top]) => {
      const exact = draw().exact && draw().exact[name], trained = draw().trained && draw().trained[name];
      const dots = !trained ? [] : trained.map((y, n) => [places.indexOf(draw().trained.alphas[n]), y, draw().trained.seeds[n]])
        .filter(([n, , seed]) => n >= 0 && seed === shown.seed);
      const [inner, outer] = [exact || [], dots.map(dot => dot[1]).filter(value => value !== null)];
      if (!inner.length && !outer.length) return;
      let [low, high] = [Math.min(...(inner.length ? inner : outer)), Math.max(...(inner.length ? inner : outer))];
      const reach = Math.max(high - low, 1e-3), near = outer.filter(value => low - reach <= value && value <= high + reach);
      [low, high] = [Math.min(low, ...near), Math.max(high, ...near)];
      const y = value => top + 76 - 44 * (high > low ? Math.min(Math.max((value - low) / (high - low), -0.1), 1.1) : 0.5);
      if (exact) {
        make("polyline", { points: exact.map((value, n) => `${x(n)},${y(value)}`).join(" "), fill: "none", stroke: "#222222",
                           "stroke-width": 1.5 }, svg);
      }
      dots.forEach(([n, value]) => {  // beyond the frame: a triangle that points there
        const far = value < low ? 1 : value > high ? -1 : 0, at = { fill: "#0072b2", stroke: "#ffffff" };
        if (!far) make("circle", { cx: x(n), cy: y(value), r: 4, ...at }, svg);
        else make("path", { d: `M${x(n) - 5} ${y(value) - 4 * far}h10l-5 ${9 * far}Z`, ...at }, svg);
      });
      make("text", { x: left, y: top + 12 }, svg).textContent =
        `${label}, ${words(Number(low.toPrecision(3)))} to ${words(Number(high.toPrecision(3)))}`;
    });
    let last = -Infinity;
    places.forEach((alpha, n) => {
      const round = alpha === 0 || Math.abs(Math.log10(alpha) - Math.round(Math.log10(alpha))) < 1e-9;
      if (!round || x(n) - last < 30) return;
      last = x(n);
      make("line", { x1: x(n), x2: x(n), y1: 162, y2: 167, stroke: "#4d4d4d" }, svg);
      const anchor = x(n) < 20 ? "start" : x(n) > width - 20 ? "end" : "middle";
      make("text", { x: x(n), y: 180, "text-anchor": anchor }, svg).textContent = alpha;
    });
  }

  function redraw() {
    const alpha = alphas()[shown.position], text = alpha === 0 && draw().exact ? "0 (exact: the limit)" : String(alpha);
    element("alpha").value = shown.position;
    element("alpha").setAttribute("aria-valuetext", `alpha ${alpha}`);
    element("alpha-shown").textContent = text;
    for (const side of sides) {
      element(`${side}-title`).textContent = title(side);
      drawMap(side);
      drawNumbers(side);
    }
    drawCell();
    drawStrip();
  }

  // ----------------------------------------------------------------------------------------------------- controls

  function options(id, values, chosen) {
    element(id).replaceChildren(...values.map(value => new Option(value, value, false, value === chosen)));
    element(id).parentElement.hidden = values.length < 2;
  }

  function fillSeeds() {
    const seeds = draw().trained ? [...new Set(draw().trained.seeds)] : [];
    if (!seeds.includes(shown.seed)) shown.seed = seeds.length ? seeds[0] : null;
    options("seed", seeds, shown.seed);
    element("alpha").max = alphas().length - 1;
  }

  function place(alpha) {  // the slider's place nearest to an alpha
    return alphas().reduce((best, a, n) => apart(a, alpha) < apart(alphas()[best], alpha) ? n : best, 0);
  }

  function follow() {  // #alpha=6&draw=43&seed=42&quantity=passing&cell=17
    const asked = new URLSearchParams(location.hash.slice(1));
    const index = data.draws.findIndex(d => String(d.seed) === asked.get("draw"));
    if (index >= 0) shown.draw = index;
    fillSeeds();
    const seed = Number(asked.get("seed"));
    if (asked.has("seed") && draw().trained && draw().trained.seeds.includes(seed)) shown.seed = seed;
    if (Object.hasOwn(data.scales, asked.get("quantity"))) shown.quantity = asked.get("quantity");
    if (asked.has("alpha") && Number(asked.get("alpha")) >= 0) shown.position = place(Number(asked.get("alpha")));
    if (asked.has("cell") && Number(asked.get("cell")) in boards.exact.cells) shown.cell = Number(asked.get("cell"));
    options("draw", data.draws.map(d => d.seed), draw().seed);
    fillSeeds();
    element("quantity").value = shown.quantity;
    drawLegend();
    redraw();
  }

  element("controls").addEventListener("submit", event => event.preventDefault());
  element("alpha").addEventListener("input", event => {
    shown.position = Number(event.target.value);
    redraw();
  });
  element("quantity").addEventListener("change", event => {
    shown.quantity = event.target.value;
    drawLegend();
    redraw();
  });
  element("draw").addEventListener("change", event => {
    const alpha = alphas()[shown.position];
    shown.draw = data.draws.findIndex(d => String(d.seed) === event.target.value);
    fillSeeds();
    shown.position = place(alpha);
    redraw();
  });
  element("seed").addEventListener("change", event => {
    shown.seed = Number(event.target.value);
    redraw();
  });
  document.querySelectorAll("[data-symbol]").forEach(svg => {
    const kind = svg.dataset.symbol;
    mark(svg, kind);
    if (kind in looks && data.moves.length) {
      const disc = make("circle", { cx: 0.5, cy: 0.5, r: 0.44, fill: "#ffffff", stroke: "#8f2000", "stroke-width": 0.05 }, svg);
      arrow(make("path", {}, svg), disc, data.moves.length - 1, kind);
    }
  });
  window.addEventListener("resize", () => {
    drawLegend();
    drawStrip();
  });
  window.addEventListener("hashchange", follow);
  shown.position = place(data.first);
  follow();
})();
