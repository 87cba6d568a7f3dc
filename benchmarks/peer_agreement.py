"""Trains other libraries' discrete CQL on this project's data and prints what they converge to:

    python -m benchmarks.peer_agreement --peer d3rlpy=PYTHON --peer torchrl=PYTHON --peer tianshou=PYTHON

PYTHON is an interpreter that has the library. A run that the folder runs/peers holds is read, not made again. Axes: T
log entries, S states, A actions, B transitions, N quantiles.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import cql
from benchmarks.measuring import ROOT
from cql.analysis.figures.style import BLACK, BLUE, DPI, GREEN, GREY, ORANGE, WIDTH, heading, house_style, line
from cql.collect import datasets_for
from cql.config import Config
from cql.errors import ConfigError, RunError, reports_errors
from cql.exact import cql_fixed_point, evaluate_policies, greedy_policy, start_distribution, state_value
from cql.files import atomic_file
from cql.losses import conservative_penalty, cql_loss, q_taken, td_losses, td_target
from cql.network import PopulationMLP
from cql.text import aligned
from cql.world import World

BATCH, UPDATES, LOG_EVERY, N = 64, 80_000, 2_000, 20
FOLDER = Path("runs/peers")  # of the runs' Q
OURS = "this project"
CONFIG = Config()


class Run(NamedTuple):
    library: str
    alpha: float  # each is 6 in this project's default loss
    solution: str  # the loss of which its own exact solution is
    changes: dict = {}


RUNS = {
    "plain loop": Run("plain", 6.0, "mse"), "TorchRL": Run("torchrl", 3.0, "half_mse"),
    "d3rlpy": Run("d3rlpy", 3.0, "huber"),
    "tianshou": Run("tianshou", 3.0 * N / 2, "quantiles", {"quantiles": N, "updates": 20_000}),
    "TorchRL, decay": Run("torchrl", 3.0, "half_mse", {"decay": True, "updates": 40_000}),
    "d3rlpy, decay, square": Run("d3rlpy", 3.0, "half_mse", {"decay": True, "updates": 20_000, "square": True})}
COLOURS = {OURS: BLACK, "plain loop": GREY, "TorchRL": GREEN, "d3rlpy": BLUE, "tianshou": ORANGE}


class Problem:
    """The default data set, its exact solutions ``[S, A]``, and what is measured of a Q ``[T, S, A]``."""

    def __init__(self) -> None:
        self.dataset, = datasets_for(CONFIG, {})
        self.world = World.of(self.dataset).known()
        empirical, counts = self.world.empirical(self.dataset)
        self.logged = (counts > 0) & ~empirical.terminal[:, None]
        self.weights = counts[self.logged] / counts[self.logged].sum()
        self.exact = {td_loss: cql_fixed_point(empirical, counts, [alpha], CONFIG.gamma, td_loss).q[0]
                      for td_loss, alpha in (("mse", 6.0), ("half_mse", 3.0), ("huber", 3.0))}

    def distance(self, q: np.ndarray, solution: str) -> np.ndarray:
        """``[T]``: mean |Q - exact Q| over the data, as a share of the largest |exact Q|; NaN if unknown."""
        if solution not in self.exact:
            return np.full(len(q), np.nan)
        exact = self.exact[solution][self.logged]
        return np.abs(q[:, self.logged] - exact) @ self.weights / np.abs(exact).max()

    def worth(self, q: np.ndarray) -> list[np.ndarray]:
        """Value estimate at the start, exact return and hazard probability of the greedy policies, each ``[T]``."""
        mdp = self.world.mdp
        result = evaluate_policies(mdp, greedy_policy(q), horizon=self.world.horizon)
        return [state_value(q) @ start_distribution(mdp), result.returns, result.hazard_probability]


def quantile_losses(quantiles: Tensor, actions: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """QR-DQN's loss plus alpha times the penalty of the means: ``[B, A, N], [B], [B, N] -> [B]``."""
    errors = targets[:, None, :] - quantiles[torch.arange(len(actions)), actions][:, :, None]  # [B, N, N of the target]
    tau = (torch.arange(N, dtype=errors.dtype)[:, None] + 0.5) / N
    td = ((tau - (errors <= 0).to(errors.dtype)).abs() * td_losses(errors, "huber")).sum(1).mean(-1)
    return td + alpha * conservative_penalty(quantiles.mean(-1)[None], actions[None])[0]


def as_layers(parameters: list[Tensor]) -> list[np.ndarray]:
    """Parameters of one member as those of ``torch.nn.Linear`` layers, the table being the first."""
    table, *rest = (tensor.numpy()[0] for tensor in parameters)
    return [table.T, *(array.reshape(-1) if len(array) == 1 else array for array in rest)]


def train(problem: Problem, name: str, interpreter: str) -> tuple[np.ndarray, str]:
    """Q ``[T, S, A]`` of a run, and how far its loss and gradient of one batch are from this project's."""
    run, data, seed = RUNS[name], problem.dataset, CONFIG.seed
    quantiles = run.changes.get("quantiles", 1)
    network = PopulationMLP(data.num_states, data.num_actions * quantiles, CONFIG.hidden, discrete=True)
    initial, compared, target = (network.initial([s]) for s in (seed, 1, 2))
    compared, target = ([10 * tensor for tensor in parameters] for parameters in (compared, target))
    settings = {"library": run.library, "alpha": run.alpha, "lr": CONFIG.lr, "gamma": CONFIG.gamma, "batch": BATCH,
                "target_interval": CONFIG.target_interval, "updates": UPDATES, "log_every": LOG_EVERY, "seed": seed,
                **run.changes}
    path = FOLDER / f"{name.replace(', ', '-').replace(' ', '-')}.npz"
    if not path.exists() or json.loads(str(np.load(path)["settings"])) != settings:
        kinds = {"observations": np.int64, "actions": np.int64, "rewards": np.float32, "next_observations": np.int64,
                 "terminations": np.float32}
        given = {"initial": initial, "compared": compared, "target": target}
        with tempfile.TemporaryDirectory() as scratch:
            files = {kind: f"{scratch}/{kind}.npz" for kind in ("problem", "answer")}
            np.savez(files["problem"], **{column: getattr(data, column).astype(kind) for column, kind in kinds.items()},
                     **{f"{what}/{n}": array for what in given for n, array in enumerate(as_layers(given[what]))})
            done = subprocess.run([interpreter, "-m", "benchmarks.peer_learners", json.dumps(settings | files)],
                                  cwd=ROOT, text=True, capture_output=True)
            if done.returncode or not Path(files["answer"]).exists():
                why = (done.stderr.strip() or f"{interpreter} gave no answer").splitlines()[-1]
                raise RunError(f"{name} could not be trained: {why}")
            with np.load(files["answer"]) as answer, atomic_file(path) as file:
                np.savez(file, settings=json.dumps(settings), **answer)
    with np.load(path) as file:
        answer = dict(file)
    rows = np.random.default_rng(seed).integers(len(data), size=BATCH)
    return answer["q"].astype(np.float64), differences(run, answer, network, compared, target, data, rows)


def differences(run: Run, answer: dict, network: PopulationMLP, parameters: list[Tensor], target: list[Tensor], data,
                rows: np.ndarray) -> str:
    if run.library == "torchrl":
        target = parameters  # its target network is never used
    states, actions, following = (torch.from_numpy(x[rows]).long()[None] for x in (
        data.observations, data.actions, data.next_observations))
    now, chosen, later = (network.q_values(values, seen).unflatten(-1, (data.num_actions, -1)) for values, seen in (
        ([tensor.requires_grad_() for tensor in parameters], states), (parameters, following), (target, following)))
    best = (chosen if run.library in ("d3rlpy", "tianshou") else later).mean(-1).argmax(-1)  # double Q, or not
    values = torch.stack([q_taken(quantile, best) for quantile in later.detach().unbind(-1)], -1)  # [1, B, N or 1]
    rewards, ended = (torch.from_numpy(x[rows])[None, :, None].expand_as(values) for x in (
        data.rewards, data.terminations))
    targets = td_target(rewards, ended, values, CONFIG.gamma)
    if run.solution == "quantiles":
        loss = quantile_losses(now[0], actions[0], targets[0], run.alpha).mean()
    else:
        loss = cql_loss(now[..., 0], actions, targets[..., 0], torch.tensor([run.alpha]), run.solution).total[0]
    loss.backward()
    ours = np.concatenate([array.ravel() for array in as_layers([tensor.grad for tensor in parameters])])
    theirs = np.concatenate([answer[f"gradient/{n}"].ravel() for n in range(len(parameters))])
    return (f"{abs(answer['loss'] / loss.item() - 1):.0e}, {np.abs(ours - theirs).max() / np.abs(ours).max():.0e}")


@house_style()
def draw(distances: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Two panels, from each run's own exact solution and from this project's, ``[T]`` each."""
    figure = Figure((WIDTH, 5.2), layout="constrained")
    for ax, title, n in zip(figure.subplots(1, 2, sharey=True), ("its own loss", "this project's loss, α = 6"), (0, 1)):
        for name, pair in distances.items():
            library, _, change = name.partition(", ")
            look = {"": "-", "decay": "--", f"batch {BATCH}": "--"}.get(change, ":")
            ax.plot(LOG_EVERY * np.arange(1, 1 + len(pair[n])) / 1000, pair[n], look, color=COLOURS[library])
        ax.set(yscale="log", title=f"from the exact solution of {title}", xlabel="updates, thousands", xlim=(0, None))
        ax.grid(True)
    figure.axes[0].set_ylabel("share of the largest |exact Q|")
    handles = [line(name, colour) for name, colour in COLOURS.items()]
    handles += [line(f"batch {BATCH}, learning rate decays", BLACK, linestyle="--"),
                line("decays, square for Huber", BLUE, linestyle=":")]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    heading(figure, "Where CQL of other libraries ends", "mean |Q − exact Q| over the data; α converted, one seed, "
            f"minibatches of {BATCH} (this project, solid: full batch, decay), data set {CONFIG.data_seed}")
    return figure


@reports_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_agreement", description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", default=[], metavar="LIBRARY=PYTHON",
                        help="d3rlpy, torchrl or tianshou, and an interpreter that has it; others are left out")
    parser.add_argument("--out", metavar="FILE.png", help="draw the distances")
    arguments = parser.parse_args(argv)
    interpreters = {"plain": sys.executable, **dict(text.partition("=")[::2] for text in arguments.peer)}
    libraries = {run.library for run in RUNS.values()}
    for library, interpreter in interpreters.items():
        if library not in libraries or not (os.path.isfile(interpreter) and os.access(interpreter, os.X_OK)):
            raise ConfigError(f"--peer {library}={interpreter} must be d3rlpy=, torchrl= or tianshou= and an "
                              "interpreter.")
    if missing := sorted(libraries - interpreters.keys()):
        print(f"Left out, because no --peer names an interpreter that has them: {', '.join(missing)}.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    problem, trained = Problem(), {}
    for name, run in RUNS.items():
        if run.library in interpreters:
            trained[name] = run.solution, *train(problem, name, os.path.abspath(interpreters[run.library]))
    for name, batch in ((OURS, "full"), (f"{OURS}, batch {BATCH}", BATCH)):
        fit = cql.fit(problem.dataset, snapshots=True, log_every=LOG_EVERY, steps=UPDATES, batch_size=batch)
        trained[name] = "mse", fit.snapshots[:, 0].astype(np.float64), "–"
    table = [("", "updates", "from its own", "from ours", "value estimate", "return", "hazard", "loss, gradient")]
    for name, exact in problem.exact.items():
        columns = problem.distance(exact[None], "mse"), *problem.worth(exact[None])
        cells = [format(x[0], form) for x, form in zip(columns, (".1e", ".2f", ".2f", ".3f"))]
        table.append((f"exact, {name}", "", "", *cells, ""))
    for name, (solution, q, words) in trained.items():
        columns = problem.distance(q, solution), problem.distance(q, "mse"), *problem.worth(q)
        for n in sorted({len(q) * k // 4 for k in (1, 2, 3, 4)}):
            cells = [format(x[n - 1], form).replace("nan", "–")
                     for x, form in zip(columns, (".1e", ".1e", ".2f", ".2f", ".3f"))]
            table.append((name, f"{n * LOG_EVERY:,}", *cells, words))
    print("\n".join(aligned(table)))
    if arguments.out:
        shown = {name: (problem.distance(q, solution), problem.distance(q, "mse"))
                 for name, (solution, q, _) in trained.items()}
        with house_style(), atomic_file(arguments.out) as file:
            draw(shown).savefig(file, dpi=DPI, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
