// The page: its state, what is computed from it, and its controls.
import { A, behaviourPolicy, makeWorld, mapError } from "./world.js";
import { OBJECTIVES, backedUp, backup, residualOf, solve, solveUnrestricted, valueOf } from "./solve.js";
import { clonedPolicy, evaluate, greedyPolicy, optimum, trueValues } from "./policies.js";
import { makeData, policyOfData } from "./data.js";
import { exactCurve, learnedPolicy } from "./curve.js";
import { commandLine, datasetFile } from "./files.js";
import { SLIDER, alphaAt, positionOf } from "./draw.js";
import { LESSONS, PRESETS } from "./lessons.js";
import { $, LEARNERS, VIEWS, alphaText, showCell, showCurve, showMap, showOutcomes } from "./panels.js";
import { LARGEST_ALPHA, addressOf, givenState, settingsOf, stateOf } from "./address.js";

const BRUSHES = { "": "nothing", ".": "free", H: "hazard", G: "goal", S: "start" };
const preload = JSON.parse($("preload").textContent);
let state,
  brush = "",
  sweeps = null,
  playing = null;
const cache = {};

/** The value made for this key, kept until the key changes. */
function kept(name, key, make) {
  if (!cache[name] || cache[name].key !== key) cache[name] = { key, value: make() };
  return cache[name].value;
}

// ---------------------------------------------------------------------------------------------- what follows from it

/** Everything that the page shows, from the state. */
function computed() {
  const worldKey = JSON.stringify([state.map, state.slip, state.rewards, state.steps]);
  const dataKey = JSON.stringify([worldKey, state.source, state.epsilon, state.episodes, state.seed, [...state.edits]]);
  const world = kept("world", worldKey, () => makeWorld(state));
  const behaviour = kept("behaviour", `${worldKey} ${state.epsilon}`, () => behaviourPolicy(world, state.epsilon));
  const data = kept("data", dataKey, () => makeData(world, behaviour, { ...state, given: givenSteps() }));
  const references = kept("references", dataKey, () => ({
    behaviour: evaluate(world, policyOfData(behaviour, data, state.edits)),
    bc: evaluate(world, clonedPolicy(data.counts)),
    optimum: kept("optimum", worldKey, () => optimum(world)),
  }));
  const setting = settingOf(),
    curveKey = JSON.stringify([dataKey, { ...setting, alpha: null }]);
  const learned = learn(world, data, setting, curveKey);
  const worth = evaluate(world, learned.policy),
    truth = trueValues(world, learned.policy, state.gamma);
  return { world, behaviour, data, references, setting, curveKey, worth, truth, ...learned };
}

/** What cql/exact is asked for: Q-learning on logged actions is the limit alpha -> 0 of CQL(H). */
function settingOf() {
  const { learner, gamma, tdLoss, temperature } = state,
    penalised = learner in OBJECTIVES;
  return { alpha: penalised ? state.alpha : 0, gamma, tdLoss, penalty: penalised ? learner : "logsumexp", temperature };
}

/** { found, policy, milliseconds } of the learner, or of its backups so far. */
function learn(world, data, setting, curveKey) {
  const began = performance.now();
  if (state.learner === "bc") return { found: null, policy: clonedPolicy(data.counts), milliseconds: 0 };
  if (state.learner === "q-all") {
    const found = solveUnrestricted(data, state.gamma, state.initial, sweeps === null ? undefined : sweeps);
    return { found, policy: greedyPolicy(found.q), milliseconds: performance.now() - began };
  }
  if (sweeps !== null) {
    let values = new Float64Array(world.S),
      found = { q: new Float64Array(world.S * A), p: null };
    found.q.forEach((_, pair) => {
      if (!data.logged[pair]) found.q[pair] = -Infinity;
    });
    for (let turn = 0; turn < sweeps; turn++) {
      found = backedUp(data, values, setting);
      values = valueOf(found.q, world.S);
    }
    const targets = backup(data.model, values, state.gamma),
      solution = kept("solution", `${curveKey} ${setting.alpha}`, () => solve(data, setting));
    return {
      found: { ...found, values, targets, residual: residualOf(data, found.q, targets, setting) },
      policy: greedyPolicy(found.q),
      milliseconds: 0,
      away: Math.max(...values.map((v, s) => Math.abs(v - solution.values[s]))),
    };
  }
  const warm = cache.warm && cache.warm.curveKey === curveKey ? cache.warm.found : null;
  const found = solve(data, setting, warm);
  cache.warm = { curveKey, found };
  const milliseconds = performance.now() - began;
  return {
    found,
    policy: state.learner === "q-logged" ? greedyPolicy(found.q) : learnedPolicy(data, found, setting),
    milliseconds,
  };
}

/** The steps of the preloaded run, each as an episode of its own: their order is not kept. */
function givenSteps() {
  if (!preload) return [];
  const whole = { truncated: false, episode: null };
  return preload.logged.flatMap(([s, a, r, next, terminated, times]) =>
    Array.from({ length: times }, () => ({ s, a, r, next, terminated: terminated === 1, ...whole })),
  );
}

function trainedTable() {
  return preload && state.member > 0 ? preload.trained[state.member - 1] : null;
}

// ---------------------------------------------------------------------------------------------------------- the curve

let worker = null,
  job = { id: 0 };

function startWorker() {
  const source = `${$("maths").textContent}
let newest = 0;
onmessage = ({ data }) => { newest = data.id; exactCurve(data, postMessage, () => newest !== data.id); };`;
  worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  worker.onmessage = (message) => receive(message.data);
}

/** The curve of this data set and objective, CQL(H)'s for a learner without α; the worker fills it part by part. */
function curveOf({ world, data, setting, curveKey }) {
  return kept("curve", curveKey, () => {
    job = { id: job.id + 1, curve: { points: [] }, began: performance.now() };
    const { id, curve } = job,
      task = { id, world, data: { ...data, steps: null }, setting, hasLimit: OBJECTIVES[setting.penalty].pull === 1 };
    if (worker) worker.postMessage(task);
    else exactCurve(task, receive, () => job.id !== id); // no workers here, as in some notebooks
    return curve;
  });
}

function receive({ id, ...part }) {
  if (id !== job.id) return;
  Object.assign(job.curve, part);
  if (part.points) job.curve.milliseconds = performance.now() - job.began;
  schedule();
}

// --------------------------------------------------------------------------------------------------------- what is shown

let written = "",
  waiting = false,
  now = null;

function schedule() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    render();
  });
}

function render() {
  if (state.cell >= state.map.length * state.map[0].length) state.cell = 0;
  now = computed();
  const page = { state, now, table: trainedTable(), curve: curveOf(now), sweeps };
  showMap(page);
  showCurve(page);
  showOutcomes(page);
  showCell(page);
  showControls();
  clearTimeout(render.address);
  render.address = setTimeout(writeAddress, 250);
}

// -------------------------------------------------------------------------------------------------------- controls

const PLAIN = ["slip", "gamma", "steps", "seed", "temperature", "initial", "source", "learner", "epsilon", "member"];
// what stands in the fields
const FIELDS = {
  rows: () => state.map.length,
  columns: () => state.map[0].length,
  ...Object.fromEntries(["free", "hazard", "goal"].map((name) => [name, () => state.rewards[name]])),
  ...Object.fromEntries(PLAIN.map((name) => [name, () => state[name]])),
  "td-loss": () => state.tdLoss,
  episodes: () => Math.log10(state.episodes),
  alpha: () => positionOf(state.learner in OBJECTIVES ? state.alpha : 0),
  "alpha-number": () => (state.learner in OBJECTIVES ? alphaText(state.alpha) : "–"),
};

/** Says beside a field why what was typed is not taken; the field shows the present number again. */
function refuse(field, number, why) {
  field.value = number;
  (field.id === "alpha-number" ? $("alpha") : field.closest(".pair, .three, table")).after($("refusal"));
  $("refusal").textContent = why;
}

function pressed(group, chosen) {
  for (const button of $(group).children)
    button.setAttribute("aria-pressed", String(button.dataset.key === String(chosen)));
}

function showControls() {
  const same = Object.entries(PRESETS).find(([, preset]) => preset.map.join() === state.map.join());
  $("preset").value = same ? same[0] : "";
  for (const [id, read] of Object.entries(FIELDS)) if (document.activeElement !== $(id)) $(id).value = read();
  $("slip-text").textContent = state.slip;
  $("epsilon-text").textContent = state.epsilon;
  $("episodes-text").textContent = state.episodes.toLocaleString("en");
  for (const id of ["episodes-label", "seed-fields"]) $(id).hidden = state.source !== "sampled";
  $("epsilon-label").hidden = state.source === "given";
  $("temperature-label").hidden = state.learner !== "logsumexp";
  $("initial-label").hidden = state.learner !== "q-all";
  const { text, formula } = LEARNERS[state.learner];
  $("objective-text").textContent = text || `Penalty: ${formula}`;
  const { data } = now,
    pairs = data.logged.reduce((x, y) => x + y),
    cells = data.seen.reduce((x, y) => x + y);
  $("data-text").textContent =
    (data.steps
      ? `${data.steps.length.toLocaleString("en")} transitions: `
      : "Every pair with its true probabilities: ") +
    `${pairs} pairs in ${cells} ${cells === 1 ? "cell" : "cells"}${state.edits.size ? `; ${state.edits.size} pairs set by hand` : ""}.`;
  const penalised = state.learner in OBJECTIVES;
  $("alpha").disabled = $("alpha-number").disabled = !penalised;
  $("alpha").setAttribute(
    "aria-valuetext",
    `α = ${state.alpha === 0 ? "0 from above" : state.alpha === Infinity ? "infinity" : alphaText(state.alpha)}`,
  );
  const still = state.learner === "bc" || (penalised && state.alpha === Infinity);
  $("step").disabled = $("play").disabled = still;
  $("solution").disabled = sweeps === null;
  $("play").textContent = playing ? "Pause" : "Play backups";
  pressed("views", state.view);
  pressed("brushes", brush);
  pressed("lessons", state.lesson);
  const { command, notes } = commandLine(state);
  $("command").replaceChildren(
    ...(command || "–")
      .split(/ (?=--)/)
      .flatMap((textContent) => [Object.assign(document.createElement("span"), { textContent }), " "])
      .slice(0, -1),
  );
  $("command-note").textContent = notes.join(" ");
  $("copy-command").disabled = !command;
  $("save-data").disabled = !data.steps || !data.steps.length;
}

/** Takes changes of the state; whatever is not α ends the backups that were being watched. */
function change(changes, keepBackups = false) {
  const { learner, alpha } = { ...state, ...changes };
  if (alpha === Infinity && OBJECTIVES[learner] && !OBJECTIVES[learner].pull) changes.alpha = LARGEST_ALPHA; // no limit
  const drawn = ["map", "source", "epsilon", "episodes", "seed"].some((name) => name in changes);
  if (drawn && !changes.edits) changes.edits = new Map(); // counts set by hand are of the data before
  const moved = ["map", "slip", "rewards", "steps"].some((name) => name in changes);
  if (moved && state.source === "given" && !changes.source) changes.source = "sampled"; // the run is of another world
  Object.assign(state, changes);
  $("refusal").textContent = "";
  if (!keepBackups) watch(null);
  schedule();
}

function changeMap(map) {
  const error = mapError(map);
  $("map-error").textContent = error || "";
  if (!error) change({ map });
}

function paint(s, letter) {
  const { rows, columns, cells } = now.world,
    next = [...cells];
  if (letter === "S") next[cells.indexOf("S")] = ".";
  next[s] = letter;
  changeMap(Array.from({ length: rows }, (_, row) => next.slice(row * columns, (row + 1) * columns).join("")));
}

function resize(rows, columns) {
  const map = Array.from({ length: rows }, (_, r) => (state.map[r] || "").slice(0, columns).padEnd(columns, ".")),
    put = (r, c, letter) => {
      map[r] = map[r].slice(0, c) + letter + map[r].slice(c + 1);
    };
  if (!map.join("").includes("S")) put(0, 0, "S");
  if (!map.join("").includes("G")) put(rows - 1, columns - 1, "G");
  state.cell = map.join("").indexOf("S");
  changeMap(map);
}

function stopPlaying() {
  clearInterval(playing);
  playing = null;
}

/** Shows the learner after so many backups, or for null its solution. */
function watch(turn) {
  if (turn === null) stopPlaying();
  sweeps = turn;
  schedule();
}

function writeAddress() {
  written = addressOf(state, preload);
  try {
    history.replaceState(null, "", `#${written}`);
  } catch {
    // a page inside another may have no address
  }
}

function readAddress() {
  written = location.hash.slice(1);
  state = stateOf(written, preload);
  openLesson(state.lesson);
  change({});
}

function openLesson(n) {
  const lesson = LESSONS[n - 1];
  state.lesson = lesson ? n : 0;
  $("lesson-body").innerHTML = lesson
    ? `<h3>${lesson.title}</h3><p>${lesson.text}</p><p class="question">${lesson.question}</p>` +
      `<details><summary>Answer</summary><p>${lesson.answer}</p></details>`
    : '<p class="note">Each sets the controls and asks a question.</p>';
}

function segments(group, entries, choose) {
  for (const [key, text, title] of entries) {
    const look = { type: "button", textContent: text, title: title || "" };
    const button = Object.assign(document.createElement("button"), look);
    button.dataset.key = key;
    button.addEventListener("click", () => choose(key));
    $(group).append(button);
  }
}

function build() {
  if (preload) {
    $("source").add(new Option(preload.name, "given"), 0);
    $("member").append(new Option("none", 0), ...preload.trained.map(({ name }, i) => new Option(name, i + 1)));
  }
  $("member-label").hidden = !preload || !preload.trained.length;
  $("preset").append(
    ...Object.entries(PRESETS).map(([key, { name }]) => new Option(name, key)),
    new Option("a map of your own", "", false, false),
  );
  $("learner").append(...Object.entries(LEARNERS).map(([key, { name }]) => new Option(name, key)));
  segments(
    "views",
    Object.entries(VIEWS)
      .filter(([key]) => key !== "trained" || (preload && preload.trained.length))
      .map(([key, [name, text]]) => [key, name, text]),
    (view) => change({ view }, true),
  );
  segments("brushes", Object.entries(BRUSHES), (key) => {
    brush = key;
    schedule();
  });
  segments(
    "lessons",
    LESSONS.map(({ short, title }, i) => [i + 1, `${i + 1} ${short}`, title]),
    (n) => {
      openLesson(n);
      change(settingsOf(LESSONS[n - 1].set));
    },
  );
  Object.assign($("alpha"), SLIDER);
  const on = (id, kind, act) => $(id).addEventListener(kind, act);
  const numeric = (id, take, whole = false) =>
    on(id, "change", () => {
      const { value, validity, min, max, labels } = $(id),
        range = min === "" ? "" : ` from ${Number(min).toLocaleString("en")} to ${Number(max).toLocaleString("en")}`,
        asked = `${labels[0].textContent.trim()}: give a ${whole ? "whole " : ""}number${range}.`;
      if (value === "" || validity.rangeUnderflow || validity.rangeOverflow) return refuse($(id), FIELDS[id](), asked);
      take(whole ? Math.round(Number(value)) : Number(value));
      $(id).value = FIELDS[id]();
    });
  on("alpha", "input", () => change({ alpha: alphaAt(Number($("alpha").value)) }));
  on("alpha-number", "change", () => {
    const text = $("alpha-number").value.trim().replace(",", "."),
      x = /^(∞|inf(inity)?)$/i.test(text) ? Infinity : /^0⁺?\+?$/.test(text) ? 0 : Number(text);
    if (!text || !(x === Infinity || (x >= 0 && x <= LARGEST_ALPHA)))
      return refuse($("alpha-number"), FIELDS["alpha-number"](), "α: give a number from 0 to 100,000, or ∞.");
    change({ alpha: x });
    $("alpha-number").value = FIELDS["alpha-number"]();
  });
  on("preset", "change", () => {
    if (!PRESETS[$("preset").value]) return schedule();
    $("map-error").textContent = "";
    openLesson(0);
    change(settingsOf(PRESETS[$("preset").value]));
  });
  numeric("rows", (x) => resize(x, state.map[0].length), true);
  numeric("columns", (x) => resize(state.map.length, x), true);
  on("slip", "input", () => change({ slip: Number($("slip").value) }));
  on("epsilon", "input", () => change({ epsilon: Number($("epsilon").value) }));
  on("episodes", "input", () => change({ episodes: Number((10 ** Number($("episodes").value)).toPrecision(2)) }));
  for (const name of ["free", "hazard", "goal"])
    numeric(name, (x) => change({ rewards: { ...state.rewards, [name]: x } }));
  for (const name of ["gamma", "temperature", "initial"]) numeric(name, (x) => change({ [name]: x }));
  for (const name of ["steps", "seed"]) numeric(name, (x) => change({ [name]: x }), true);
  on("resample", "click", () => change({ seed: state.seed + 1 }));
  on("source", "change", () =>
    change({ source: $("source").value, ...($("source").value === "given" ? givenState(preload) : {}) }),
  );
  on("learner", "change", () => change({ learner: $("learner").value }));
  on("td-loss", "change", () => change({ tdLoss: $("td-loss").value }));
  on("member", "change", () => {
    const member = Number($("member").value);
    change({
      member,
      ...(member ? { alpha: preload.trained[member - 1].alpha, view: "trained" } : { view: "policy" }),
    });
  });
  on("cell", "change", (event) => {
    const times = Math.round(Number(event.target.value));
    const pair = Number(event.target.dataset.pair);
    if (event.target.value !== "" && times >= 0 && times <= 9999)
      change({ edits: new Map(state.edits).set(pair, times) });
    else refuse(event.target, now.data.counts[pair], "logged: give a whole number from 0 to 9,999.");
  });
  on("undo-edits", "click", () => change({ edits: new Map() }));
  on("step", "click", () => watch((sweeps || 0) + 1));
  on("solution", "click", () => watch(null));
  on("play", "click", () => {
    if (playing) stopPlaying();
    else {
      sweeps = 0;
      playing = setInterval(() => {
        watch(sweeps + 1);
        if (sweeps > 400 || now.away < 1e-3) stopPlaying();
      }, 120);
    }
    schedule();
  });
  const touched = (event) => {
    const box = $("map").getBoundingClientRect(),
      cell = $("map").cellAt(event.clientX - box.left, event.clientY - box.top);
    if (cell === null) return;
    state.cell = cell;
    if (brush && now.world.cells[cell] !== brush) paint(cell, brush);
    schedule();
  };
  on("map", "pointerdown", touched);
  on("map", "pointermove", (event) => {
    if (event.buttons === 1) touched(event);
  });
  on("map", "keydown", (event) => {
    const move = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"].indexOf(event.key),
      letter = { f: ".", h: "H", g: "G", s: "S" }[event.key.toLowerCase()];
    if (move >= 0) state.cell = now.world.intended[state.cell * A + move];
    else if (letter && !event.ctrlKey && !event.metaKey) paint(state.cell, letter);
    else return;
    event.preventDefault();
    schedule();
  });
  const dragged = (event) => {
    if (event.buttons === 1 && state.learner in OBJECTIVES)
      change({ alpha: $("curve").alphaFrom(event.clientX - $("curve").getBoundingClientRect().left) });
  };
  on("curve", "pointerdown", dragged);
  on("curve", "pointermove", dragged);
  on("copy-link", "click", () => {
    writeAddress();
    copy(location.href, "copy-link");
  });
  on("copy-command", "click", () => copy($("command").textContent, "copy-command"));
  on("save-data", "click", () => {
    const address = URL.createObjectURL(new Blob(datasetFile(state, now.data), { type: "application/zip" }));
    Object.assign(document.createElement("a"), { href: address, download: "cql-data.npz" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  });
  window.addEventListener("hashchange", () => {
    if (location.hash.slice(1) !== written) readAddress();
  });
  window.addEventListener("resize", schedule);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", schedule);
}

async function copy(text, button) {
  const before = $(button).textContent;
  try {
    await navigator.clipboard.writeText(text);
    $(button).textContent = "Copied";
  } catch {
    $(button).textContent = "Not allowed here";
  }
  setTimeout(() => {
    $(button).textContent = before;
  }, 1500);
}

try {
  startWorker();
} catch {
  worker = null;
}
build();
readAddress();
