// The exact curve over alpha: worth of the greedy policies, and where greedy actions flip. The page's worker runs it.
import { solve } from "./solve.js";
import { actionsOf, evaluate, greedyPolicy } from "./policies.js";

export const LOWEST = -2,
  HIGHEST = 3,
  POINTS = 40; // decades of alpha, and how many values between them
const FLIP_WIDTH = 1.02; // a flip is known to this ratio of two alphas

/** The greedy policy of a solution. At the limits what vanishes there decides among ties, as in cql/exact/curve.py. */
export function learnedPolicy(data, found, setting) {
  if (setting.alpha === 0) return greedyPolicy(solve(data, { ...setting, alpha: 1e-6 }, { values: found.values }).q);
  return greedyPolicy(found.q, setting.alpha === Infinity ? found.targets : null);
}

/** One point of the curve. */
function pointAt(world, data, setting, warm) {
  const found = solve(data, setting, warm),
    policy = learnedPolicy(data, found, setting),
    worth = evaluate(world, policy);
  return { alpha: setting.alpha, return: worth.return, hazard: worth.hazard, found, actions: actionsOf(policy) };
}

/**
 * Posts { points, zero, infinity }, then { flips, refined }: the alphas at which the greedy action of a state with data
 * changes, and the points that locate them too.
 * Every few solutions it lets other work go on, and it ends where stale() says that nobody waits for it any more.
 */
export async function exactCurve({ id, world, data, setting, hasLimit }, post, stale) {
  let rested = performance.now();
  const pause = async () => {
    if (performance.now() - rested < 100) return;
    await new Promise((done) => setTimeout(done));
    rested = performance.now();
  };
  const alphas = Array.from({ length: POINTS }, (_, i) => 10 ** (LOWEST + ((HIGHEST - LOWEST) * i) / (POINTS - 1)));
  const strip = ({ found, actions, ...numbers }) => numbers,
    limit = (alpha) => strip(pointAt(world, data, { ...setting, alpha }, null));
  let points = [];
  for (const alpha of alphas) {
    points.push(pointAt(world, data, { ...setting, alpha }, points.length ? points.at(-1).found : null));
    await pause();
    if (stale()) return;
  }
  post({ id, points: points.map(strip), zero: limit(0), infinity: hasLimit ? limit(Infinity) : null });
  const differ = (one, other) => one.actions.some((a, s) => data.seen[s] && a !== other.actions[s]);
  for (let wide = true; wide;) {
    // halve every interval in which an action changes, until all are narrow
    const refined = [points[0]];
    wide = false;
    for (const point of points.slice(1)) {
      const before = refined.at(-1);
      if (point.alpha > before.alpha * FLIP_WIDTH && differ(before, point)) {
        refined.push(pointAt(world, data, { ...setting, alpha: Math.sqrt(before.alpha * point.alpha) }, before.found));
        wide = true;
        await pause();
        if (stale()) return;
      }
      refined.push(point);
    }
    points = refined;
  }
  const flips = [];
  points.slice(1).forEach((point, i) =>
    point.actions.forEach((after, state) => {
      const before = points[i].actions[state];
      if (data.seen[state] && after !== before)
        flips.push({ alpha: Math.sqrt(point.alpha * points[i].alpha), state, before, after });
    }),
  );
  post({ id, flips, refined: points.map(strip) });
}
