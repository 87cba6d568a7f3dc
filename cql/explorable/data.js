// The data set: episodes of the behaviour policy as cql/collect.py draws them, and the model that they give.
import { A, modelOf } from "./world.js";
import { visitsOf } from "./policies.js";
import { uniformGenerator } from "./random.js";

/** The step from a pair to its outcome k. */
function stepTo({ reward, next, terminated }, s, a, k) {
  return { s, a, r: reward[k], next: next[k], terminated: terminated[k] === 1 };
}

/** Logged steps of whole episodes, equal to those of cql.generate_offline_episodes with this seed. */
export function sampleEpisodes(world, policy, episodes, seed) {
  // NumPy draws the slips from default_rng(seed) and the actions from default_rng([seed, 1])
  const slips = uniformGenerator([seed]),
    choices = uniformGenerator([seed, 1]),
    rows = [],
    { model } = world;
  for (let episode = 0; episode < episodes; episode++) {
    let s = world.start;
    for (let step = 1; step <= world.steps; step++) {
      const a = drawAction(policy, s, choices()),
        k = drawOutcome(model, s * A + a, slips());
      const row = stepTo(model, s, a, k);
      const truncated = step === world.steps && !row.terminated;
      rows.push({ ...row, truncated, episode, probability: policy[s * A + a] });
      s = row.next;
      if (row.terminated) break;
    }
  }
  return rows;
}

function drawAction(policy, s, uniform) {
  let total = 0,
    sum = 0,
    last = 0;
  for (let a = 0; a < A; a++) {
    total += policy[s * A + a];
    if (policy[s * A + a]) last = a;
  }
  for (let a = 0; a < A; a++) if ((sum += policy[s * A + a]) > uniform * total) return Math.min(a, last);
  return last;
}

function drawOutcome(model, pair, uniform) {
  const end = model.first[pair + 1];
  for (let k = model.first[pair]; k < end; k++) if ((uniform -= model.probability[k]) < 0) return k;
  return end - 1;
}

/**
 * The data set of the page: { steps, counts, beta, logged, seen, model }, with steps null for infinite data.
 *
 * source: "sampled", "infinite" (every pair of the behaviour policy with its true probabilities; counts are those that
 * one episode is expected to give, edits do not enter) or "given" (the steps of a run). edits: Map from a pair to how
 * often it is logged instead; its outcomes are drawn from the true model.
 */
export function makeData(world, policy, { source, episodes, seed, edits, given }) {
  const { S } = world,
    counts = new Float64Array(S * A);
  let steps = null,
    model = world.model;
  if (source === "infinite") {
    const visits = visitsOf(world.model, policy, world.start, world.steps);
    for (let pair = 0; pair < S * A; pair++) {
      const s = Math.floor(pair / A);
      counts[pair] = world.terminal[s] ? 0 : visits[s] * policy[pair];
    }
  } else {
    steps = (source === "given" ? given : sampleEpisodes(world, policy, episodes, seed)).filter(
      (row) => !edits.has(row.s * A + row.a),
    );
    for (const [pair, times] of edits) {
      const draw = uniformGenerator([seed, 2, pair]),
        s = Math.floor(pair / A);
      if (world.terminal[s]) continue;
      for (let n = 0; n < times; n++) {
        const k = drawOutcome(world.model, pair, draw());
        steps.push({ ...stepTo(world.model, s, pair % A, k), truncated: false, episode: null });
      }
    }
    model = empiricalModel(S, steps, counts);
  }
  const logged = counts.map((n) => n > 0),
    seen = new Uint8Array(S),
    beta = new Float64Array(S * A);
  for (let s = 0; s < S; s++) {
    let total = 0;
    for (let a = 0; a < A; a++) total += counts[s * A + a];
    seen[s] = total > 0;
    for (let a = 0; a < A; a++) beta[s * A + a] = total > 0 ? counts[s * A + a] / total : 0;
  }
  return { source, steps, counts, beta, logged: Uint8Array.from(logged), seen, model };
}

/** The policy behind the data: beta where counts were set by hand or all steps are given, else the behaviour policy. */
export function policyOfData(policy, { source, beta, seen }, edits) {
  const byHand = new Set([...edits.keys()].map((pair) => Math.floor(pair / A)));
  return policy.map((probability, pair) => {
    const s = Math.floor(pair / A);
    return seen[s] && (source === "given" || byHand.has(s)) ? beta[pair] : probability;
  });
}

/** The relative frequencies of the outcomes of every pair; fills counts. */
function empiricalModel(S, steps, counts) {
  const found = Array.from({ length: S * A }, () => new Map());
  for (const { s, a, r, next, terminated } of steps) {
    const outcomes = found[s * A + a],
      key = `${next} ${r} ${terminated}`;
    if (outcomes.has(key)) outcomes.get(key)[0]++;
    else outcomes.set(key, [1, next, r, terminated]);
    counts[s * A + a]++;
  }
  return modelOf(
    S,
    found.map((outcomes, pair) => [...outcomes.values()].map(([n, ...rest]) => [n / counts[pair], ...rest])),
  );
}
