// The pictures: the map and the curve over alpha, on canvases in the colours of the style sheet.
import { A } from "./world.js";
import { HIGHEST, LOWEST } from "./curve.js";

const SHOWN = 0.005; // a number below rounds to 0.00
const NARROW = 0.14; // decades between the end of the curve and the limit beside it, which lies three times as far

/** A canvas in CSS pixels, cleared: { context, width, height }. */
function prepared(canvas, height) {
  const width = canvas.clientWidth,
    ratio = window.devicePixelRatio || 1,
    context = canvas.getContext("2d");
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** The colours of the style sheet, by name. */
export function palette() {
  const style = getComputedStyle(document.documentElement);
  return new Proxy({}, { get: (_, name) => style.getPropertyValue(`--${name}`).trim() });
}

function channels(colour) {
  return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
}

/** The colour this far from one to the other, as #rrggbb. */
function between(from, to, share) {
  const [one, other] = [channels(from), channels(to)],
    x = Math.min(1, Math.max(0, share));
  const mixed = one.map((c, i) => Math.round(c + (other[i] - c) * x));
  return "#" + mixed.map((c) => c.toString(16).padStart(2, "0")).join("");
}

/** Black or white, whichever stands out on a colour. */
function inkOn(colour) {
  const [r, g, b] = channels(colour).map((c) => (c / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.2 ? "#14171b" : "#ffffff";
}

/**
 * The colours of a view: a function of the number, its two ends, and whether numbers beyond them are drawn as the ends.
 *
 * Differences end where 95 % of the cells lie: a few large ones would leave the others without colour.
 */
export function scaleOf(view, numbers, colours) {
  const finite = Array.from(numbers).filter(Number.isFinite);
  const { cell, low, high, much, path } = colours;
  if (view === "policy") {
    const most = Math.max(1, ...finite),
      share = (n) => (n > 0 ? 0.15 + (0.85 * Math.log1p(n)) / Math.log1p(most) : 0);
    return { low: 0, high: most, colour: (n) => between(cell, much, share(n)) };
  }
  if (view === "passing") {
    const share = (x) => (x > 0.001 ? 0.08 + 0.92 * (1 + Math.log10(x) / 3) : 0);
    return { low: 0.001, high: 1, colour: (x) => between(cell, path, share(x)) };
  }
  const signed = (x) => (x < 0 ? between(cell, low, -x) : between(cell, high, x));
  if (view === "softmax") return { low: -1, high: 1, colour: (x) => signed(Math.sign(x) * Math.sqrt(Math.abs(x))) };
  const sizes = finite.map(Math.abs).sort((a, b) => a - b),
    most = sizes.at(-1) || 0,
    share = view === "difference" || view === "trained" ? sizes[Math.ceil(0.95 * sizes.length) - 1] : most,
    reach = share >= SHOWN ? share : Math.max(most, SHOWN);
  return {
    low: -reach,
    high: reach,
    clipped: most > reach,
    empty: most < SHOWN,
    colour: (x) => signed(x / reach),
  };
}

/** Draws the map. scene: { world, data, view, numbers, scale, actions, ood, cursor }. */
export function drawMap(canvas, scene) {
  const { world, data, view, numbers, scale, actions, ood, cursor } = scene,
    { rows, columns } = world;
  const side = Math.max(8, Math.floor(Math.min(canvas.clientWidth / columns, 620 / rows, 96)));
  const { context, width } = prepared(canvas, side * rows + 2),
    colours = palette();
  const left = Math.floor((width - side * columns) / 2),
    box = (s) => [left + (s % columns) * side, 1 + Math.floor(s / columns) * side];
  for (let s = 0; s < world.S; s++) {
    const [x, y] = box(s),
      middle = [x + side / 2, y + side / 2];
    if (world.hazard[s] || world.goal[s]) {
      const { colour, ink, letter } = world.goal[s]
        ? { colour: colours.goal, ink: "#ffffff", letter: "★" }
        : world.harmless
          ? { colour: colours.cell, ink: colours.ink, letter: String(world.rewards.hazard) }
          : { colour: colours.hazard, ink: colours["on-hazard"], letter: "×" };
      context.fillStyle = colour;
      context.fillRect(x, y, side, side);
      mark(context, letter, middle, side, ink);
      continue;
    }
    const split = view === "softmax" && data.seen[s],
      coloured = !split && (data.seen[s] || view === "passing" || view === "truth") && Number.isFinite(numbers[s]);
    const fill = coloured ? scale.colour(numbers[s]) : colours.cell;
    context.fillStyle = fill;
    context.fillRect(x, y, side, side);
    if (split) triangles(context, x, y, side, [0, 1, 2, 3].map((a) => scale.colour(numbers[s * A + a])));
    if (!data.seen[s]) hatch(context, x, y, side, colours.hatch);
    if (s === world.start) stroke(context, circle(...middle, side * 0.4), inkOn(fill), Math.max(1.5, side / 22));
    if (ood[s]) disc(context, ...middle, side * 0.42, colours.card);
    const ink = ood[s] ? colours.ood : view === "softmax" ? colours.ink : inkOn(fill);
    if (actions[s] >= 0) arrow(context, middle, side, actions[s], ink, ood[s]);
    else if (data.seen[s] || view === "passing") disc(context, ...middle, Math.max(1, side * 0.06), colours.quiet);
  }
  for (let i = 0; i <= columns; i++) line(context, left + i * side, 1, left + i * side, 1 + rows * side, colours.grid);
  for (let i = 0; i <= rows; i++) line(context, left, 1 + i * side, left + columns * side, 1 + i * side, colours.grid);
  const [x, y] = box(cursor),
    frame = new Path2D(`M${x + 1} ${y + 1}h${side - 2}v${side - 2}h${2 - side}Z`);
  stroke(context, frame, colours.paper, 5);
  stroke(context, frame, colours.accent, 3);
  canvas.cellAt = (px, py) => {
    const column = Math.floor((px - left) / side),
      row = Math.floor((py - 1) / side);
    return column >= 0 && column < columns && row >= 0 && row < rows ? row * columns + column : null;
  };
}

function stroke(context, path, colour, width = 1) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke(path);
}

function circle(x, y, radius) {
  const path = new Path2D();
  path.arc(x, y, radius, 0, 2 * Math.PI);
  return path;
}

function disc(context, x, y, radius, colour) {
  context.fillStyle = colour;
  context.fill(circle(x, y, radius));
}

function mark(context, letter, [x, y], side, colour) {
  context.fillStyle = colour;
  context.font = `600 ${Math.round(side * 0.5)}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(letter, x, y + side * 0.03);
}

/** A line through the middle of pixels, which is sharp. */
function line(context, x, y, toX, toY, colour, width = 1) {
  const [from, to] = [[x, y], [toX, toY]].map((point) => point.map((at) => Math.round(at) + 0.5));
  stroke(context, new Path2D(`M${from}L${to}`), colour, width);
}

function hatch(context, x, y, side, colour) {
  context.save();
  context.beginPath();
  context.rect(x, y, side, side);
  context.clip();
  for (let d = -side; d < side; d += 6)
    stroke(context, new Path2D(`M${x + d} ${y + side}L${x + d + side} ${y}`), colour);
  context.restore();
}

/** The four actions of a cell as triangles that meet in its middle. */
function triangles(context, x, y, side, fills) {
  const [topLeft, topRight, lowLeft, lowRight] = [[x, y], [x + side, y], [x, y + side], [x + side, y + side]];
  const upDownLeftRight = [[topLeft, topRight], [lowLeft, lowRight], [topLeft, lowLeft], [topRight, lowRight]];
  upDownLeftRight.forEach(([from, to], a) => {
    context.fillStyle = fills[a];
    context.fill(new Path2D(`M${x + side / 2} ${y + side / 2}L${from}L${to}Z`));
  });
}

const ARROW = new Path2D("M-1 0L1 0M.35 -.55L1 0L.35 .55");

function arrow(context, middle, side, action, colour, bold) {
  const size = side * 0.26;
  context.save();
  context.translate(...middle);
  context.rotate([-Math.PI / 2, Math.PI / 2, Math.PI, 0][action]);
  context.scale(size, size);
  context.lineCap = context.lineJoin = "round";
  stroke(context, ARROW, colour, Math.max(1.3, side / (bold ? 11 : 18)) / size);
  context.restore();
}

// ---------------------------------------------------------------------------------------------- the axis of alpha

export const SLIDER = { min: LOWEST - 3 * NARROW, max: HIGHEST + 3 * NARROW };

/** Where alpha lies on the slider and under the curve, in decades; the limits lie a little beyond the ends. */
export function positionOf(alpha) {
  if (alpha === 0) return SLIDER.min;
  if (alpha === Infinity) return SLIDER.max;
  return Math.min(HIGHEST, Math.max(LOWEST, Math.log10(alpha)));
}

export function alphaAt(position) {
  if (position < LOWEST - NARROW) return 0;
  if (position > HIGHEST + NARROW) return Infinity;
  return Number((10 ** Math.min(HIGHEST, Math.max(LOWEST, position))).toPrecision(3));
}

/**
 * Draws the curve: the expected return and the hazard probability over alpha, flips as ticks between them.
 *
 * curve: { points, zero, infinity, flips } of the worker; marks: [{ name, return, hazard, colour }]; own: the state
 * whose flips stand out; inset: half of the slider's thumb; remark: instead of the number of flips; ending: the name of
 * the hazards.
 */
export function drawCurve(canvas, { curve, marks, alpha, now, own, inset, remark, ending }) {
  const { context, width, height } = prepared(canvas, 272),
    colours = palette(),
    size = 12;
  const x = (position) => inset + ((position - SLIDER.min) / (SLIDER.max - SLIDER.min)) * (width - 2 * inset);
  canvas.alphaFrom = (px) => alphaAt(SLIDER.min + ((px - inset) / (width - 2 * inset)) * (SLIDER.max - SLIDER.min));
  context.font = `${size}px system-ui, "Segoe UI", "DejaVu Sans", sans-serif`;
  context.textBaseline = "middle";
  const panels = [
    { key: "return", title: "Return", top: 26, bottom: 108 },
    { key: "hazard", title: width < 420 ? ending : `${ending}: probability`, top: 178, bottom: 244 },
  ];
  const { zero, infinity, flips } = curve,
    points = curve.refined || curve.points;
  for (const { key, title, top, bottom } of panels) {
    const shown = [...points, zero, infinity, now, ...marks].filter(Boolean).map((p) => p[key]);
    let low = Math.min(...shown),
      high = Math.max(...shown);
    if (high - low < 1e-9) {
      low -= 1;
      high += 1;
    }
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    context.fillStyle = colours.quiet;
    context.textAlign = "left";
    context.fillText(title, 0, top - 14);
    for (const { colour, [key]: value } of marks) {
      context.setLineDash([4, 4]);
      line(context, x(SLIDER.min), y(value), x(SLIDER.max), y(value), colours[colour]);
      context.setLineDash([]);
    }
    if (points.length) {
      context.lineJoin = "round";
      const through = points.map((point) => [x(Math.log10(point.alpha)), y(point[key])]);
      stroke(context, new Path2D(`M${through.join("L")}`), colours.accent, 2);
      for (const limit of [zero, infinity])
        if (limit) disc(context, x(positionOf(limit.alpha)), y(limit[key]), 3, colours.accent);
    }
    labels(context, marks, key, top, width, colours);
    if (now) {
      const at = x(positionOf(alpha));
      line(context, at, top - 4, at, bottom + 4, colours.ink);
      disc(context, at, y(now[key]), 4.5, colours.ink);
    }
  }
  context.fillStyle = colours.quiet;
  context.textAlign = "left";
  const mine = (flips || []).filter((flip) => flip.state === own).length;
  context.fillText(
    remark || !flips
      ? remark || "Flips of a greedy action: being located"
      : `Flips of a greedy action: ${flips.length}` + (mine ? ` (tall ticks: ${mine} in this cell)` : ""),
    0,
    126,
  );
  for (const flip of flips || []) {
    const at = x(Math.log10(flip.alpha));
    context.globalAlpha = flip.state === own ? 1 : 0.55;
    if (flip.state === own) line(context, at, 134, at, 150, colours.ood, 2);
    else line(context, at, 137, at, 147, colours.quiet);
    context.globalAlpha = 1;
  }
  context.textAlign = "center";
  context.fillStyle = colours.quiet;
  const decades = [0.01, 0.1, 1, 10, 100, 1000];
  for (const alpha of [0, ...(width < 520 ? decades.slice(1, -1) : decades), Infinity]) {
    const text = { 0: "0⁺", Infinity: "∞" }[alpha] || String(alpha);
    context.fillText(text, x(positionOf(alpha)), height - 8);
  }
}

/** Names of the dashed lines, moved apart, at the right of the title. */
function labels(context, marks, key, top, width, colours) {
  let right = width;
  context.textAlign = "right";
  for (const { name, colour, [key]: value } of [...marks].sort((a, b) => b[key] - a[key])) {
    const text = `${name} ${key === "return" ? value.toFixed(1) : value.toFixed(3)}`;
    context.fillStyle = colours[colour];
    context.fillText(text, right, top - 14);
    right -= context.measureText(text).width + (width < 420 ? 8 : 14);
  }
}
