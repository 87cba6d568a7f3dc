// Six short lessons: each sets the controls and asks a question.
import { MAPS } from "./world.js";

const LOGGED = { source: "sampled", epsilon: 0.22, episodes: 500, seed: 42, edits: new Map() };
const GRID = { slip: 0.05, rewards: { free: -1, hazard: -100, goal: 50 }, steps: 80, gamma: 0.99, ...LOGGED };
const ENDS = { slip: 0, rewards: { free: -1, hazard: 0, goal: 5 }, steps: 10, gamma: 0.99, ...LOGGED };
const counts = (...times) => new Map(times.flatMap(([s, ...four]) => four.map((n, a) => [s * 4 + a, n])));

export const PRESETS = {
  islands: { name: "Islands, 15 × 15", map: MAPS.islands, ...GRID },
  blocks: { name: "Blocks, 15 × 15", map: MAPS.blocks, ...GRID },
  chain: {
    name: "Two states in a chain",
    map: ["HG", "S.", "HH"],
    ...ENDS, // up, down, left, right
    edits: counts([2, 50, 0, 0, 50], [3, 10, 90, 0, 0]),
  },
  bandit: { name: "A bandit with two arms", map: ["HSG"], ...ENDS, edits: counts([1, 0, 0, 90, 10]) },
  cliff: {
    name: "A corridor with a cliff",
    ...GRID,
    map: ["............", "............", "............", "SHHHHHHHHHHG"],
  },
};

export const LESSONS = [
  {
    short: "Failure",
    title: "Why Q-learning fails offline",
    set: { ...PRESETS.islands, learner: "q-all", initial: 25, view: "estimate" },
    text: "Q-learning with a table over all four actions. Every entry starts at 25, and only logged pairs are ever updated. Orange arrows are out-of-distribution (OOD) actions: never logged in their cell.",
    question:
      "The value estimate at the start is far above the true value of the policy. Why does more training not correct it?",
    answer:
      "No TD loss contains an OOD action, so no gradient reaches its value. The maximum in the target picks it wherever it is the larger, and passes it on to every cell before. A network does not keep 25 there: it extrapolates, and that can rise without end. Choose “Q-learning on logged actions” to see what the data alone support.",
  },
  {
    short: "Penalty",
    title: "The penalty is a cross-entropy",
    set: { ...PRESETS.bandit, learner: "logsumexp", temperature: 1, alpha: 6, view: "softmax", cell: 1 },
    text: "One state, two arms: left (reward 0) was logged 90 times, right (reward 5) 10 times. The penalty log Σ exp Q − Q(s,a) is −log p(a), with p = softmax Q: the loss of Behaviour Cloning with Q as logits.",
    question: "Drag α to ∞ and watch the mean penalty below the outcomes. What is its minimum, and which Q reach it?",
    answer:
      "The entropy of the logged actions, H(β) = −0.9 log 0.9 − 0.1 log 0.1 = 0.325. Every Q = log β + constant reaches it, for then p = β: rewards no longer matter.",
  },
  {
    short: "One state",
    title: "One state in closed form",
    set: { ...PRESETS.bandit, learner: "logsumexp", temperature: 1, alpha: 1, view: "policy", cell: 1 },
    text: "Both arms end the episode, so y is the reward. The derivative of the loss is zero where Q = y + α/2 · (1 − p/β). Read the formula with its numbers under the cell.",
    question: "The right arm is worth 5 more. At which α does the left one win, and why there?",
    answer:
      "At the flip both Q are equal, so p = ½ for each, and the penalty’s shares differ by α/2 · ½ · (1/0.1 − 1/0.9) = 2.22 α. That is 5 at α = 2.25: the orange tick on the curve.",
  },
  {
    short: "Two ends",
    title: "From Q-learning to Behaviour Cloning",
    set: { ...PRESETS.islands, learner: "logsumexp", temperature: 1, alpha: 0, view: "policy" },
    text: "The slider runs over all strengths of the penalty. Ticks under the curve are flips: values of α at which the greedy action of one cell changes.",
    question: "Which two familiar methods stand at the ends, and what happens between?",
    answer:
      "At 0⁺ Q-learning restricted to logged actions, return 21.2 here; at ∞ the most frequent action of each cell, which is Behaviour Cloning, 14.0. Between them cells go over one by one, where the advantage in y no longer pays for an action being rare.",
  },
  {
    short: "More α",
    title: "More α is not safer",
    set: { ...PRESETS.islands, learner: "logsumexp", temperature: 1, alpha: 6, view: "passing" },
    text: "The lower curve is the probability that an episode ends in a hazard.",
    question: "Does a stronger penalty always lower it?",
    answer:
      "No. It is 0.002 at α = 6, 0.054 at α = 100 and 0.056 at ∞. The penalty pulls towards the frequent action, not towards the safe one: a strong one copies what the behaviour did beside the hazards.",
  },
  {
    short: "Sampling",
    title: "Sampling error and conservatism",
    set: { ...PRESETS.islands, episodes: 40, learner: "logsumexp", temperature: 1, alpha: 6, view: "difference" },
    text: "The map shows the value estimate minus the true value of the policy, learned from 40 episodes. Blue: too high; orange: too low.",
    question:
      "Which part is sampling error, and which is the penalty’s conservatism? Switch the source to infinite data, then take α to 0⁺.",
    answer:
      "With infinite data the model is the true one on the logged pairs, so what remains is the penalty; at 0⁺ that vanishes too. With 40 episodes some cells stay too high at every α: a hazard that was not met is not in the model, and CQL(H) is no lower bound.",
  },
];
