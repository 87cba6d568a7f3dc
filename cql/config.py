"""Every setting of a run, once: a field is the flag, its default and its documentation."""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cql.errors import ConfigError
from cql.losses import LARGEST_ALPHA, PENALTIES, TD_LOSSES, Objective

ENVIRONMENT = "SafetyCriticalGridWorld-v0"
MOST_MEMBERS = 10_000_000
TRAINERS = ("fast", "plain")
LARGEST_INTEGER = 2**31 - 1
LARGEST_SCALE = 1e12  # of rewards: they are squared in float32
GIVEN_POLICIES, BEHAVIOR = ("target_policy", "mu"), "behavior"  # settings that name a file, or the data's own policy
METAVARS: dict[Any, str] = {int: "N", float: "X", str: "NAME"}
DATA, ALGORITHM, OPTIMISATION, RUN = ("environment and data", "algorithm", "optimisation", "run")


def _option(default, text, group, parse=None, low=None, high=None, **extra) -> Any:
    """A setting: its flag is the field's name. low, high: the numbers between which its value must lie."""
    return field(default=default, metadata={"help": text, "group": group, "parse": parse or type(default), "low": low,
                                            "high": high, **extra})


def batch_size(text: str) -> Any:
    return text if text in ("full", "auto") else int(text)


def reward_scale(text: str) -> Any:
    return text if text == "auto" else float(text)


@dataclass(frozen=True)
class Config:
    """The settings of a run. Raises ConfigError, one sentence, for values that cannot be used."""

    # --- environment and data
    env: str = _option(ENVIRONMENT, "Gymnasium id of the environment, or MODULE:ID, where the module registers it",
                       DATA)
    env_args: str | None = _option(None, "arguments of --env, a JSON object", DATA, parse=str, metavar="JSON")
    map: str = _option("islands", "islands, blocks, random:SIZE[:SEED], or a text file", DATA)
    slip: float = _option(0.05, "probability that the executed move is drawn uniformly", DATA, low=0, high=1)
    observation: str = _option("index", "what the agent sees: index or coordinates", DATA,
                               choices=("index", "coordinates"))
    max_episode_steps: int | None = _option(
        None, "steps after which an episode is truncated (default 80; give it for maps longer than 20)", DATA,
        parse=int, low=1, metavar="N")
    episodes: int = _option(500, "episodes of the behaviour policy in each data set", DATA, low=1)
    epsilon: float = _option(0.22, "the behaviour policy's share of random safe moves", DATA, low=0, high=1)
    data_seed: int = _option(42, "seed of the first data set; further ones count up", DATA, low=0,
                             high=LARGEST_INTEGER)
    num_datasets: int = _option(1, "number of data sets", DATA, low=1)
    dataset: str | None = _option(None, "train on this .npz of plain arrays instead of generating data", DATA,
                                  parse=str, metavar="FILE")
    model: str | None = _option(None, "the true model of --dataset in the place of an environment: an .npz of "
                                "transition probabilities and rewards", DATA, parse=str, metavar="FILE")
    split_episodes: bool = _option(False, "begin a new episode of --dataset wherever an observation is not the next "
                                   "observation of the transition before it", DATA)
    observation_scale: str = _option("none", "standard: the network reads every column of the observations less its "
                                     "mean, over its standard deviation (the default for vectors that are not the "
                                     "GridWorld's)", ALGORITHM, choices=("none", "standard"))
    reward_scale: Any = _option(1.0, "train on the rewards divided by C, and report in their own units; auto: by the "
                                "returns in the data (the default for vectors that are not the GridWorld's)", ALGORITHM,
                                parse=reward_scale, low=1 / LARGEST_SCALE, high=int(LARGEST_SCALE), metavar="C|auto")
    # --- algorithm
    alpha: tuple[float, ...] = _option((6.0,), "weight(s) of the conservative penalty; a member is trained for each",
                                       ALGORITHM, parse=float, low=0, high=LARGEST_ALPHA, nargs="+", metavar="A")
    penalty_threshold: float | None = _option(
        None, "learn alpha, each member from its --alpha: it rises while the conservative penalty is above TAU and "
        "falls while it is below; no penalty is below the entropy of the logged actions, and constant Q has log A",
        ALGORITHM, parse=float, metavar="TAU")
    penalty: str = _option("logsumexp", "the conservative penalty, by its formula in cql/losses.py: logsumexp is "
                           "CQL(H), rho and previous CQL(rho), push-down and mu the paper's Eq. 1 and 2", ALGORITHM,
                           choices=PENALTIES)
    temperature: float = _option(1.0, "tau of the penalty logsumexp, tau log sum exp(Q / tau)", ALGORITHM, low=1e-6,
                                 high=10**6)
    supported: bool = _option(False, "leave OOD actions out of the penalty, of the target's max and of the policy",
                              ALGORITHM)
    target_policy: str | None = _option(
        None, "the given policy of push-down and mu: a .pt, or behavior, the frequencies of the logged actions",
        ALGORITHM, parse=str, metavar="FILE")
    mu: str | None = _option(None, "the policy that push-down and mu push down, if another than --target-policy",
                             ALGORITHM, parse=str, metavar="FILE")
    bc_top: float | None = _option(
        None, "Behaviour Cloning clones the best share F of the episodes by return (of equal ones the earlier), with "
        "--bc-safe of those that met no hazard; CQL keeps all", ALGORITHM, parse=float, low=1e-6, high=1, metavar="F")
    bc_safe: bool = _option(False, "Behaviour Cloning clones the episodes that met no hazard; CQL keeps all", ALGORITHM)
    td_loss: str = _option("mse", "loss of one TD error; half_mse is the paper's and doubles the meaning of alpha",
                           ALGORITHM, choices=TD_LOSSES)
    double_q: bool = _option(False, "choose the next action with the online network (double Q-learning)", ALGORITHM)
    gamma: float = _option(0.99, "discount factor", ALGORITHM, low=0, high=1)
    hidden: tuple[int, ...] = _option(
        (64, 64), "widths of the hidden layers; 0 is the linear network (the table Q[s, a])", ALGORITHM, parse=int,
        nargs="+", metavar="N")
    # --- optimisation
    seed: int = _option(42, "first training seed: initial weights and minibatches", OPTIMISATION, low=0,
                        high=LARGEST_INTEGER)
    num_seeds: int = _option(1, "number of training seeds", OPTIMISATION, low=1)
    bc_steps: int = _option(25_000, "updates of Behaviour Cloning; 0 leaves it out", OPTIMISATION, low=0)
    steps: int = _option(80_000, "updates of CQL; 0 leaves it out", OPTIMISATION, low=0)
    batch_size: Any = _option("full", "transitions per update; full: the exact gradient of the whole data set; auto: "
                              "full up to 4,096 distinct transitions, else 256 (the default for vectors that are not "
                              "the GridWorld's)", OPTIMISATION, parse=batch_size, low=1, metavar="N|full|auto")
    lr: float = _option(2e-3, "Adam's learning rate at the start; it falls to 0 along a cosine", OPTIMISATION)
    target_interval: int = _option(100, "updates between copies to the target network", OPTIMISATION, low=1)
    slice_size: int | None = _option(
        None, "members trained at once (default 64, on CUDA 1024), halved until they fit the memory; another size "
        "rounds differently", OPTIMISATION, parse=int, low=1, metavar="N")
    # --- run
    trainer: str = _option("fast", "fast: the engine, or the plain trainer for an objective that the engine does not "
                           "know; plain: the algorithm as cql/algorithm.py writes it", RUN, choices=TRAINERS)
    device: str = _option("auto", "auto (CUDA if it can be used), cpu, cuda or cuda:N", RUN)
    log_every: int = _option(1000, "updates between log entries (each waits for the device)", RUN, low=1)
    snapshots: bool = _option(False, "keep the outputs in every state at every log entry, for the report's slider over "
                              "updates (off above 64 members)", RUN)
    checkpoint_every: int = _option(10_000, "updates between checkpoints", RUN, low=1)
    chosen: tuple[str, ...] = _option((), "which settings went by the data, and why: no flag", None, parse=str)

    def __post_init__(self):
        for name in ("alpha", "hidden", "chosen"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, (list, tuple)) else (value,))
        if self.hidden == (0,):
            object.__setattr__(self, "hidden", ())
        _check(self)

    @property
    def full_batch(self) -> bool:
        return self.batch_size == "full"

    @property
    def on_cuda(self) -> bool:
        """Whether the device is named as a CUDA device, which ``auto`` is once it has chosen one."""
        return self.device.startswith("cuda")

    @property
    def clones_all(self) -> bool:
        """Whether Behaviour Cloning is trained on all episodes."""
        return self.bc_top is None and not self.bc_safe

    @property
    def bc_name(self) -> str:
        """What tables and pictures call Behaviour Cloning, by the episodes that it clones."""
        safe = "episodes without a hazard"
        if self.bc_top is None:
            return f"BC of the {safe}" if self.bc_safe else "BC"
        return f"BC of the best {100 * self.bc_top:g} % of {f'the {safe}' if self.bc_safe else 'episodes'}"

    def refuse_larger_batch(self, transitions: int) -> None:
        """Raises ConfigError if a minibatch would hold more than the data set."""
        if not self.full_batch and self.batch_size > transitions:
            raise ConfigError(f"--batch-size {self.batch_size} is larger than the data set of {transitions} "
                              "transitions.")

    @property
    def objective(self) -> Objective:
        """The objective of the CQL members: every field of ``Objective`` that is a setting, and the other defaults."""
        return Objective(**{name: getattr(self, name) for name in Objective._fields if hasattr(self, name)})

    def refuse_infeasible_penalty(self, entropies: Iterable[float], num_actions: int) -> None:
        """Raises ConfigError if on some data set no Q has a penalty as small as --penalty-threshold.

        Args:
            entropies: ``OfflineDataset.action_entropy`` of the data sets, asked for only if there is a threshold.
        """
        if self.penalty_threshold is None:
            return
        if not self.objective.is_cql_h:
            raise ConfigError(f"--penalty-threshold: the least penalty is not known for {self.objective}.")
        if self.penalty_threshold <= (entropy := max(entropies)):
            raise ConfigError(
                f"--penalty-threshold {self.penalty_threshold:g} must be above {entropy:.6g}, the entropy of the "
                f"logged actions and the least penalty; constant Q has log {num_actions}, {math.log(num_actions):.4g}.")

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.num_seeds))

    @property
    def data_seeds(self) -> list[int]:
        return list(range(self.data_seed, self.data_seed + self.num_datasets))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The config of a run; a setting that is younger than the run has its default, which is what was done before.
        Raises ConfigError if it holds a setting that this version does not know, or a value of the wrong kind."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the config is no JSON ({error}).") from None
        if not isinstance(values, dict):
            raise ConfigError("the config is no JSON object.")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - fields.keys()):
            raise ConfigError(f"the config is of another version: unknown entries {unknown}.")
        for name, value in values.items():
            if not _is_of_kind(value, fields[name]):
                raise ConfigError(f"the config's {name} is {value!r}, which is of the wrong kind.")
        return cls(**values)


def add_arguments(parser: argparse.ArgumentParser, groups: tuple[str, ...] | None = None,
                  without: tuple[str, ...] = (), also: tuple[str, ...] = ()) -> None:
    """One flag per field: of the named groups only where given, without some fields and with others.

    Flags that are not given leave no trace in the result, so that ``from_arguments`` and ``given`` tell them from
    defaults."""
    sections = {}
    for f in dataclasses.fields(Config):
        group = f.metadata["group"]
        if group is None or groups is not None and group not in groups and f.name not in also or f.name in without:
            continue
        if group not in sections:
            sections[group] = parser.add_argument_group(group)
        shown = " ".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        text = f.metadata["help"] + ("" if f.default is None or f.default is False else f" (default {shown})")
        extra = {key: f.metadata[key] for key in ("nargs", "choices", "metavar") if key in f.metadata}
        kind = {"action": "store_true"} if f.default is False else {"type": f.metadata["parse"], **extra}
        if kind.get("type") in METAVARS and "choices" not in kind:
            kind.setdefault("metavar", METAVARS[kind["type"]])
        sections[group].add_argument(_flag(f.name), default=argparse.SUPPRESS, help=text, **kind)


def given(arguments: argparse.Namespace) -> dict:
    """The settings that were given on the command line, by name."""
    names = {f.name for f in dataclasses.fields(Config)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def long_bc(config: Config, given: dict) -> str | None:
    """One sentence if shorter training was asked for and Behaviour Cloning, left at its default, is most of the work.

    Args:
        given: the settings that the user named.
    """
    cloning, conservative = config.bc_steps, config.steps * len(config.alpha)  # updates for each seed and data set
    if "steps" not in given or "bc_steps" in given or not 0 < conservative < cloning:
        return None
    return (f"--steps shortens CQL alone: Behaviour Cloning takes {cloning / (cloning + conservative):.0%} of all "
            "updates; --bc-steps shortens it.")


def from_arguments(arguments: argparse.Namespace) -> Config:
    return Config(**given(arguments))


def command_line(config: Config) -> list[str]:
    """The flags that give this config, those at their default left out; ``from_arguments`` reads them back."""
    words = []
    for f in dataclasses.fields(Config):
        value = getattr(config, f.name)
        if value != f.default and f.metadata["group"] is not None:
            values = (value or (0,)) if isinstance(value, tuple) else () if value is True else (value,)
            words += [_flag(f.name), *(str(x).removesuffix(".0") for x in values)]
    return words


def _is_of_kind(value, setting: dataclasses.Field) -> bool:
    """Whether a value, which may come from a file, is of the kind of a setting."""
    if value is None:
        return setting.default is None
    parse = setting.metadata["parse"]
    words, kind = {batch_size: (("full", "auto"), int), reward_scale: (("auto",), float)}.get(parse, ((), parse))
    several = isinstance(setting.default, tuple)
    return isinstance(value, (list, tuple)) == several and all(
        x in words or isinstance(x, (int, float) if kind is float else kind) and isinstance(x, bool) == (kind is bool)
        for x in (value if several else (value,)))


def _check(c: Config) -> None:
    def require(condition: bool, sentence: str) -> None:
        if not condition:
            raise ConfigError(sentence)

    for f in dataclasses.fields(c):
        value, low, high, flag = getattr(c, f.name), f.metadata["low"], f.metadata["high"], _flag(f.name)
        require(_is_of_kind(value, f), f"{flag} cannot be {value!r}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)):
                require(isinstance(number, float) or abs(number) <= LARGEST_INTEGER, f"{flag} is out of any range.")
                require(math.isfinite(number), f"{flag} must be a finite number, not {number}.")
                require(high is None or low <= number <= high, f"{flag} must lie in [{low}, {high}], not {number}.")
                require(low is None or low <= number, f"{flag} must be at least {low}, not {number}.")
        if choices := f.metadata.get("choices"):
            require(value in choices, f"{flag} must be one of {', '.join(choices)}, not {value!r}.")
    require(len(c.alpha) > 0, "--alpha needs at least one value.")
    require(len(set(c.alpha)) == len(c.alpha), "--alpha names a value twice.")
    require(c.penalty_threshold is None or min(c.alpha) >= 1 / LARGEST_ALPHA,
            f"--penalty-threshold multiplies alpha: give --alpha of at least {1 / LARGEST_ALPHA:g} to start from.")
    require(c.lr > 0, f"--lr must be positive, not {c.lr}.")
    require(c.temperature == 1 or c.penalty == "logsumexp", f"--temperature does not go with --penalty {c.penalty}.")
    follows = c.objective.follows_policy
    require(not (follows and c.supported), f"--supported does not go with --penalty {c.penalty}, whose policy takes "
            "logged actions only.")
    require(not (follows and c.double_q), f"--double-q does not go with --penalty {c.penalty}, which has no max.")
    require(not follows or c.target_policy is not None, f"--penalty {c.penalty} needs --target-policy.")
    for name in ("target_policy", "mu"):
        require(follows or getattr(c, name) is None, f"{_flag(name)} does not go with --penalty {c.penalty}.")
    require(len(c.alpha) * c.num_seeds * c.num_datasets <= MOST_MEMBERS,
            f"more than {MOST_MEMBERS:,} members are too many for one run.")
    require(c.bc_steps + c.steps > 0, "--bc-steps 0 and --steps 0 together leave nothing to train.")
    require(c.clones_all or c.bc_steps > 0, "--bc-top and --bc-safe choose what Behaviour Cloning clones: they do not "
            "go with --bc-steps 0.")
    require(all(width >= 1 for width in c.hidden),
            "--hidden takes widths of at least 1, or a single 0 for the linear network.")
    require(c.dataset is None or c.num_datasets == 1,
            "--dataset is one data set: it does not go with --num-datasets above 1.")
    require(c.env_args is None or c.env.rpartition(":")[2] != ENVIRONMENT,
            f"--env-args are those of another --env: {ENVIRONMENT} has --map, --slip and --observation.")
    require(c.model is None or c.dataset is not None, "--model is the true model of given data: give --dataset too.")
    require(c.dataset is not None or not c.split_episodes, "--split-episodes splits those of --dataset: give one.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
