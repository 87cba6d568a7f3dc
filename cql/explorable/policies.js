// Policies, probabilities [S * A], and their worth on the true model, as in cql/exact/dynamic_programming.py.
import { A } from "./world.js";
import { backup, solveLinear } from "./solve.js";

const ROUNDING = 1e-10; // differences of Q below this times 1 + max |Q| are ties, which go to the lowest index

/** The greedy policy of q, uniform where a state has no finite q. order: what decides among ties, else the index. */
export function greedyPolicy(q, order = null, tolerance = ROUNDING) {
  const policy = new Float64Array(q.length);
  let scale = 1;
  for (const x of q) if (Number.isFinite(x)) scale = Math.max(scale, 1 + Math.abs(x));
  for (let s = 0; s < q.length; s += A) {
    const best = Math.max(q[s], q[s + 1], q[s + 2], q[s + 3]);
    if (best === -Infinity) {
      policy.fill(1 / A, s, s + A);
      continue;
    }
    let chosen = -1;
    for (let pair = s; pair < s + A; pair++) {
      if (q[pair] >= best - tolerance * scale && (chosen < 0 || (order && order[pair] > order[chosen]))) chosen = pair;
    }
    policy[chosen] = 1;
  }
  return policy;
}

/** Behaviour Cloning by counts: the most frequent action, uniform without data. */
export function clonedPolicy(counts) {
  return greedyPolicy(
    counts.map((n) => (n > 0 ? n : -Infinity)),
    null,
    0,
  );
}

/** The action of each state that a policy always takes, -1 where it is random. */
export function actionsOf(policy) {
  return Int8Array.from({ length: policy.length / A }, (_, s) => policy.subarray(s * A, s * A + A).indexOf(1));
}

/** Expected visits of every state over one episode. policyAt(step) gives the policy, or one policy for all steps. */
export function visitsOf(model, policyAt, start, steps, spread = null) {
  const { S } = model,
    visits = new Float64Array(S);
  let mass = new Float64Array(S);
  mass[start] = 1;
  for (let step = 0; step < steps; step++) {
    const policy = typeof policyAt === "function" ? policyAt(step) : policyAt,
      following = new Float64Array(S);
    for (let s = 0; s < S; s++) {
      if (mass[s] === 0) continue;
      visits[s] += mass[s];
      for (let pair = s * A; pair < s * A + A; pair++) {
        if (policy[pair] === 0) continue;
        if (spread) spread[pair] += mass[s] * policy[pair];
        for (let k = model.first[pair]; k < model.first[pair + 1]; k++) {
          following[model.next[k]] += mass[s] * policy[pair] * model.going[k];
        }
      }
    }
    mass = following;
  }
  return visits;
}

/** Expected return, hazard and goal probability of one episode, undiscounted, from the start. */
export function evaluate(world, policyAt) {
  const { model, S, hazard, goal, terminal } = world,
    taken = new Float64Array(S * A);
  const visits = visitsOf(model, policyAt, world.start, world.steps, taken),
    worth = { return: 0, hazard: 0, goal: 0 };
  for (let pair = 0; pair < S * A; pair++) {
    if (taken[pair] === 0 || terminal[Math.floor(pair / A)]) continue;
    worth.return += taken[pair] * model.expected[pair];
    for (let k = model.first[pair]; k < model.first[pair + 1]; k++) {
      worth.hazard += taken[pair] * model.probability[k] * hazard[model.next[k]];
      worth.goal += taken[pair] * model.probability[k] * goal[model.next[k]];
    }
  }
  return { ...worth, visits };
}

/** The true discounted value of a policy in every state. */
export function trueValues(world, policy, gamma) {
  const reward = new Float64Array(world.S);
  for (let pair = 0; pair < policy.length; pair++)
    reward[Math.floor(pair / A)] += policy[pair] * world.model.expected[pair];
  return solveLinear(world.model, policy, reward, gamma);
}

/** The worth of the best policy, which may depend on the step: backward induction over the episode. */
export function optimum(world) {
  const { model, S, steps } = world,
    policies = [];
  let values = new Float64Array(S);
  for (let step = 0; step < steps; step++) {
    const q = backup(model, values, 1);
    values = values.map((_, s) => Math.max(q[s * A], q[s * A + 1], q[s * A + 2], q[s * A + 3]));
    policies.push(greedyPolicy(q, null, 1e-12));
  }
  return { ...evaluate(world, (step) => policies[steps - 1 - step]), first: policies[steps - 1] };
}

/** The probability that an episode is ever in each cell; where at most `floor` visits are expected, their number. */
export function passing(world, policy, floor = 0) {
  const { model, S, start, steps, terminal } = world,
    from = [],
    to = [],
    p = [],
    result = new Float64Array(S);
  const visits = visitsOf(model, policy, start, steps);
  let mass = new Float64Array(S),
    following = new Float64Array(S);
  for (let s = 0; s < S; s++) {
    // the policy's transitions, once
    if (terminal[s] || visits[s] === 0) continue;
    const next = new Map();
    for (let pair = s * A; pair < s * A + A; pair++) {
      for (let k = model.first[pair]; k < model.first[pair + 1] && policy[pair] > 0; k++) {
        next.set(model.next[k], (next.get(model.next[k]) || 0) + policy[pair] * model.probability[k]);
      }
    }
    for (const [cell, probability] of next) {
      from.push(s);
      to.push(cell);
      p.push(probability);
    }
  }
  for (let cell = 0; cell < S; cell++) {
    if (cell === start) {
      result[cell] = 1;
      continue;
    }
    if (terminal[cell]) {
      // entered at most once
      for (let i = 0; i < from.length; i++) if (to[i] === cell) result[cell] += visits[from[i]] * p[i];
      continue;
    }
    result[cell] = visits[cell];
    if (visits[cell] <= floor) continue;
    result[cell] = 0;
    mass.fill(0);
    mass[start] = 1;
    for (let step = 0; step < steps; step++) {
      // arrivals up to the first
      following.fill(0);
      for (let i = 0; i < from.length; i++) following[to[i]] += mass[from[i]] * p[i];
      result[cell] += following[cell];
      following[cell] = 0;
      [mass, following] = [following, mass];
    }
  }
  return result;
}
