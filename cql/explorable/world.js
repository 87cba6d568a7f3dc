// The GridWorld of envs/gridworld.py with its true model, and the policy that generates the data (envs/behavior.py).
// A pair is state * A + action; a model lists the outcomes of every pair.

export const A = 4;
export const ACTIONS = ["up", "down", "left", "right"];
export const ARROWS = ["↑", "↓", "←", "→"];
const MOVES = [[-1, 0], [1, 0], [0, -1], [0, 1]]; // rows down, columns right

export const MAPS = /*maps*/ {}; // of envs/gridworld.py

/** Why these rows are no map, in the words of envs/gridworld.py, or null. */
export function mapError(rows) {
  if (!rows.length || !rows[0].length) return "The map needs at least one row and one column.";
  if (rows.some((row) => row.length !== rows[0].length)) return "The rows of the map must be equally long.";
  const cells = rows.join(""),
    wide = rows[0].length;
  if (/[^S.HG]/.test(cells)) return "A map has the letters S (start), . (free), H (hazard) and G (goal).";
  if (cells.split("S").length !== 2) return "The map must have exactly one start.";
  if (!cells.includes("G")) return "The map has no goal.";
  const intended = intendedCells(rows.length, wide),
    frontier = [cells.indexOf("S")],
    seen = new Set(frontier);
  while (frontier.length) {
    const s = frontier.pop();
    if (cells[s] === "G") return null;
    for (let a = 0; a < A; a++) {
      const to = intended[s * A + a];
      if (!seen.has(to) && cells[to] !== "H") {
        seen.add(to);
        frontier.push(to);
      }
    }
  }
  return "No goal can be reached from the start by free cells.";
}

/** The cell that each pair leads to without a slip; a move into the border stays. */
function intendedCells(rows, columns) {
  const intended = new Int32Array(rows * columns * A);
  for (let s = 0; s < rows * columns; s++) {
    MOVES.forEach(([down, right], a) => {
      const row = Math.min(rows - 1, Math.max(0, Math.floor(s / columns) + down));
      const column = Math.min(columns - 1, Math.max(0, (s % columns) + right));
      intended[s * A + a] = row * columns + column;
    });
  }
  return intended;
}

/** A model from the outcomes of every pair, each [probability, next state, reward, terminated]. */
export function modelOf(S, outcomes) {
  const first = new Int32Array(S * A + 1),
    flat = outcomes.flat();
  outcomes.forEach((list, pair) => {
    first[pair + 1] = first[pair] + list.length;
  });
  const model = {
    S,
    first,
    probability: Float64Array.from(flat, (o) => o[0]),
    next: Int32Array.from(flat, (o) => o[1]),
    reward: Float64Array.from(flat, (o) => o[2]),
    terminated: Uint8Array.from(flat, (o) => o[3]),
    going: Float64Array.from(flat, (o) => (o[3] ? 0 : o[0])), // probability that it happens and the episode goes on
    expected: new Float64Array(S * A),
    band: 0, // mean reward of a pair; the farthest that an outcome leads
  };
  for (let pair = 0; pair < S * A; pair++) {
    for (let k = first[pair]; k < first[pair + 1]; k++) {
      model.expected[pair] += model.probability[k] * model.reward[k];
      if (model.going[k]) model.band = Math.max(model.band, Math.abs(model.next[k] - Math.floor(pair / A)));
    }
  }
  return model;
}

/** The world of a map. rewards: of entering a free cell, a hazard and a goal; steps: of an episode. */
export function makeWorld({ map, slip, rewards, steps }) {
  const rows = map.length,
    columns = map[0].length,
    S = rows * columns,
    cells = map.join("");
  const intended = intendedCells(rows, columns),
    start = cells.indexOf("S");
  const hazard = Uint8Array.from(cells, (c) => c === "H"),
    goal = Uint8Array.from(cells, (c) => c === "G");
  const terminal = hazard.map((h, s) => h | goal[s]);
  const outcomes = [];
  for (let s = 0; s < S; s++) {
    for (let a = 0; a < A; a++) {
      if (terminal[s]) {
        outcomes.push([[1, s, 0, true]]);
        continue;
      }
      const probability = new Map();
      for (let move = 0; move < A; move++) {
        const p = slip / A + (1 - slip) * (move === a),
          to = intended[s * A + move];
        if (p > 0) probability.set(to, (probability.get(to) || 0) + p);
      }
      outcomes.push(
        [...probability].map(([to, p]) => [
          p,
          to,
          hazard[to] ? rewards.hazard : goal[to] ? rewards.goal : rewards.free,
          terminal[to] === 1,
        ]),
      );
    }
  }
  const harmless = rewards.hazard >= 0; // its hazards then merely end the episode
  const facts = { map, rows, columns, S, cells, slip, rewards, steps, start, hazard, goal, terminal, harmless, intended };
  return { ...facts, model: modelOf(S, outcomes) };
}

/** Probabilities of the policy that generates the data: towards the goal, with a share epsilon of random safe moves. */
export function behaviourPolicy(world, epsilon) {
  const { S, columns, hazard, goal, terminal, intended } = world,
    policy = new Float64Array(S * A);
  const distance = new Float64Array(S).fill(Infinity);
  for (let g = 0; g < S; g++) {
    if (!goal[g]) continue;
    for (let s = 0; s < S; s++) {
      const steps =
        Math.abs(Math.floor(s / columns) - Math.floor(g / columns)) + Math.abs((s % columns) - (g % columns));
      distance[s] = Math.min(distance[s], steps);
    }
  }
  for (let s = 0; s < S; s++) {
    const to = intended.subarray(s * A, s * A + A);
    let safe = Array.from(to, (cell) => !hazard[cell]);
    if (!safe.includes(true)) safe = safe.map(() => true);
    const ahead = safe.map((ok, a) => (ok ? distance[to[a]] : Infinity)),
      least = Math.min(...ahead);
    const nearest = ahead.filter((d) => d === least).length,
      many = safe.filter(Boolean).length;
    for (let a = 0; a < A; a++) {
      policy[s * A + a] = terminal[s]
        ? 1 / A
        : (1 - epsilon) * ((ahead[a] === least) / nearest) + epsilon * (safe[a] / many);
    }
  }
  return policy;
}
