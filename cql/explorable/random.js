// NumPy's default generator, so that the page draws the very data sets that train.py generates from the same seed.

const WORD = 0xffffffffn,
  MASK64 = (1n << 64n) - 1n,
  MASK128 = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

/** Eight 32-bit words from a list of non-negative integers: numpy.random.SeedSequence(entropy).generate_state(8). */
function seedWords(entropy) {
  const words = entropy.flatMap((n) => {
    const list = [];
    for (let rest = BigInt(n); rest > 0n || !list.length; rest >>= 32n) list.push(Number(rest & WORD));
    return list;
  });
  let constant = 0x43b0d7e5;
  const hash = (value) => {
    value ^= constant;
    constant = Math.imul(constant, 0x931e8875);
    value = Math.imul(value, constant);
    return value ^ (value >>> 16);
  };
  const mix = (x, y) => {
    const value = (Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y)) | 0;
    return value ^ (value >>> 16);
  };
  const pool = [0, 1, 2, 3].map((i) => hash(words[i] || 0));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
  }
  for (const word of words.slice(4)) for (let to = 0; to < 4; to++) pool[to] = mix(pool[to], hash(word));
  constant = 0x8b51f9dd;
  return Array.from({ length: 8 }, (_, i) => {
    let value = pool[i % 4] ^ constant;
    constant = Math.imul(constant, 0x58f38ded);
    value = Math.imul(value, constant);
    return BigInt((value ^ (value >>> 16)) >>> 0);
  });
}

/** A function that draws from [0, 1) as numpy.random.default_rng(entropy).random() does (PCG64). */
export function uniformGenerator(entropy) {
  const w = seedWords(entropy),
    long = (i) => (w[i + 1] << 32n) | w[i];
  const increment = ((((long(4) << 64n) | long(6)) << 1n) | 1n) & MASK128;
  let state = (increment + ((long(0) << 64n) | long(2))) & MASK128;
  state = (state * MULTIPLIER + increment) & MASK128;
  return () => {
    state = (state * MULTIPLIER + increment) & MASK128;
    const mixed = (state >> 64n) ^ (state & MASK64),
      turn = state >> 122n;
    const bits = ((mixed >> turn) | (mixed << (64n - turn))) & MASK64;
    return Number(bits >> 11n) / 2 ** 53;
  };
}
