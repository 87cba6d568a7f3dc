"""CQL from logged episodes of four control tasks, beside d3rlpy, with the environments as judges.

    python -m benchmarks.control data FOLDER                     # logs: TASK-DRAW.npz
    python -m benchmarks.control ours FOLDER                     # trains BC and CQL and rolls them out: ours,….json
    python -m benchmarks.control d3rlpy FOLDER --python PYTHON   # likewise, under a Python that has d3rlpy (2.8)
    python -m benchmarks.control table FOLDER                    # prints everything that is there

Logged are episodes of a hand-written controller (of LunarLander Gymnasium's own, ``pip install 'gymnasium[box2d]'``),
a share of whose actions is uniform. What has been done is not done again, so that every command can be stopped.
"""

import argparse
import json
import subprocess
from pathlib import Path

import gymnasium
import numpy as np

from benchmarks.measuring import ROOT, rolled_out
from cql.analysis.judging import estimated, words
from cql.analysis.selection import spearman
from cql.analysis.statistics import student_quantile
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.files import atomic_write
from cql.notebook import fit
from cql.text import aligned, number
from cql.world import World


def lunar_lander(observation: np.ndarray, environment: gymnasium.Env) -> int:
    from gymnasium.envs.box2d.lunar_lander import heuristic

    return heuristic(environment, observation)


TASKS = {  # task -> controller; least and largest share of uniform actions, drawn for each episode; logged episodes
    "CartPole-v1": (lambda o, _: int(o[2] + 0.5 * o[3] > 0), (1.0, 1.0), 200),
    "Acrobot-v1": (lambda o, _: 2 if o[5] > 0 else 0, (0.5, 0.5), 60),
    "MountainCar-v0": (lambda o, _: 2 if o[1] >= 0 else 0, (0.5, 0.5), 100),
    "LunarLander-v3": (lunar_lander, (0.0, 1.0), 100),
}
DRAWS, SEEDS, ALPHAS, UPDATES, GAMMA = (1, 2, 3), (0, 1, 2), (0.1, 0.3, 1.0, 3.0), 20_000, 0.99
SETTINGS = {"hidden": (64, 64), "lr": 3e-4}  # of BC and CQL
LOGGED = ("losses/td", "q/start", "health/diverged")  # the last entries of these are kept; BC has the last alone
HUBER = {"td_loss": "huber", "double_q": True}
OURS = {"MSE": {}, "Huber": {**HUBER, "target_interval": 1000}, "Huber 100": {**HUBER, "target_interval": 100}}
SCALED = {"learning_rate": 3e-4, "target_update_interval": 1000, "standardised": True}
D3RLPY = {"defaults": {}, **{f"alpha {alpha:g}": {"alpha": alpha, **SCALED} for alpha in (0.3, 1.0, 3.0)}}


def logged(task: str, draw: int) -> OfflineDataset:
    """The logged episodes of a draw; they name their environment."""
    controller, shares, episodes = TASKS[task]
    environment, random, rows = gymnasium.make(task), np.random.default_rng([draw, 1]), []
    actions = int(environment.action_space.n)
    for episode in range(episodes):
        observation, _ = environment.reset(seed=draw if episode == 0 else None)
        done, uniform = False, random.uniform(*shares)
        while not done:
            chosen = controller(observation, environment)
            action = int(random.integers(actions)) if random.random() < uniform else chosen
            following, reward, terminated, truncated, _ = environment.step(action)
            rows.append((observation, action, reward, following, terminated, truncated, episode))
            observation, done = following, terminated or truncated
    spec = {"id": task, "arguments": {}, "max_episode_steps": environment.spec.max_episode_steps}
    columns = map(np.array, zip(*rows))
    return OfflineDataset.from_arrays(*columns, metadata={"environment": spec, "num_actions": actions})


def trained(task: str, dataset: OfflineDataset, settings: dict) -> dict:
    """BC and CQL of every alpha and seed: their rollouts, and of the first seed what the log alone says of them."""
    shared = {"seeds": len(SEEDS), "seed": SEEDS[0], "steps": UPDATES, "gamma": GAMMA, **SETTINGS}
    fits = [fit(dataset, algorithm="bc", **shared), fit(dataset, alpha=ALPHAS, **shared, **settings)]
    members, first = [], []
    for fitted in fits:
        for n, (member, policy) in enumerate(zip(fitted.members, fitted.policies)):
            last = {name: float(series[n, -1]) for name, series in fitted.log.items() if name in LOGGED}
            members.append({"alpha": member.alpha, "seed": member.seed, **last, **rolled_out(task, policy.act, GAMMA)})
            first += [(members[-1], member, policy)] if member.seed == SEEDS[0] else []
    found = estimated(Config(gamma=GAMMA), World.of(dataset), dataset, [policy for _, _, policy in first])
    named = [{"algorithm": member.algorithm, "alpha": member.alpha, "seed": member.seed} for _, member, _ in first]
    for (entry, _, _), estimate, values in zip(first, found.entries(named), found.values):
        entry["estimate"] = {**estimate, "point": float(values[0])}
    return {"logged": float(dataset.episode_returns().mean()), "members": members}


def peer(python: str, data: Path, task: str, seed: int, settings: dict) -> dict:
    """Rollouts of d3rlpy's DiscreteCQL, trained and tried in a process of its own."""
    asked = {"task": task, "data": str(data.resolve()), "seed": seed, "updates": UPDATES, "gamma": GAMMA, **settings}
    done = subprocess.run([python, "-m", "benchmarks.peer_control", json.dumps(asked)], cwd=ROOT, capture_output=True,
                          text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def returns_by_policy(read: dict, task: str) -> dict[str, dict]:
    """policy -> (draw, seed) -> return, of everything that is there."""
    returns: dict[str, dict] = {}
    for (kind, name, of, draw, *seed), answer in read.items():
        if of != task:
            continue
        if kind == "d3rlpy":
            returns.setdefault(f"d3rlpy, {name}", {})[int(draw), int(seed[0])] = answer["return"]
            continue
        for member in answer["members"]:
            policy = "BC" if member["alpha"] is None else f"{name}, alpha {member['alpha']:g}"
            returns.setdefault(policy, {})[int(draw), member["seed"]] = member["return"]
    return returns


def difference(ours: dict, theirs: dict) -> str:
    """The difference of the means over seeds, draw by draw: its mean with half its 95 % interval (Student's)."""
    draws = sorted({draw for draw, _ in ours} & {draw for draw, _ in theirs})
    pairs = np.array([of_draw(ours, draw) - of_draw(theirs, draw) for draw in draws])
    if len(pairs) < 3 or ours is theirs:
        return ""
    half = student_quantile(0.975, len(pairs) - 1) * pairs.std(ddof=1) / len(pairs) ** 0.5
    return f"{pairs.mean():+.1f} ± {half:.1f}"


def of_draw(values: dict, draw: int) -> float:
    return float(np.mean([value for (of, _), value in values.items() if of == draw] or [np.nan]))


def returns_table(read: dict) -> list[list[str]]:
    rows = [["task", "policy", "runs", "return", "on draw 1", "less BC", "less d3rlpy's defaults"]]
    for task in TASKS:
        runs = [answer for (kind, _, of, *_), answer in read.items() if (kind, of) == ("ours", task)]
        rows.append([task, "logged", "", f"{np.mean([run['logged'] for run in runs]):.1f}", "", "", ""])
        returns = returns_by_policy(read, task)
        for policy, values in returns.items():
            every = np.array(list(values.values()))
            rows.append([task, policy, str(len(values)), f"{every.mean():.1f} ± {every.std():.1f}",
                         f"{of_draw(values, 1):.1f}", difference(values, returns["BC"]),
                         difference(values, returns.get("d3rlpy, defaults", {}))])
    return rows


def estimates_tables(read: dict) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """FQE beside the rollouts; the rank correlations over alpha; what the choice of each way loses."""
    rows, ranked, lost = [["settings", "task", "draw", "policy", "rollouts", "FQE", "believed [95 %]", ""]], [], []
    for (_, name, task, draw, *_), answer in read.items():
        first = [member for member in answer.get("members", ()) if "estimate" in member]
        for member in first[name != "MSE" :]:  # BC is the same with every loss of CQL
            entry, mean, error = member["estimate"], member["discounted"], member["error"]
            verdict = entry["withheld"]
            if not verdict:
                _, low, high = entry["value"]
                verdict = "holds" if low <= mean + 2 * error and mean - 2 * error <= high else "MISSES"
            rows.append([name, task, draw, "BC" if member["alpha"] is None else f"alpha {member['alpha']:g}",
                         f"{mean:.2f} ± {error:.2f}", f"{entry['point']:.2f}", words(entry["value"]), verdict])
        first = first[1:]  # without BC
        if not first:
            continue
        truth = np.array([member["return"] for member in first])
        estimates = [member["estimate"] for member in first]
        ways = {"FQE": [e["point"] if not e["withheld"] else np.nan for e in estimates],
                "FQE, doubts ignored": [e["point"] for e in estimates],
                "value estimate": [member["q/start"] for member in first],
                "support by BC": [-e["unsupported"] for e in estimates],
                "TD loss": [-member["losses/td"] for member in first]}
        ranks = [spearman(np.array(scores), truth) for scores in ways.values()]
        ranked = ranked or [["settings", "task", "draw", *ways]]
        ranked.append([name, task, draw, *(number(None if np.isnan(rank) else rank, "+.2f") for rank in ranks)])
        lost = lost or [["settings", "task", "draw", "best", *ways, "alpha 1"]]
        best = truth.max()
        lost.append([name, task, draw, f"{best:.1f}", *(
            "–" if np.isnan(scores).all() else f"{best - truth[np.nanargmax(scores)]:.1f}" for scores in ways.values()),
            f"{best - truth[ALPHAS.index(1.0)]:.1f}"])
    return rows, ranked, lost


def print_tables(folder: Path) -> None:
    read = {tuple(path.stem.split(",")): json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    print("Return of 30 rollouts, mean and standard deviation over draws and seeds; differences draw by draw\n")
    print("\n".join(aligned(returns_table(read), left=(0, 1))))
    rows, ranked, lost = estimates_tables(read)
    print("\nDiscounted values of the first seed: rollouts beside FQE\n")
    print("\n".join(aligned(rows, left=(0, 1, 3, 7))))
    verdicts = [row[-1] for row in rows[1:]]
    print(f"\n{verdicts.count('holds') + verdicts.count('MISSES')} of {len(verdicts)} policies have an estimate; "
          f"{verdicts.count('holds')} of these intervals hold the mean of the rollouts, within two standard errors")
    print("\nRank correlation over alpha with the return of rollouts\n")
    print("\n".join(aligned(ranked, left=(0, 1))))
    print("\nReturn of the best alpha, and what is lost by the alpha that each way chooses\n")
    print("\n".join(aligned(lost, left=(0, 1))))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("data", "ours", "d3rlpy", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--draw", nargs="+", type=int, default=list(DRAWS))
    parser.add_argument("--seed", nargs="+", type=int, default=list(SEEDS), help="of d3rlpy")
    parser.add_argument("--setting", nargs="+", default=[*OURS, *D3RLPY], choices=[*OURS, *D3RLPY])
    parser.add_argument("--python", metavar="PYTHON", help="one that has d3rlpy and the tasks")
    arguments = parser.parse_args()
    folder, pairs = arguments.folder, [(task, draw) for draw in arguments.draw for task in arguments.task]
    if arguments.what == "table":
        return print_tables(folder)
    if arguments.what == "data":
        folder.mkdir(exist_ok=True)
        for task, draw in pairs:
            dataset = logged(task, draw)
            dataset.save(folder / f"{task}-{draw}.npz")
            print(f"{task} {draw}: {len(dataset):,} transitions, return {dataset.episode_returns().mean():.1f}")
        return None
    ours = arguments.what == "ours"
    for seed in (None,) if ours else arguments.seed:
        for name, settings in (OURS if ours else D3RLPY).items():
            for task, draw in pairs if name in arguments.setting else ():
                key = [arguments.what, name, task, draw] + ([] if ours else [seed])
                path, data = folder / f"{','.join(map(str, key))}.json", folder / f"{task}-{draw}.npz"
                if path.exists() or (not ours and name != "defaults" and draw != 1):
                    continue
                answer = (trained(task, OfflineDataset.load(data), settings) if ours else
                          peer(arguments.python, data, task, seed, settings))
                atomic_write(path, json.dumps(answer).encode())
                print(path.name, flush=True)
    return None


if __name__ == "__main__":
    main()
