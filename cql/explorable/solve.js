// The exact solutions of cql/exact: CQL(H) and the paper's other penalties, their limits and a certificate.
//
//   Q = y + alpha_half (pull - p / beta),   p = w exp(Q / tau) / sum w exp(Q / tau),   y = r + gamma V(s'),   V = max Q
//
// on the logged actions; alpha_half is the weight in front of a half square. An OOD action, never logged in its state,
// has Q = -Infinity; a state without data has V = 0.
import { A } from "./world.js";

// the objectives: w is 1 or beta, pull is 1 where the penalty holds - Q(s, a)
export const OBJECTIVES = {
  logsumexp: { name: "CQL(H)", formula: "τ log Σ exp(Q/τ) − Q(s,a)", pull: 1 },
  rho: { name: "CQL(ρ), ρ = β", formula: "log Σ β exp Q − Q(s,a)", pull: 1, weightedByBeta: true },
  previous: { name: "CQL(ρ), ρ = softmax Q", formula: "log Σ ρ exp Q − Q(s,a)", pull: 1, temperature: 0.5 },
  "softmax-push-down": { name: "Eq. 1, μ = softmax Q", formula: "log Σ exp Q, without the pull up", pull: 0 },
};

/** { alphaHalf, tau, pull, weightedByBeta } of { alpha, tdLoss, penalty, temperature }. */
function objectiveOf({ alpha, tdLoss, penalty, temperature }) {
  const { pull, weightedByBeta, temperature: own } = OBJECTIVES[penalty];
  return { alphaHalf: tdLoss === "mse" ? alpha / 2 : alpha, tau: own || temperature, pull, weightedByBeta };
}

/** r + gamma E[V(s')] of every pair. */
export function backup(model, values, gamma) {
  const targets = model.expected.slice();
  for (let pair = 0; pair < targets.length; pair++) {
    let sum = 0;
    for (let k = model.first[pair]; k < model.first[pair + 1]; k++) sum += model.going[k] * values[model.next[k]];
    targets[pair] += gamma * sum;
  }
  return targets;
}

/** x = right + gamma P x, where weights [S * A] of the pairs give P: elimination in the band around the diagonal. */
export function solveLinear(model, weights, right, gamma) {
  const { S, band } = model,
    wide = 2 * band + 1,
    m = new Float64Array(S * wide),
    x = right.slice();
  for (let s = 0; s < S; s++) {
    m[s * wide + band] += 1;
    for (let pair = s * A; pair < s * A + A; pair++) {
      if (weights[pair] === 0) continue;
      for (let k = model.first[pair]; k < model.first[pair + 1]; k++) {
        if (model.going[k]) m[s * wide + band + model.next[k] - s] -= gamma * weights[pair] * model.going[k];
      }
    }
  }
  for (let s = 0; s < S; s++) {
    // no pivoting: the matrix is diagonally dominant for gamma < 1
    const pivot = m[s * wide + band],
      end = Math.min(S - 1, s + band);
    for (let row = s + 1; row <= end; row++) {
      const at = row * wide + band - row,
        factor = m[at + s] / pivot;
      if (factor === 0) continue;
      for (let column = s + 1; column <= end; column++) m[at + column] -= factor * m[s * wide + band - s + column];
      x[row] -= factor * x[s];
    }
  }
  for (let s = S - 1; s >= 0; s--) {
    const at = s * wide + band - s,
      end = Math.min(S - 1, s + band);
    for (let column = s + 1; column <= end; column++) x[s] -= m[at + column] * x[column];
    x[s] /= m[at + s];
  }
  return x;
}

/**
 * One sweep: Q, p and the derivative of v of every logged pair for given targets, by the one-dimensional form.
 *
 * With z = log sum w exp(Q / tau) and v = Q / tau - z every action solves
 * v + c exp v = (y + pull alpha_half) / tau - z with c = alpha_half w / (tau beta), and z is the root of
 * sum w exp v = 1 (cql/exact/family.py). z: where to start, and the
 * roots afterwards.
 */
function sweep(data, targets, objective, out, z) {
  const { alphaHalf, tau, pull, weightedByBeta } = objective,
    { beta, seen } = data,
    { q, p, slope } = out;
  const [right, c, w, actions, v, t, logC, root] = Array.from({ length: 8 }, () => [0, 0, 0, 0]);
  for (let s = 0; s < seen.length; s++) {
    if (!seen[s]) continue;
    let n = 0,
      low = -Infinity,
      high = -Infinity;
    for (let pair = s * A; pair < s * A + A; pair++) if (beta[pair] > 0) actions[n++] = pair;
    for (let i = 0; i < n; i++) {
      const b = beta[actions[i]];
      w[i] = weightedByBeta ? b : 1;
      c[i] = (alphaHalf * w[i]) / (tau * b);
      logC[i] = Math.log(c[i]);
      right[i] = (targets[actions[i]] + pull * alphaHalf) / tau;
      low = Math.max(low, right[i] + Math.log(w[i]) - c[i] / w[i]); // where the largest w exp v is 1, and 1 / n
      high = Math.max(high, right[i] + Math.log(w[i] * n) - c[i] / (w[i] * n));
    }
    let at = z[s] > low && z[s] < high ? z[s] : high,
      total = 1;
    for (let turn = 0; turn < 100; turn++) {
      let falling = 0;
      total = 0;
      for (let i = 0; i < n; i++) {
        let rise = 1;
        if (c[i] === 0) v[i] = right[i] - at;
        else {
          // t + exp t = k with t = v + log c: Newton's steps, from the root for the last z or from above
          const k = right[i] - at + logC[i],
            above = k > 1 ? Math.log(k) : k;
          let x = turn ? Math.min(root[i], above) : above;
          for (let turns = 0; turns < 60; turns++) {
            const e = Math.exp(x),
              step = (x + e - k) / (1 + e);
            x = Math.min(x - step, above);
            if (Math.abs(step) <= 1e-15 * (1 + Math.abs(x))) break;
          }
          root[i] = x;
          v[i] = x - logC[i];
          rise = 1 / (1 + Math.exp(x));
        }
        t[i] = w[i] * Math.exp(v[i]);
        slope[actions[i]] = rise;
        total += t[i];
        falling += t[i] * rise;
      }
      if (total >= 1) low = at;
      else high = at;
      const rounding = 4e-15 * (1 + Math.abs(at)),
        newton = at + (Math.log(total) * total) / falling;
      const following = newton > low - rounding && newton < high + rounding ? newton : (low + high) / 2;
      if (Math.abs(following - at) <= rounding) break;
      at = following;
    }
    z[s] = at;
    // E_beta[Q - y] is known, and a shift of all Q leaves p as it is: so rounding is taken out of the level
    let level = pull ? 0 : -alphaHalf;
    for (let i = 0; i < n; i++) {
      q[actions[i]] = tau * (v[i] + at);
      p[actions[i]] = t[i] / total;
      level += beta[actions[i]] * (targets[actions[i]] - q[actions[i]]);
    }
    for (let i = 0; i < n; i++) q[actions[i]] += level;
  }
}

/** max Q of every state, 0 without data. */
export function valueOf(q, S) {
  const value = new Float64Array(S);
  for (let s = 0; s < S; s++) {
    const best = Math.max(q[s * A], q[s * A + 1], q[s * A + 2], q[s * A + 3]);
    value[s] = best === -Infinity ? 0 : best;
  }
  return value;
}

/** Q of one sweep from given values: one exact backup of the objective. */
export function backedUp(data, values, setting) {
  const { S } = data.model,
    out = empty(S);
  sweep(data, backup(data.model, values, setting.gamma), objectiveOf(setting), out, new Float64Array(S).fill(NaN));
  return out;
}

function empty(S) {
  return { q: new Float64Array(S * A).fill(-Infinity), p: new Float64Array(S * A), slope: new Float64Array(S * A) };
}

/**
 * The exact solution { q, p, targets, values, z, residual, sweeps } of a setting { alpha, gamma, tdLoss, penalty,
 * temperature }; alpha 0 and Infinity are the limits. warm: a solution nearby to start from, or { values }.
 *
 * Newton steps on V = max Q[V], whose derivative is a distribution over the logged actions, so that a step is one
 * policy evaluation; where they come no closer, steps of the contraction.
 */
export function solve(data, setting, warm = null) {
  if (setting.alpha === Infinity) return limitOfLargeAlpha(data, setting);
  const { model, seen, beta } = data,
    { S } = model,
    { gamma } = setting,
    objective = objectiveOf(setting);
  const out = empty(S),
    z = warm && warm.z ? warm.z.slice() : new Float64Array(S).fill(NaN),
    chain = new Float64Array(S * A),
    gap = new Float64Array(S);
  let values = new Float64Array(S),
    best = Infinity,
    idle = 0,
    sweeps = 0;
  if (warm) for (let s = 0; s < S; s++) values[s] = seen[s] ? warm.values[s] : 0;
  for (;;) {
    sweep(data, backup(model, values, gamma), objective, out, z);
    sweeps++;
    const image = valueOf(out.q, S);
    let size = 0,
      scale = 1;
    for (let s = 0; s < S; s++) {
      gap[s] = image[s] - values[s];
      size = Math.max(size, Math.abs(gap[s]));
      scale = Math.max(scale, Math.abs(image[s]));
    }
    idle = size < 0.9 * best ? 0 : idle + 1;
    best = Math.min(best, size);
    if (best <= 1e-13 * scale || (idle > 3 && best <= 1e-10 * scale) || idle > 1000) break;
    if (idle > 8) {
      values = image;
      continue;
    }
    for (let s = 0; s < S; s++) {
      if (!seen[s]) continue;
      let greedy = s * A,
        shared = 0;
      for (let pair = s * A; pair < s * A + A; pair++) {
        if (out.q[pair] > out.q[greedy]) greedy = pair;
        if (beta[pair] > 0) shared += out.p[pair] * out.slope[pair];
      }
      const own = out.slope[greedy];
      for (let pair = s * A; pair < s * A + A; pair++) {
        const share = beta[pair] > 0 && shared > 0 ? (out.p[pair] * out.slope[pair]) / shared : 0;
        chain[pair] = own * (pair === greedy) + (1 - own) * share;
      }
    }
    const step = solveLinear(model, chain, gap, gamma);
    for (let s = 0; s < S; s++) if (seen[s]) values[s] += step[s];
  }
  return { ...finished(data, out, setting), z, sweeps };
}

/** The solution with V = max Q and its targets, and the certificate: how far the equations of Q are from holding. */
function finished(data, { q, p }, setting) {
  const values = valueOf(q, data.model.S),
    targets = backup(data.model, values, setting.gamma);
  return { q, p, values, targets, residual: residualOf(data, q, targets, setting) };
}

/** max |beta td'(Q - y) + alpha (p - pull beta)| over the logged pairs, with p from Q anew; of alpha = Infinity, the
 * largest of |E_beta[Q - y]| and |p - beta|. */
export function residualOf(data, q, targets, setting) {
  const { alphaHalf, tau, pull, weightedByBeta } = objectiveOf(setting),
    { beta, seen } = data,
    unit = setting.tdLoss === "mse" ? 2 : 1;
  let worst = 0;
  for (let s = 0; s < seen.length; s++) {
    if (!seen[s]) continue;
    const pairs = [0, 1, 2, 3].map((a) => s * A + a).filter((pair) => beta[pair] > 0);
    const top = Math.max(...pairs.map((pair) => q[pair]));
    const e = pairs.map((pair) => (weightedByBeta ? beta[pair] : 1) * Math.exp((q[pair] - top) / tau));
    const total = e.reduce((x, y) => x + y, 0);
    let level = 0;
    pairs.forEach((pair, i) => {
      const error = q[pair] - targets[pair],
        away = e[i] / total - pull * beta[pair];
      level += beta[pair] * error;
      if (setting.alpha !== Infinity) worst = Math.max(worst, unit * Math.abs(beta[pair] * error + alphaHalf * away));
      else if (!weightedByBeta) worst = Math.max(worst, Math.abs(away));
    });
    if (setting.alpha === Infinity) worst = Math.max(worst, Math.abs(level));
  }
  return worst;
}

/** alpha -> infinity: p -> beta and Q -> E_beta[y] + tau (H(beta) + log beta), for w = beta Q -> E_beta[y]. */
function limitOfLargeAlpha(data, setting) {
  const { tau, pull, weightedByBeta } = objectiveOf(setting),
    { model, beta, seen } = data,
    { S } = model,
    out = empty(S);
  if (!pull) throw new Error("Without the pull up Q falls without bound as α grows: there is no limit.");
  const shape = weightedByBeta ? () => 0 : (pair) => tau * Math.log(beta[pair]),
    mean = new Float64Array(S),
    reward = new Float64Array(S);
  for (let s = 0; s < S; s++) {
    let top = -Infinity;
    for (let pair = s * A; pair < s * A + A; pair++) {
      if (beta[pair] === 0) continue;
      mean[s] -= beta[pair] * shape(pair);
      reward[s] += beta[pair] * model.expected[pair];
      top = Math.max(top, shape(pair));
    }
    if (seen[s]) reward[s] += mean[s] + top;
  }
  const targets = backup(model, solveLinear(model, beta, reward, setting.gamma), setting.gamma);
  for (let s = 0; s < S; s++) {
    let level = mean[s];
    for (let pair = s * A; pair < s * A + A; pair++) if (beta[pair] > 0) level += beta[pair] * targets[pair];
    for (let pair = s * A; pair < s * A + A; pair++) {
      if (beta[pair] > 0) {
        out.q[pair] = level + shape(pair);
        out.p[pair] = beta[pair];
      }
    }
  }
  return { ...finished(data, out, setting), sweeps: 1 };
}

/**
 * Q-learning over all four actions with a table, whose OOD actions keep their initial value: nothing corrects them, and
 * the maximum picks them wherever they are the larger. Iterated until it moves no more.
 */
export function solveUnrestricted(data, gamma, initial, sweeps = 100000) {
  const { model, logged, seen } = data,
    { S } = model,
    q = new Float64Array(S * A).fill(initial);
  let targets,
    turn = 0;
  const values = new Float64Array(S).fill(initial);
  for (; turn < sweeps; turn++) {
    targets = backup(model, values, gamma);
    let change = 0;
    for (let s = 0; s < S; s++) {
      if (!seen[s]) continue;
      let best = -Infinity;
      for (let pair = s * A; pair < s * A + A; pair++) {
        if (logged[pair]) q[pair] = targets[pair];
        best = Math.max(best, q[pair]);
      }
      change = Math.max(change, Math.abs(best - values[s]));
      values[s] = best;
    }
    if (change <= 1e-12) break;
  }
  return { q, p: null, values, targets, residual: null, sweeps: turn };
}
