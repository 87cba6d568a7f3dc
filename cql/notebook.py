"""Training, the exact solution and evaluation from Python, on one data set and without a run folder.

Axes: M member, T log entry, N alpha, S state, A action.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor

import envs
from cql.action_weights import action_weights
from cql.analysis import evaluation, judging
from cql.cloned import cloned_in_words
from cql.collect import DEFAULT_MAX_EPISODE_STEPS
from cql.config import DATA, ENVIRONMENT, LARGEST_INTEGER, Config
from cql.dataset import OfflineDataset
from cql.device import config_for, resolve_device
from cql.errors import ConfigError, RunError
from cql.exact import Solution
from cql.files import atomic_write
from cql.members import Member, members
from cql.metrics import read_metrics
from cql.network import PopulationMLP
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.scales import Scales, resolved
from cql.snapshots import state_inputs, state_outputs
from cql.training import Interrupted, train
from cql.world import World, exact_solution

STEPS = {"cql": 80_000, "bc": 25_000}


@dataclass(frozen=True, eq=False)
class Fit:
    """Trained members, as ``fit`` returns them.

    Attributes:
        config: every setting. dataset: what they were trained on. world: the environment that the data name.
        members: by seed, then alpha. policies: in the same order; None where the parameters are not finite.
        updates: ``[T]``, the updates after which the log has an entry.
        log: by the names of ``cql.metrics.METRICS``, ``[M, T]`` float64.
        q: ``[M, S, A]`` float64, the outputs in every state (Q of CQL, logits of BC), NaN without a policy; None where
            the states cannot be listed. snapshots: ``[T, M, S, A]`` float32, the outputs at every log entry, or None.
    """

    config: Config
    dataset: OfflineDataset
    world: World
    members: list[Member]
    policies: list[Policy | None]
    updates: np.ndarray
    log: dict[str, np.ndarray]
    q: np.ndarray | None
    snapshots: np.ndarray | None
    metrics_csv: bytes

    def save(self, path: str | Path) -> Path:
        """Writes a run folder that ``evaluate.py`` and ``python -m cql`` read, and evaluates it; returns its path.

        It has no checkpoint and no TensorBoard files.
        Raises RunError if the folder exists, and OSError if it cannot be made or written; then nothing is left behind.
        """
        target = Path(path)
        if target.exists():
            raise RunError(f"the folder {target} exists already.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=target.parent) as folder:  # whole, or not at all
            run = RunFolder.create(f"{folder}/run", self.config, [self.dataset])
            atomic_write(run.path / "metrics.csv", self.metrics_csv)
            for member, policy in zip(self.members, self.policies):
                if policy is not None:
                    policy.save(run.policy_path(member.name))
            judging.write(run)
            run.write_manifest(device=self.config.device)
            run.path.rename(target)
        return target


def fit(dataset: OfflineDataset, alpha: float | Sequence[float] = 6.0, seeds: int = 1, steps: int | None = None,
        algorithm: str = "cql", snapshots: bool = False, **settings) -> Fit:
    """Trains CQL at every alpha, or Behaviour Cloning, with every seed, and shows a progress bar.

    It trains as ``train.py`` does: the same settings give the same parameters, bit for bit.

    Args:
        alpha: weights of the conservative penalty (CQL only). seeds: how many, from ``seed`` (default 42) on.
        steps: updates; 80,000 of CQL or 25,000 of BC if not given. algorithm: ``cql`` or ``bc``.
        snapshots: keep the outputs in every state at every log entry.
        settings: further fields of ``cql.config.Config``, as ``hidden``, ``batch_size``, ``lr`` or ``gamma``.

    Raises:
        ConfigError: a setting that cannot be used, or none of that name. RunError: not even one member fits the memory.
        KeyboardInterrupt: training was interrupted.
    """
    world = World.of(dataset)
    config = resolved(_config(dataset, world, alpha, seeds, steps, algorithm, settings), dataset, settings)
    _warn_of_misfit(world, dataset)
    action_weights(config, [dataset])
    cloned_in_words(config, [dataset], world)
    config.refuse_larger_batch(len(dataset))
    config.refuse_infeasible_penalty([dataset.action_entropy()], dataset.num_actions)
    config, _ = config_for(resolve_device(config.device), config, dataset)
    trained, inputs, recorded = members(config, algorithm), state_inputs(dataset, world), {}

    def record(part: list[Member], step: int, network: PopulationMLP, parameters: list[Tensor]) -> None:
        outputs = state_outputs(part, network, parameters, inputs, Scales.of(config, dataset))
        recorded.update({(step, member): outputs[m] for m, member in enumerate(part)})

    if snapshots and inputs is None:
        raise ConfigError("snapshots need states that can be listed: give index observations, or an environment with a "
                          "model.")
    with TemporaryDirectory() as folder:
        run = RunFolder.create(f"{folder}/run", config, [dataset])
        try:
            train(run, config, [dataset], world, watch=record if snapshots else lambda *_: None)
        except Interrupted as interrupted:
            raise KeyboardInterrupt(str(interrupted)) from None
        series, text = read_metrics(run.path / "metrics.csv"), (run.path / "metrics.csv").read_bytes()
        policies = [Policy.load(run.policy_path(member.name)) if run.policy_path(member.name).exists() else None
                    for member in trained]
    names = [name for member, name in series if member == trained[0].name]
    updates = np.array(series[trained[0].name, names[0]][0])
    log = {name: np.array([series[member.name, name][1] for member in trained]) for name in names}
    q = None if inputs is None else _outputs(policies, inputs.numpy(), dataset.num_actions)
    history = np.array([[recorded[step, member] for member in trained] for step in updates]) if snapshots else None
    return Fit(config, dataset, world, trained, policies, updates, log, q, history, text)


def solve(dataset: OfflineDataset, alpha: float | Sequence[float] = 6.0, gamma: float = 0.99,
          td_loss: str = "mse") -> Solution:
    """The exact CQL solution of a data set at every alpha: what training would reach without any error of its own.
    Raises RunError if the data name no environment with a known model, or gamma is 1, and DatasetError if the data
    set is of another environment."""
    objective = Config(alpha=_values(alpha), gamma=gamma, td_loss=td_loss).objective
    world = World.of(dataset).known()
    _warn_of_misfit(world, dataset)
    return exact_solution(objective, *world.empirical(dataset), _values(alpha))


def _warn_of_misfit(world: World, dataset: OfflineDataset) -> None:
    """A UserWarning where ``fit`` or ``solve`` is given data that the world's model hardly gives."""
    if (misfit := world.misfit(dataset)) is not None:
        warnings.warn(misfit, stacklevel=3)


def evaluate(policies: Policy | Sequence[Policy], dataset: OfflineDataset, episodes: int = 30, seed: int = 1000,
             gamma: float = 0.99) -> list[dict]:
    """The worth of each policy, with the keys of a member in ``evaluation.json``; all None for a policy that is None.

    ``exact`` has the expected return, hazard and goal probability of an episode and the true discounted value, where
    the environment's model is known; ``rollout`` its mean return and rates over seeded episodes, likewise.

    Args:
        dataset: the one that the policies were trained on: it names the environment and says which actions are logged.
        episodes, seed: rollout i starts from environment seed ``seed + i``.

    Raises RunError if a policy has other observations or actions than the data set.
    """
    policies = [policies] if isinstance(policies, Policy) else list(policies)
    if episodes < 1 or seed < 0 or not 0 <= gamma <= 1:
        raise ConfigError("episodes must be at least 1, seed not negative, and gamma in [0, 1].")
    for policy in filter(None, policies):
        evaluation.refuse_misfit(policy, dataset, "the policy")
    world = World.of(dataset)
    supports = evaluation.supports_of(world, [dataset], [dataset] * len(policies), policies)
    return evaluation.policy_entries(world, policies, supports, episodes, seed, gamma)


def _values(alpha: float | Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in np.atleast_1d(alpha))
    except (TypeError, ValueError):
        raise ConfigError(f"alpha must be a number or a list of numbers, not {alpha!r}.") from None


def _plain(value):
    """The value with NumPy's arrays and numbers as Python's."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _config(dataset: OfflineDataset, world: World, alpha, seeds: int, steps: int | None, algorithm: str,
            settings: dict) -> Config:
    """The config of a fit; of generated data it says how they were generated, as that of ``train.py`` does."""
    if algorithm not in STEPS:
        raise ConfigError(f"algorithm must be cql or bc, not {algorithm!r}.")
    steps = STEPS[algorithm] if steps is None else _plain(steps)
    updates = {"steps": steps, "bc_steps": 0} if algorithm == "cql" else {"steps": 0, "bc_steps": steps}
    given = {"alpha": _values(alpha), "num_seeds": _plain(seeds), **updates,
             **{name: _plain(value) for name, value in settings.items()}}
    free = {field.name for field in fields(Config) if field.metadata["group"] != DATA} - {"bc_steps", "num_seeds"}
    if unknown := sorted(settings.keys() - free):
        raise ConfigError(f"{unknown[0]} is no setting of fit.")
    return Config(**_origin(dataset, world), **given)


def _origin(dataset: OfflineDataset, world: World) -> dict:
    """The settings that say where the data come from: how they were generated, or that they were given."""
    grid, metadata = world.environment and world.environment.unwrapped, dataset.metadata
    if isinstance(grid, envs.SafetyCriticalGridWorld) and {"episodes", "epsilon", "seed"} <= metadata.keys():
        names = [name for name, rows in envs.MAPS.items() if tuple(rows) == grid.desc]
        whole = metadata["episodes"] == len(dataset.episode_starts)  # a part of the data is given data
        if names and whole and 0 <= metadata["seed"] <= LARGEST_INTEGER:
            return {"map": names[0], "slip": grid.slip_probability, "observation": grid.observation,
                    "max_episode_steps": None if world.horizon == DEFAULT_MAX_EPISODE_STEPS else world.horizon,
                    "episodes": metadata["episodes"],
                    "epsilon": metadata["epsilon"], "data_seed": metadata["seed"]}
    return {"env": world.environment.spec.id if world.environment else ENVIRONMENT, "dataset": "data.npz"}


def _outputs(policies: list[Policy | None], inputs: np.ndarray, num_actions: int) -> np.ndarray:
    """``[M, S, A]`` float64, NaN where a member has no policy."""
    nothing = np.full((len(inputs), num_actions), np.nan)
    return np.array([nothing if policy is None else policy.outputs(inputs) for policy in policies], dtype=np.float64)
