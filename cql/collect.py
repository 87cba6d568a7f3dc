"""Environments from settings, and a policy rolled in one to make the data set."""

import argparse
import json
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import envs
from cql.config import Config
from cql.dataset import ARRAYS, OfflineDataset, number_rows
from cql.errors import ConfigError, DatasetError, first_line
from cql.model_file import MOST_EPISODE_STEPS, KnownModel
from cql.text import number

DEFAULT_MAX_EPISODE_STEPS = 80
WIDEST_DEFAULT_MAP = 20  # cells a side, for 80 steps
MAX_RANDOM_MAP = 1000  # cells a side
GRID_WORLD = (envs.ENV_ID, f"envs:{envs.ENV_ID}")
GRID_ARGUMENTS = {"desc", "map_name", "slip_probability", "observation"}


def environment_spec(config: Config) -> dict:
    """What ``make_environment`` needs, as JSON: ``{"id", "arguments", "max_episode_steps"}``.
    Raises ConfigError for an unknown map, an unreadable map file, or a wide map without --max-episode-steps."""
    if config.env not in GRID_WORLD:
        return {"id": config.env.rpartition(":")[2], "arguments": _arguments(config.env_args),
                "max_episode_steps": config.max_episode_steps}
    desc = _map_rows(config.map)
    longest = max(len(desc), max(map(len, desc), default=0))
    if longest > WIDEST_DEFAULT_MAP and config.max_episode_steps is None:
        raise ConfigError(f"a map {longest} cells long needs --max-episode-steps: {DEFAULT_MAX_EPISODE_STEPS} may not "
                          "cross it.")
    arguments = {"desc": list(desc), "slip_probability": config.slip, "observation": config.observation}
    if config.map in envs.MAPS:
        arguments["map_name"] = config.map
    return {"id": envs.ENV_ID, "arguments": arguments,
            "max_episode_steps": config.max_episode_steps or DEFAULT_MAX_EPISODE_STEPS}


def _arguments(text: str | None) -> dict:
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ConfigError(f"--env-args {text} is no JSON object, such as '{{\"is_slippery\": false}}'.")
    return arguments


def with_module(arguments: argparse.Namespace) -> argparse.Namespace:
    """A command line's arguments, once the module of its ``--env MODULE:ID``, which registers ID, is imported.

    Nothing else imports: no file can name a module. Raises ConfigError if it cannot be imported.
    """
    env = getattr(arguments, "env", None) or ""
    module, separator, _ = env.rpartition(":")
    if not separator or env in GRID_WORLD:
        return arguments
    try:
        import_module(module)
        return arguments
    except Exception as error:  # a module may raise anything
        raise ConfigError(f"--env {env}: the module cannot be imported ({first_line(error)}).") from None


def make_environment(spec: dict) -> gymnasium.Env:
    """The environment of a spec. Raises ConfigError, one sentence, if Gymnasium or the map refuses it.

    Its Discrete observations and actions count from 0, as data and networks do, wherever its own spaces start; other
    observations are flattened to vectors, as ``gymnasium.spaces.flatten`` does.
    Specs are read from files, so none may name a module to import or ask for a window.
    """
    name, arguments, steps = spec["id"], spec["arguments"], spec["max_episode_steps"]
    if ":" in name:
        raise ConfigError(f"the environment {name} names a module: only those registered with Gymnasium are made.")
    if "render_mode" in arguments or (name == envs.ENV_ID and not arguments.keys() <= GRID_ARGUMENTS):
        raise ConfigError(f"arguments that are not allowed for the environment {name}: {', '.join(arguments)}.")
    if any(isinstance(value, float) and not isfinite(value) for value in arguments.values()):
        raise ConfigError(f"the environment {name} has an argument that is not finite.")
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool)
                              or not 1 <= steps <= MOST_EPISODE_STEPS):
        raise ConfigError(f"max_episode_steps must be an integer from 1 to {MOST_EPISODE_STEPS:,}, not {steps!r}.")
    try:
        limit = {} if steps is None else {"max_episode_steps": steps}
        environment = gymnasium.make(name, disable_env_checker=True, **limit, **arguments)
    except Exception as error:  # of arguments from a file an environment may raise anything
        unknown = isinstance(error, (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound))
        raise ConfigError(f"the environment {name} cannot be made: {first_line(error)}" + unknown * (
            f" If a module registers it, name that on the command line (--env MODULE:{name}): no file can.")) from None
    if not environment.spec.max_episode_steps:
        raise ConfigError(f"the environment {name} has no step limit: give --max-episode-steps.")
    return _flat(_from_zero(environment), name)


def first_numbers(environment: gymnasium.Env) -> dict[str, int]:
    """What an environment itself calls its first state and action: the ``start`` of its Discrete spaces, else 0."""
    spaces = environment.unwrapped.observation_space, environment.unwrapped.action_space
    return {name: int(space.start) if isinstance(space, gymnasium.spaces.Discrete) else 0
            for name, space in zip(("first_state", "first_action"), spaces)}


def _from_zero(environment: gymnasium.Env) -> gymnasium.Env:
    seen, chosen = environment.observation_space, environment.action_space
    if isinstance(seen, gymnasium.spaces.Discrete) and seen.start:
        environment = gymnasium.wrappers.TransformObservation(environment, lambda state: state - seen.start,
                                                              gymnasium.spaces.Discrete(seen.n))
    if isinstance(chosen, gymnasium.spaces.Discrete) and chosen.start:
        environment = gymnasium.wrappers.TransformAction(environment, lambda action: action + chosen.start,
                                                         gymnasium.spaces.Discrete(chosen.n))
    return environment


def _flat(environment: gymnasium.Env, name: str) -> gymnasium.Env:
    space = environment.observation_space
    if _shows_images(space):
        raise ConfigError(f"the environment {name} shows images ({space}): networks here read numbers and vectors.")
    box = isinstance(space, gymnasium.spaces.Box)
    if isinstance(space, gymnasium.spaces.Discrete) or (box and len(space.shape) == 1):
        return environment
    if not space.is_np_flattenable:
        raise ConfigError(f"the environment {name} shows observations that are no vectors of one length ({space}).")
    return gymnasium.wrappers.FlattenObservation(environment)


def _shows_images(space: gymnasium.Space) -> bool:
    if isinstance(space, (gymnasium.spaces.Dict, gymnasium.spaces.Tuple)):
        return any(map(_shows_images, space.values() if isinstance(space, gymnasium.spaces.Dict) else space.spaces))
    return isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _map_rows(name: str) -> tuple[str, ...]:
    if name in envs.MAPS:
        return envs.MAPS[name]
    if name.startswith("random:"):
        try:
            size, _, seed = name.removeprefix("random:").partition(":")
            if int(size) > MAX_RANDOM_MAP:
                raise ValueError(f"at most {MAX_RANDOM_MAP} cells a side")
            return tuple(envs.generate_random_map(int(size), seed=int(seed or 0)))
        except ValueError as error:
            raise ConfigError(f"--map {name} is not random:SIZE[:SEED] ({error}).") from None
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"--map {name} is neither a known map ({', '.join(envs.MAPS)}), random:SIZE[:SEED], nor a "
                          "file.")
    try:
        return tuple(line.strip() for line in path.read_text("ascii").split("\n") if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--map {name} cannot be read as text ({error}).") from None


def datasets_for(config: Config, given: dict) -> list[OfflineDataset]:
    """The data sets of a run: generated, one per data seed, or the one of ``--dataset``.

    Args:
        given: the settings that the user named (``cql.config.given``): they must not contradict the data set.
    """
    if config.dataset is None:
        environment = make_environment(environment_spec(config))
        return [generate_offline_episodes(environment, config.episodes, config.epsilon, seed)
                for seed in config.data_seeds]
    for name in ("episodes", "epsilon"):
        if name in given:
            raise ConfigError(f"--{name} says how to generate data: it does not go with --dataset.")
    dataset = OfflineDataset.load(config.dataset)
    if config.split_episodes:
        dataset = dataset.split_at_breaks()
    if config.model is not None:
        if clash := sorted(given.keys() & {"env", "map", "slip", "observation"}):
            raise ConfigError(f"--{clash[0]} says what the environment is: it does not go with --model.")
        return [KnownModel.load(config.model, config.max_episode_steps).known_for(dataset)]
    named = dataset.metadata.get("environment")
    if named is None:
        if given.keys() & {"env", "map", "slip", "observation", "max_episode_steps", "env_args"}:
            return [_told(dataset, config, given)]
        return [dataset]
    _refuse_contradictions(named, environment_spec(config), given)
    return [dataset]


def _told(dataset: OfflineDataset, config: Config, given: dict) -> OfflineDataset:
    """Plain arrays with the environment that the user says they came from, its sizes and its numbers.

    States and actions are taken to be numbered as the environment numbers them, since that is what a logger sees.
    """
    ignored = given.keys() & {"map", "slip", "observation"}
    if config.env not in GRID_WORLD and ignored:
        raise ConfigError(f"--{min(ignored)} is a setting of {envs.ENV_ID}, not of {config.env}.")
    spec = environment_spec(config)
    environment = make_environment(spec)
    metadata, first = {**dataset.metadata, "environment": spec}, first_numbers(environment)
    if any(first.values()) and not metadata.keys() & first.keys():
        arrays = {name: getattr(dataset, name) for name in ARRAYS}
        sizes = {"num_states", "num_actions"}  # counted with the wrong first number: counted again here
        metadata = {name: value for name, value in metadata.items() if name not in sizes}
        try:
            dataset = OfflineDataset.from_arrays(**arrays, metadata=metadata, **first)
        except DatasetError as error:
            raise DatasetError(f"{config.dataset} is not in the numbers of {config.env}, whose first state is "
                               f"{first['first_state']} and whose first action is {first['first_action']}: {error}"
                               ) from None
        metadata = dataset.metadata
    for name, space in (("num_states", environment.observation_space), ("num_actions", environment.action_space)):
        # plain arrays know only what occurs in them; the environment knows how much there is
        if isinstance(space, gymnasium.spaces.Discrete) and name in metadata and metadata[name] < space.n:
            metadata[name] = int(space.n)
    return replace(dataset, metadata=metadata)


def _refuse_contradictions(named: dict, asked: dict, given: dict) -> None:
    if not isinstance(named, dict) or not isinstance(named.get("arguments"), dict):
        raise DatasetError("the data set's metadata name an environment in no known form.")
    for flag, mine, theirs in (
            ("env", asked["id"].rpartition(":")[2], named.get("id")),
            ("map", asked["arguments"].get("desc"), named["arguments"].get("desc")),
            ("env_args", asked["arguments"], named["arguments"]),
            ("slip", asked["arguments"].get("slip_probability"), named["arguments"].get("slip_probability")),
            ("observation", asked["arguments"].get("observation"), named["arguments"].get("observation")),
            ("max_episode_steps", asked["max_episode_steps"], named.get("max_episode_steps"))):
        if flag in given and mine != theirs:
            raise ConfigError(f"--{flag.replace('_', '-')} contradicts the data set, which was made with "
                              f"{'another map' if flag == 'map' else theirs}.")


def generate_offline_episodes(env: gymnasium.Env, n_episodes: int = 500, epsilon: float = 0.22,
                              seed: int = 42) -> OfflineDataset:
    """Rolls ``envs.safe_behavior_policy`` for whole episodes and logs every step with its exact propensity.

    Args:
        env: a SafetyCriticalGridWorld with a step limit, as ``gymnasium.make`` gives it.
        n_episodes: at least 1.
        epsilon: the behaviour policy's share of random safe moves.
        seed: of the environment and of the policy's own draws, as two independent streams.

    Raises DatasetError if the environment has no such behaviour policy, or no step limit.
    """
    grid = env.unwrapped
    if not isinstance(grid, envs.SafetyCriticalGridWorld):
        raise DatasetError(f"the behaviour policy knows SafetyCriticalGridWorld only, not {type(grid).__name__}: "
                           "give the data with --dataset.")
    if n_episodes < 1:
        raise DatasetError(f"a data set needs at least one episode, not {n_episodes}.")
    if env.spec is None or not env.spec.max_episode_steps:
        raise DatasetError("the environment has no step limit: make it with gymnasium.make.")
    policy = envs.safe_behavior_policy(env, epsilon)  # [S, A]
    cumulative = policy.cumsum(-1)
    # Gymnasium seeds the environment with default_rng(seed): the same seed here would tie each slip to an action
    random = np.random.default_rng([seed, 1])
    rows = []
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=int(seed) if episode == 0 else None)
        done = False
        while not done:
            state = grid.state
            action = _draw(policy[state], cumulative[state], random.random())
            following, reward, terminated, truncated, _ = env.step(action)
            # TimeLimit sets both flags when an episode ends on its last step: then it ended
            rows.append((observation, action, reward, following, terminated, truncated and not terminated, episode,
                         policy[state, action]))
            observation, done = following, terminated or truncated
    columns = dict(zip(ARRAYS, map(np.array, zip(*rows))))
    return OfflineDataset.from_arrays(**columns, metadata=_metadata(env, n_episodes, epsilon, seed))


def _draw(probabilities: np.ndarray, cumulative: np.ndarray, uniform: float) -> int:
    action = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(action, int(np.flatnonzero(probabilities)[-1]))


def _metadata(env: gymnasium.Env, episodes: int, epsilon: float, seed: int) -> dict:
    grid: Any = env.unwrapped
    arguments = {name: list(value) if isinstance(value, tuple) else value for name, value in env.spec.kwargs.items()
                 if value is not None and name != "render_mode"}
    return {"environment": {"id": env.spec.id, "arguments": arguments, "max_episode_steps": env.spec.max_episode_steps},
            "observation_space": str(env.observation_space), "action_space": str(env.action_space),
            "num_actions": grid.num_actions, "episodes": int(episodes), "epsilon": float(epsilon), "seed": int(seed),
            "versions": {name: version(name) for name in ("gymnasium", "numpy")},
            **({"num_states": grid.num_states} if isinstance(env.observation_space, gymnasium.spaces.Discrete) else {})}


def summary(dataset: OfflineDataset) -> str:
    """What a data set holds, in a few lines: sizes, returns, how episodes end, what was tried, what was set right."""
    broken, metadata = dataset.breaks_in_words(), dataset.metadata
    episodes, returns = "–", "–"
    if broken is None:
        worth = dataset.episode_returns()
        episodes, deviation = f"{len(worth):,}", worth.std(ddof=1) if len(worth) > 1 else 0
        returns = f"{worth.mean():.1f} ± {deviation:.1f}"

    def rate(flags) -> str:
        return number(None if broken else flags.sum() / len(dataset.episode_starts), ".3f")

    lines = [f"transitions {len(dataset):,}   episodes {episodes}   return {returns}"]
    spec = metadata.get("environment")
    if isinstance(spec, dict) and spec.get("id") == envs.ENV_ID:
        ended = dataset.rewards[dataset.terminations]
        lines.append(f"hazard rate {rate(ended < 0)}   goal rate {rate(ended > 0)}   "
                     f"truncated {rate(dataset.truncations)}")
    else:
        lines.append(f"terminated {rate(dataset.terminations)}   truncated {rate(dataset.truncations)}")
    compressed = dataset.compress()
    seen, rows = number_rows(compressed.observations)
    states, pairs = len(seen), len(np.unique(rows * dataset.num_actions + compressed.actions))
    lines.append(f"visited states {states:,}   visited state-action pairs {pairs:,} of "
                 f"{states * dataset.num_actions:,}   distinct transitions {len(compressed):,}")
    if broken:
        lines.append(broken)
    elif without := len(dataset.episode_starts) - int((dataset.terminations | dataset.truncations).sum()):
        lines.append(f"episodes that end neither terminated nor truncated {without:,}")
    if begun := metadata.get("begun_at_breaks"):
        lines.append(f"episodes begun at breaks {begun:,}: they start in the middle of a logged one")
    if both := metadata.get("terminated_and_truncated"):
        lines.append(f"terminated and truncated at once {both:,}: taken as terminated")
    lines += [f"{what}s that the environment numbers from {metadata[name]} are stored from 0"
              for what, name in (("state", "first_state"), ("action", "first_action")) if metadata.get(name)]
    return "\n".join(lines)


def findings(dataset: OfflineDataset) -> list[str]:
    """What a user should know of given data before training on them, one sentence each."""
    logged, found = np.unique(dataset.actions), []
    if len(logged) == 1:
        found.append("one action alone is logged: there is no choice to learn.")
    elif logged[0] == 1 and len(logged) == dataset.num_actions - 1:
        found.append("action 0 is never logged and all others are: if actions are numbered from 1, first_action 1 in "
                     "the metadata says so.")
    if not dataset.rewards.any():
        found.append("every reward is 0: no policy is better than another.")
    return found
