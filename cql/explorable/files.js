// What leaves the page: the command line that trains the case, and the data set as .npz.
import { A, MAPS } from "./world.js";

const REWARDS = { free: -1, hazard: -100, goal: 50 }; // of envs/gridworld.py, which no flag changes
const DATA_FILE = "cql-data.npz";

/** Whether the world is one that train.py makes: with other rewards it knows the steps, not where they come from. */
export function isTheGridWorld(state) {
  return Object.keys(REWARDS).every((name) => state.rewards[name] === REWARDS[name]);
}

/** { command, notes }: a line for the shell, or null, and what is to be known of it. */
export function commandLine(state) {
  const words = ["python", "train.py"],
    notes = [],
    name = Object.keys(MAPS).find((key) => MAPS[key].join() === state.map.join());
  const flag = (text, value, usual) => {
    if (value !== usual) words.push(text, String(value));
  };
  if (state.learner === "softmax-push-down") {
    return { command: null, notes: ["train.py has no such penalty; its push-down takes a given policy."] };
  }
  if (state.source !== "given" && !state.edits.size && isTheGridWorld(state) && name) {
    flag("--map", name, "islands");
    flag("--slip", state.slip, 0.05);
    flag("--max-episode-steps", state.steps, 80);
    flag("--episodes", state.episodes, 500);
    flag("--epsilon", state.epsilon, 0.22);
    flag("--data-seed", state.seed, 42);
    if (state.source === "infinite")
      notes.push("Training needs a finite data set: this line samples one from the same policy.");
  } else if (state.source === "infinite") {
    return { command: null, notes: ["Training needs a finite data set: choose sampled data, then save them."] };
  } else {
    words.push("--dataset", DATA_FILE);
    notes.push(`Save the data set as ${DATA_FILE} first.`);
    if (!isTheGridWorld(state))
      notes.push(
        "With rewards other than −1, −100 and 50 this is not the environment of train.py: it trains, without exact numbers.",
      );
  }
  flag("--gamma", state.gamma, 0.99);
  if (state.learner === "bc" || (state.alpha === Infinity && state.learner === "logsumexp")) {
    words.push("--steps", "0");
    if (state.learner !== "bc") notes.push("At α → ∞ CQL(H) clones the behaviour: this line trains BC.");
    return { command: words.join(" "), notes };
  }
  if (state.learner === "q-all") {
    const bound = 1 / Math.sqrt(state.map.length * state.map[0].length);
    words.push("--alpha", "0", "--hidden", "0");
    notes.push(
      `No flag sets the initial Q of ${state.initial}: the table of train.py starts within ±${bound.toFixed(3)}.`,
    );
  } else if (state.learner === "q-logged") words.push("--alpha", "0", "--supported");
  else {
    if (state.alpha === 0) {
      words.push("--alpha", "0.01", "--supported");
      notes.push("α → 0⁺ is a limit: this line takes α = 0.01 and leaves out OOD actions.");
    } else if (state.alpha === Infinity) {
      words.push("--alpha", "1000");
      notes.push("α → ∞ is a limit: this line takes α = 1000.");
    } else flag("--alpha", Number(state.alpha.toPrecision(6)), 6);
    flag("--penalty", state.learner, "logsumexp");
    if (state.learner === "logsumexp") flag("--temperature", state.temperature, 1);
    if (state.learner === "rho") words.push("--supported");
  }
  flag("--td-loss", state.tdLoss, "mse");
  return { command: words.join(" "), notes };
}

// ------------------------------------------------------------------------------------------------------ .npz

/** The bytes of an .npz that OfflineDataset.load reads, in parts. */
export function datasetFile(state, data) {
  const rows = data.steps,
    column = (kind, read) => kind.from(rows, read),
    D = rows.length,
    episodes = [];
  rows.forEach((row, i) => {
    // a step whose episode lost its other steps begins one of its own
    const before = rows[i - 1],
      follows = i > 0 && row.episode !== null && row.episode === before.episode && row.s === before.next;
    episodes.push(i === 0 ? 0 : episodes[i - 1] + (follows ? 0 : 1));
  });
  const facts = { num_states: state.map.length * state.map[0].length, num_actions: A };
  if (isTheGridWorld(state)) {
    facts.environment = {
      id: "SafetyCriticalGridWorld-v0",
      max_episode_steps: state.steps,
      arguments: { desc: state.map, slip_probability: state.slip, observation: "index" },
    };
  }
  if (state.source === "sampled" && !state.edits.size) {
    Object.assign(facts, { episodes: state.episodes, epsilon: state.epsilon, seed: state.seed });
  }
  const text = JSON.stringify(facts),
    codes = Uint32Array.from(text, (letter) => letter.codePointAt(0));
  const files = {
    observations: ["<i4", column(Int32Array, (row) => row.s)],
    actions: ["<i4", column(Int32Array, (row) => row.a)],
    rewards: ["<f4", column(Float32Array, (row) => row.r)],
    next_observations: ["<i4", column(Int32Array, (row) => row.next)],
    terminations: ["|b1", column(Uint8Array, (row) => row.terminated)],
    truncations: ["|b1", column(Uint8Array, (row) => row.truncated)],
    episode_ids: ["<i4", Int32Array.from(episodes)],
  };
  if (rows.every((row) => row.probability))
    files.behavior_probabilities = ["<f8", column(Float64Array, (row) => row.probability)];
  const entries = Object.entries(files).map(([name, [kind, values]]) => [`${name}.npy`, npy(kind, `(${D},)`, values)]);
  return zip([...entries, ["metadata.npy", npy(`<U${codes.length}`, "()", codes)]]);
}

/** An array in NumPy's format, version 1.0. */
function npy(kind, shape, values) {
  const header = `{'descr': '${kind}', 'fortran_order': False, 'shape': ${shape}, }`;
  const padded = header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11) + "\n";
  const bytes = new Uint8Array(10 + padded.length + values.byteLength);
  bytes.set([0x93, 78, 85, 77, 80, 89, 1, 0, padded.length & 255, padded.length >> 8]);
  bytes.set(new TextEncoder().encode(padded), 10);
  bytes.set(new Uint8Array(values.buffer), 10 + padded.length);
  return bytes;
}

/** An archive of [name, bytes], stored without compression, in parts. */
function zip(files) {
  const parts = [],
    directory = [];
  let offset = 0;
  for (const [name, bytes] of files) {
    const letters = new TextEncoder().encode(name),
      size = little(bytes.length, 4);
    const made = [20, 0, 0, 0, 0, 0, 0, 0, 33, 0]; // version 2.0, no flags, stored, 1 January 1980
    const facts = [...made, ...little(crc32(bytes), 4), ...size, ...size, ...little(letters.length, 2), 0, 0];
    const local = Uint8Array.from([0x50, 0x4b, 3, 4, ...facts]);
    const entry = [0x50, 0x4b, 1, 2, 20, 0, ...facts, ...little(0, 10), ...little(offset, 4)];
    directory.push(Uint8Array.from(entry), letters);
    parts.push(local, letters, bytes);
    offset += local.length + letters.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0),
    many = little(files.length, 2);
  const end = [0x50, 0x4b, 5, 6, 0, 0, 0, 0, ...many, ...many, ...little(size, 4), ...little(offset, 4), 0, 0];
  return [...parts, ...directory, Uint8Array.from(end)];
}

function little(number, many) {
  return Array.from({ length: many }, (_, i) => (number >>> (8 * i)) & 255);
}

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (0xedb88320 & -(crc & 1));
  }
  return ~crc >>> 0;
}
