// What the page says beside its controls: the map, the curve, the outcomes and the cell under the cursor.
// page: { state, now, table, curve, sweeps }, now being what was computed and table a trained network or null.
import { A, ACTIONS, ARROWS } from "./world.js";
import { OBJECTIVES } from "./solve.js";
import { actionsOf, greedyPolicy, passing } from "./policies.js";
import { drawCurve, drawMap, palette, scaleOf } from "./draw.js";

export const $ = (id) => document.getElementById(id);
export const LEARNERS = {
  ...OBJECTIVES,
  "q-logged": {
    name: "Q-learning, logged actions",
    text: "Its maximum runs over the logged actions: CQL(H) at α → 0⁺.",
  },
  "q-all": { name: "Q-learning, all actions", text: "A table whose OOD entries keep their initial value." },
  bc: { name: "Behaviour Cloning", text: "The most frequent action of each cell." },
};
export const VIEWS = {
  policy: ["Policy", "Greedy actions. The darker a cell, the more often it was logged."],
  estimate: ["Estimate", "The value estimate: max Q of the learner in each cell."],
  truth: ["True value", "The true discounted value of the learner’s greedy policy."],
  difference: ["Difference", "Value estimate minus true value: blue is too high, orange too low."],
  softmax: [
    "β − p",
    "Share of each action in the data minus softmax of Q, a triangle an action: CQL(H) pulls blue up and pushes orange down.",
  ],
  passing: ["Reached", "The probability that an episode of the greedy policy is ever in a cell (log scale)."],
  trained: [
    "Trained",
    "Value estimate of the trained network minus that of the exact solution; arrows are the network’s.",
  ],
};
const SHOWN_PASSING = 1e-3;

function number(x, digits = 2) {
  if (!Number.isFinite(x)) return "–";
  const text = x.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

/** What the cells of letter H are called: with a reward that is no loss they are ends and no hazards. */
function endingOf({ harmless, rewards }) {
  if (!harmless) return { name: "Hazard", kind: "a hazard", mark: "×", words: "hazard" };
  const words = `end with reward ${rewards.hazard}`;
  return { name: `End with ${rewards.hazard}`, kind: `an ${words}`, mark: rewards.hazard, words };
}

export const alphaText = (alpha) =>
  alpha === 0 ? "0⁺" : alpha === Infinity ? "∞" : String(Number(alpha.toPrecision(4)));
const learnerText = (state) =>
  LEARNERS[state.learner].name + (state.learner in OBJECTIVES ? `, α = ${alphaText(state.alpha)}` : "");
const cellText = (world, s) => `row ${Math.floor(s / world.columns) + 1}, column ${(s % world.columns) + 1}`;

/** The map, in the colours and arrows of the chosen view, and its legend. */
export function showMap({ state, now, table }) {
  const { world, data, found, truth, policy } = now,
    view = state.view,
    colours = palette();
  const perCell = (read) => Float64Array.from({ length: world.S }, (_, s) => read(s));
  const q = view === "trained" && table ? Float64Array.from(table.q.flat()) : found && found.q;
  const shown = view === "trained" && table ? greedyPolicy(q, null, 0) : policy;
  const estimate = (s) => (found ? found.values[s] : NaN);
  const numbers = {
    policy: () => perCell((s) => [0, 1, 2, 3].reduce((sum, a) => sum + data.counts[s * A + a], 0)),
    estimate: () => perCell(estimate),
    truth: () => truth,
    difference: () => perCell((s) => estimate(s) - truth[s]),
    softmax: () => softmaxOf(now).map((p, pair) => data.beta[pair] - p),
    passing: () => passing(world, policy, SHOWN_PASSING),
    trained: () => perCell((s) => (table && found ? Math.max(...q.subarray(s * A, s * A + A)) - found.values[s] : NaN)),
  }[view]();
  const visible = numbers.map((x, i) => {
    const s = view === "softmax" ? Math.floor(i / A) : i;
    return world.terminal[s] || (!data.seen[s] && view !== "passing") ? NaN : x;
  });
  const scale = scaleOf(view, visible, colours),
    actions = actionsOf(shown);
  const ood = Array.from(actions, (a, s) => data.seen[s] && a >= 0 && !data.logged[s * A + a]);
  drawMap($("map"), { world, data, view, numbers, scale, actions, ood, cursor: state.cell });
  const digits = (x) => (view === "policy" && data.steps ? 0 : Math.abs(x) < 10 ? 2 : 1),
    end = (x, sign) => (scale.clipped ? `${sign} ` : "") + (view === "passing" ? `${x}` : number(x, digits(x)));
  const stops = Array.from({ length: 9 }, (_, i) =>
    scale.colour(view === "passing" ? 10 ** (-3 + (3 * i) / 8) : scale.low + ((scale.high - scale.low) * i) / 8),
  );
  $("legend").innerHTML =
    (!visible.some(Number.isFinite)
      ? ""
      : scale.empty
        ? "<span>0.00 in every cell</span>"
        : `<span>${end(scale.low, "≤")} <i style="background:linear-gradient(to right,${stops})"></i> ` +
          `${end(scale.high, "≥")}</span>`) +
    `<span><b>○</b> start</span><span><b style="color:var(--goal)">★</b> goal</span>` +
    `<span><b>${endingOf(world).mark}</b> ${endingOf(world).words}</span>` +
    `<span><b style="color:var(--quiet)">▨</b> no data</span>${ood.includes(true) ? '<span><b style="color:var(--ood)">→</b> OOD action</span>' : ""}`;
  let text = VIEWS[view][1];
  if (!found && ["estimate", "difference", "trained"].includes(view)) text = "Behaviour Cloning has no value estimate.";
  if (view === "policy" && !data.steps)
    text = "Greedy actions. The darker a cell, the more often a logged episode is there.";
  if (view === "softmax" && !OBJECTIVES[now.setting.penalty].pull) text += " Eq. 1 pulls nothing up.";
  $("view-text").textContent = text;
}

/** p of every pair: softmax of Q as the objective defines it; of BC, beta. */
function softmaxOf({ found, data }) {
  if (!found) return data.beta;
  if (found.p) return found.p;
  const p = new Float64Array(found.q.length);
  for (let s = 0; s < p.length; s += A) {
    const top = Math.max(...found.q.subarray(s, s + A)),
      e = [0, 1, 2, 3].map((a) => (top === -Infinity ? 0 : Math.exp(found.q[s + a] - top)));
    const total = e.reduce((one, other) => one + other) || 1;
    e.forEach((x, a) => (p[s + a] = x / total));
  }
  return p;
}

/** The curve over alpha, and the line of status with the certificate. */
export function showCurve({ state, now, curve, sweeps }) {
  const { references, worth } = now;
  const marks = [
    { name: "optimum", colour: "good", ...references.optimum },
    { name: "behaviour", colour: "quiet", ...references.behaviour },
    { name: "BC", colour: "bc", ...references.bc },
  ];
  drawCurve($("curve"), {
    curve,
    marks,
    alpha: now.setting.alpha,
    now: state.learner in OBJECTIVES ? worth : null,
    own: state.cell,
    inset: 8,
    remark: state.learner in OBJECTIVES ? "" : "α does not enter; the curve is CQL(H)’s.",
    ending: endingOf(now.world).name,
  });
  const many = curve.flips ? `, ${curve.flips.length} flips of a greedy action` : "";
  $("curve").setAttribute(
    "aria-label",
    `Return and probability of ${endingOf(now.world).kind} over α${many}. ` +
      `Now return ${number(worth.return)}, ${endingOf(now.world).words} ${number(worth.hazard, 4)}.`,
  );
  const { found } = now,
    parts = [];
  if (sweeps !== null)
    parts.push(
      `Backup ${sweeps}` +
        (now.away === undefined ? "." : `: largest distance from the solution’s values ${now.away.toPrecision(3)}.`),
    );
  else if (found && found.residual !== null) {
    parts.push(
      `Certificate: the equations hold to ${found.residual ? found.residual.toExponential(1) : "the last bit"}. ` +
        `Solved in ${now.milliseconds.toFixed(0)} ms.`,
    );
  }
  if (curve.milliseconds) parts.push(`Curve of ${curve.points.length} values in ${curve.milliseconds.toFixed(0)} ms.`);
  $("status").textContent = parts.join(" ");
}

/** A bar up to a share of its cell, from another; zero: where to mark 0. */
function bar(share, from = 0, less = false, zero = null) {
  const [left, width] = [Math.min(from, share), Math.abs(share - from)].map((x) => Math.max(0, Math.min(1, x)) * 100);
  return (
    `<span class="bar"><i class="${less ? "less" : ""}" style="left:${left}%;width:${width}%"></i>` +
    `${zero === null ? "" : `<u style="left:${zero * 100}%"></u>`}</span>`
  );
}

/** Return, hazard and goal of every policy. */
export function showOutcomes({ state, now }) {
  const { references, worth, data, found, world, truth } = now;
  const rows = [
    [state.edits.size || data.source === "given" ? "Behaviour, β of the data" : "Behaviour", references.behaviour],
    ["Behaviour Cloning", references.bc],
    [learnerText(state), worth, "now"],
    ["Optimum", references.optimum],
  ].filter(([, , kind], i) => kind || i !== 1 || state.learner !== "bc");
  const low = Math.min(0, ...rows.map(([, r]) => r.return)),
    high = Math.max(0, ...rows.map(([, r]) => r.return)),
    share = (x) => (x - low) / (high - low || 1);
  const most = Math.max(...rows.map(([, r]) => r.hazard), 1e-9);
  $("outcomes").innerHTML =
    `<thead><tr><td></td><th scope="col">Return</th><th scope="col">${endingOf(world).name}</th><th scope="col">Goal</th></tr></thead><tbody>` +
    rows
      .map(
        ([name, r, kind]) =>
          `<tr class="${kind || ""}"><th scope="row">${name}</th><td>${number(r.return)}${bar(share(r.return), share(0), r.return < 0, share(0))}</td>` +
          `<td>${number(r.hazard, 4)}${bar(r.hazard / most, 0, !world.harmless)}</td><td>${number(r.goal, 4)}${bar(r.goal)}</td></tr>`,
      )
      .join("") +
    "</tbody>";
  const words = [];
  if (found) {
    const away = found.values[world.start] - truth[world.start];
    words.push(
      `At the start the value estimate is ${number(found.values[world.start])} and the true discounted value ${number(truth[world.start])}: ` +
        (Math.abs(away) < 0.005 ? "equal." : `${number(Math.abs(away))} too ${away > 0 ? "high" : "low"}.`),
    );
    const { mean, floor } = penaltyOf(data, found.q);
    if (state.learner === "logsumexp" && state.temperature === 1)
      words.push(`Mean penalty ${number(mean, 4)}, never below H(β) = ${number(floor, 4)}.`);
  }
  $("estimate").textContent = words.join(" ");
}

/** The mean of log sum exp Q - Q(s,a) over the data, and its floor, the entropy of the logged actions. */
function penaltyOf({ counts, beta, seen }, q) {
  let mean = 0,
    floor = 0,
    total = 0;
  for (let s = 0; s < seen.length; s++) {
    if (!seen[s]) continue;
    const top = Math.max(...q.subarray(s * A, s * A + A)),
      log = top + Math.log([0, 1, 2, 3].reduce((sum, a) => sum + Math.exp(q[s * A + a] - top), 0));
    for (let pair = s * A; pair < s * A + A; pair++) {
      if (!(counts[pair] > 0)) continue;
      mean += counts[pair] * (log - q[pair]);
      floor -= counts[pair] * Math.log(beta[pair]);
      total += counts[pair];
    }
  }
  return { mean: mean / total, floor: floor / total };
}

/** Numbers, bars and the formula of the cell under the cursor. */
export function showCell({ state, now, table }) {
  const { world, data, found, setting, policy } = now,
    s = state.cell,
    pairs = [0, 1, 2, 3].map((a) => s * A + a);
  const free = s === world.start ? "the start" : "a free cell";
  const kind = world.hazard[s] ? endingOf(world).kind : world.goal[s] ? "the goal" : free;
  $("cell-head").textContent = `Row ${Math.floor(s / world.columns) + 1}, column ${(s % world.columns) + 1}: ${kind}`;
  $("undo-edits").parentElement.hidden = !state.edits.size;
  const said =
    `${cellText(world, s)}, ${kind}` +
    (world.terminal[s]
      ? ", ends the episode."
      : data.seen[s]
        ? `, ${ACTIONS[actionsOf(policy)[s]] || "random"}.`
        : ", no data.");
  if ($("said").textContent !== said) $("said").textContent = said;
  $("cell").hidden = world.terminal[s] === 1;
  if (world.terminal[s]) {
    $("formula").innerHTML = '<span class="note">An episode ends here: its value is 0.</span>';
    return;
  }
  const p = softmaxOf(now),
    half = state.tdLoss === "mse" ? setting.alpha / 2 : setting.alpha,
    { pull } = OBJECTIVES[setting.penalty];
  const penalised = found && setting.alpha > 0 && setting.alpha < Infinity && found.p;
  const share = (pair) => (penalised ? half * (pull - p[pair] / data.beta[pair]) : 0),
    y = (pair) => (found ? found.targets[pair] : NaN);
  const q = (pair) => (found ? found.q[pair] : NaN),
    best = pairs.indexOf(s * A + actionsOf(policy)[s]),
    known = (pair) => data.logged[pair] === 1;
  const signed = pairs
    .filter(known)
    .flatMap((pair) => [y(pair), q(pair), share(pair), ...(table ? [table.q[s][pair % A]] : [])])
    .filter(Number.isFinite);
  const low = Math.min(0, ...signed),
    high = Math.max(0, ...signed),
    at = (x) => (x - low) / (high - low || 1);
  const around = (x) =>
    Number.isFinite(x) ? number(x, Math.abs(x) >= 100 ? 1 : 2) + bar(at(x), at(0), x < 0, at(0)) : "−∞";
  const line = (name, title, cell) =>
    `<tr><th scope="row" title="${title.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`)}">${name}</th>` +
    pairs.map((pair, a) => `<td class="${a === best ? "best" : ""}">${cell(pair, a)}</td>`).join("") +
    "</tr>";
  const logged = (pair, a) =>
    !data.steps // infinite data
      ? "0∞"[data.logged[pair]]
      : `<input type="number" min="0" max="9999" step="1" data-pair="${pair}" aria-label="Times that ${ACTIONS[a]} was logged here" value="${Math.round(data.counts[pair])}">`;
  const typing = $("cell").contains(document.activeElement) ? document.activeElement : null;
  $("cell").innerHTML =
    `<thead><tr><td></td>${ARROWS.map((arrow, a) => `<th scope="col"><span aria-hidden="true">${arrow}</span> ${ACTIONS[a]}</th>`).join("")}</tr></thead><tbody>` +
    line("logged", "how often the action was logged here", logged) +
    line("β", "its share of the data in this state", (pair) => number(data.beta[pair], 3) + bar(data.beta[pair])) +
    line("p", "softmax of Q", (pair) => number(p[pair], 3) + bar(p[pair])) +
    (found ? line("y", "target r + γ V(s′) of the data", (pair) => (known(pair) ? around(y(pair)) : "–")) : "") +
    (penalised ? line("penalty’s share", `${state.tdLoss === "mse" ? "α/2" : "α"} · (${pull} − p/β)`, (pair) => (known(pair) ? around(share(pair)) : "–")) : "") +
    (found
      ? line("Q", "of the learner", (pair) => (data.seen[s] || Number.isFinite(q(pair)) ? around(q(pair)) : "–"))
      : "") +
    (table ? line("trained Q", table.name, (pair, a) => around(table.q[s][a])) : "") +
    "</tbody>";
  const field = typing && $("cell").querySelector(`[data-pair="${typing.dataset.pair}"]`);
  if (field) {
    field.value = typing.value; // what is being typed outlives a curve that arrives meanwhile
    field.focus();
  }
  $("formula").innerHTML = data.seen[s]
    ? formulaOf({ state, now, half, pull, p, pairs: pairs.filter(known) })
        .map(
          ({ text, pair }) =>
            `<div class="${pair === undefined ? "rule" : pair === pairs[best] ? "best" : ""}">${text}</div>`,
        )
        .join("")
    : '<span class="note">Nothing was logged here: every action is OOD, and V = 0 in the targets.</span>';
}

/** The lines of the formula of Q with its numbers, each { text, pair }. */
function formulaOf({ state, now, half, pull, p, pairs }) {
  const { found, setting, data } = now,
    line = (pair, text) => ({ pair, text: `${ARROWS[pair % A]} &nbsp;${text} = ${number(found.q[pair])}` });
  if (!found) return [];
  if (setting.alpha === 0 || !found.p) {
    const kept = state.learner === "q-all" ? "; an OOD action keeps its initial value" : "";
    return [{ text: `Q = y on the logged actions${kept}.` }];
  }
  if (setting.alpha === Infinity) {
    const mean = pairs.reduce((sum, pair) => sum + data.beta[pair] * found.targets[pair], 0),
      entropy = pairs.reduce((sum, pair) => sum - data.beta[pair] * Math.log(data.beta[pair]), 0);
    if (setting.penalty === "rho") return [{ text: `Q = E[y] under β = ${number(mean)}` }];
    const tau = OBJECTIVES[setting.penalty].temperature || setting.temperature;
    return [
      { text: "p = β, and Q = E[y] + τ (H(β) + log β) with the mean of y under β" },
      ...pairs.map((pair) =>
        line(pair, `${number(mean)} + ${tau} × (${number(entropy, 3)} + log ${number(data.beta[pair], 3)})`),
      ),
    ];
  }
  const weight = number(half, half < 0.1 ? 4 : 2),
    name = state.tdLoss === "mse" ? "α/2" : "α";
  return [
    { text: `Q = y + ${name} · (${pull} − p/β), &nbsp;${name} = ${weight}` },
    ...pairs.map((pair) => {
      const share = `(${pull} − ${number(p[pair], 3)}/${number(data.beta[pair], 3)})`;
      return line(pair, `${number(found.targets[pair])} + ${weight} × ${share}`);
    }),
  ];
}
