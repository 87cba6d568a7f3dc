// The state of the page as its address, so that it can be shared.
import { A, mapError } from "./world.js";
import { OBJECTIVES } from "./solve.js";
import { LEARNERS, VIEWS } from "./panels.js";
import { LESSONS, PRESETS } from "./lessons.js";

export const LARGEST_ALPHA = 1e5;
const start = () => ({
  ...PRESETS.islands,
  edits: new Map(), learner: "logsumexp", alpha: 6, tdLoss: "mse", temperature: 1, initial: 0,
  view: "policy", cell: 0, lesson: 0, member: 0,
});
const NUMBERS = {
  slip: [0, 1],
  steps: [1, 1000],
  gamma: [0, 0.999],
  epsilon: [0, 1],
  episodes: [1, 5000],
  seed: [0, 2147483647],
  temperature: [0.1, 100],
  initial: [-1e6, 1e6],
  cell: [0, 399],
  member: [0, 100],
};
const WHOLE = ["steps", "episodes", "seed", "cell", "member"];

/** What the preloaded run brings. */
export function givenState(preload) {
  if (!preload) return {};
  const { map, slip, steps, gamma, alpha, tdLoss, penalty, temperature } = preload;
  return {
    map, slip, steps, gamma, alpha, tdLoss, temperature,
    cell: map.join("").indexOf("S"),
    learner: penalty in OBJECTIVES ? penalty : "logsumexp",
    source: "given",
    edits: new Map(),
    rewards: { ...PRESETS.islands.rewards },
    epsilon: preload.epsilon ?? 0.22,
    episodes: Math.min(5000, preload.episodes ?? 500),
    seed: preload.seed ?? 42,
  };
}

/** The settings that a lesson or a preset brings. */
export function settingsOf({ name, ...settings }) {
  return { cell: settings.map.join("").indexOf("S"), ...settings, edits: new Map(settings.edits) };
}

/** The state that an address with this lesson and nothing else stands for. */
export const opening = (preload, lesson) => ({
  ...start(),
  ...givenState(preload),
  ...(lesson ? settingsOf(LESSONS[lesson - 1].set) : {}),
  lesson,
});

/** The fragment of the page's address that stands for a state: what differs from the usual. */
export function addressOf(state, preload) {
  const usual = opening(preload, state.lesson),
    words = state.lesson ? [`lesson=${state.lesson}`] : [];
  const put = (name, value, text) => {
    if (JSON.stringify(value) !== JSON.stringify(usual[name]))
      words.push(`${name}=${encodeURIComponent(text ?? value)}`);
  };
  put("map", state.map, state.map.join("/"));
  for (const name of Object.keys(NUMBERS)) put(name, state[name]);
  put("rewards", state.rewards, [state.rewards.free, state.rewards.hazard, state.rewards.goal].join());
  for (const name of ["source", "learner", "tdLoss", "view"]) put(name, state[name]);
  if (state.alpha !== usual.alpha) words.push(`alpha=${state.alpha}`);
  const edits = (map) => [...map].map((pair) => pair.join(".")).join();
  if (edits(state.edits) !== edits(usual.edits)) words.push(`edits=${edits(state.edits) || "none"}`);
  return words.join("&");
}

/** The state of the address; a part that makes no sense is left at its usual value. */
export function stateOf(address, preload) {
  const given = new URLSearchParams(address),
    lesson = Number(given.get("lesson"));
  const next = opening(preload, LESSONS[lesson - 1] ? lesson : 0),
    one = (name, known) => {
      if (known.includes(given.get(name))) next[name] = given.get(name);
    };
  if (given.has("map")) {
    const rows = given.get("map").split("/");
    if (rows.length <= 20 && rows[0].length <= 20 && !mapError(rows)) next.map = rows;
  }
  for (const [name, [low, high]] of Object.entries(NUMBERS)) {
    const x = Number(given.get(name));
    if (given.get(name) && x >= low && x <= high && (!WHOLE.includes(name) || Number.isInteger(x))) next[name] = x;
  }
  const rewards = (given.get("rewards") || "").split(",").map(Number);
  if (rewards.length === 3 && rewards.every(Number.isFinite))
    next.rewards = { free: rewards[0], hazard: rewards[1], goal: rewards[2] };
  one("source", ["sampled", "infinite", ...(preload ? ["given"] : [])]);
  one("learner", Object.keys(LEARNERS));
  one("view", Object.keys(VIEWS));
  one("tdLoss", ["mse", "half_mse"]);
  const alpha = Number(given.get("alpha"));
  if (given.get("alpha") && alpha >= 0 && (alpha <= LARGEST_ALPHA || alpha === Infinity)) next.alpha = alpha;
  if (given.has("edits")) next.edits = new Map();
  for (const entry of (given.get("edits") || "").split(",")) {
    const [pair, times] = entry.split(".").map(Number),
      known = entry && Number.isInteger(pair) && pair >= 0 && pair < next.map.join("").length * A;
    if (known && times >= 0 && times <= 9999) next.edits.set(pair, Math.round(times));
  }
  if (next.source === "infinite") next.edits = new Map();
  if (preload ? next.member > preload.trained.length : next.member) next.member = 0;
  if (next.view === "trained" && !(preload && preload.trained.length)) next.view = "policy";
  return next;
}
