"""Makes icu_model.npz and icu_data.npz from ICU-Sepsis (Choudhary et al. 2024); prints what three policies are worth.

``pip install --no-deps icu-sepsis==2.0.1`` brings the tables, which are read here without running the package.
"""

import json
from importlib.metadata import distribution

import numpy as np

from cql.exact import backward_induction, evaluate_policies
from cql.model_file import KnownModel

EPISODES, STEPS, SEED = 2000, 500, 0
assets = distribution("icu-sepsis").locate_file("icu_sepsis/envs/assets")
tables = np.load(assets / "dynamics.npz")
P, R, expert = tables["tx_mat"], tables["r_mat"], tables["expert_policy"]
terminal = ~expert.any(1)  # death, survival and the state after them
P[terminal], R[terminal] = 0, 0
np.savez_compressed("icu_model.npz", P=P, R=R, start=tables["d_0"], terminal=terminal,
                    goal=np.arange(len(P)) == 714, hazard=np.arange(len(P)) == 713,
                    metadata=np.array(json.dumps({"horizon": STEPS})))

model = KnownModel.load("icu_model.npz")
random = np.full(expert.shape, 1 / expert.shape[1])
optimal = backward_induction(model.mdp, STEPS).evaluation.returns
worth = evaluate_policies(model.mdp, np.stack([random, expert]), horizon=STEPS).returns
print("survival: random {:.3f}, expert {:.3f}, optimal {:.3f}".format(*worth, float(optimal)))

draw, rows = np.random.default_rng(SEED), []
environment = model.environment
for episode in range(EPISODES):
    state, _ = environment.reset(seed=SEED + episode)
    done = False
    while not done:
        action = draw.choice(P.shape[1], p=expert[state])
        following, reward, terminated, truncated, _ = environment.step(action)
        rows.append((state, action, reward, following, terminated, truncated, episode, expert[state, action]))
        state, done = following, terminated or truncated
names = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations", "episode_ids",
         "behavior_probabilities")
np.savez_compressed("icu_data.npz", **dict(zip(names, map(np.array, zip(*rows)))))
print(f"{len(rows):,} transitions of {EPISODES:,} episodes")
