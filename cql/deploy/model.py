"""A trained member with what is needed to judge, explain and serve it: policy, data, and the true model if known.

Axes: S state, A action.
"""

import hashlib
import io
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cql.analysis.evaluation import Support, final_alphas, load_policy, refuse_misfit, supports_of
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.errors import ConfigError, DatasetError, RunError
from cql.members import Member, all_members
from cql.model_file import NAME as MODEL
from cql.model_file import KnownModel
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.world import World, states_of

POLICY, DATA, CONFIG, CARD = "policy.pt", "data.npz", "config.json", "card.json"  # the files of a registry's entry
FILES = (CONFIG, DATA, POLICY)  # what every entry's ID is made of; with --model also of MODEL, the model file
LARGEST = 1e18  # number of an observation: far from where float32 ends, so that the network's sums stay below it
LARGEST_MAP = 10_000  # cells that are still drawn
STEPS = {(-1, 0): "up", (1, 0): "down", (0, -1): "left", (0, 1): "right"}  # (row, column) of a move


@dataclass(frozen=True, eq=False)
class Model:
    """One member, read from a run folder or from an entry of a registry.

    Attributes:
        member: which one. policy: its network. dataset: the draw it was trained on. config: of its run.
        final_alpha: the weight of the penalty it ended with: ``member.alpha`` unless that was learned; None for BC.
        world: the environment that its data name.
        cloned: BC of the same data and seed, which says what is supported where observations are vectors without state
            numbers; None where there is none. An entry of a registry holds one member: only BC's own has it.
    """

    member: Member
    policy: Policy
    dataset: OfflineDataset
    config: Config
    final_alpha: float | None
    world: World
    cloned: Policy | None = None

    @classmethod
    def open(cls, path: str | Path, member: str | None = None) -> "Model":
        """``of_entry`` where the folder has a card, else ``of_run``."""
        return cls.of_entry(path) if (Path(path) / CARD).is_file() else cls.of_run(path, member)

    @classmethod
    def of_run(cls, path: str | Path, member: str | None = None) -> "Model":
        """A member of a finished run.

        Args:
            member: its name, ``cql-a6-s42-d42``; without it the run's only CQL member.

        Raises:
            RunError: no run, a changed one, no such member, or several to choose from.
        """
        run = RunFolder.open(path)
        run.check_manifest(derived=False)
        config = run.config()
        chosen = _chosen(all_members(config), member, path)
        dataset = run.dataset(config, chosen.data_seed)
        cloned = Member("bc", None, chosen.seed, chosen.data_seed)
        known = run.policy_path(cloned.name).is_file()
        return cls._of(load_policy(run, chosen, dataset), dataset, config, final_alphas(run).get(chosen.name),
                       load_policy(run, cloned, dataset) if known else None)

    @classmethod
    def of_entry(cls, folder: str | Path, card: dict | None = None) -> "Model":
        """The model in a registry's entry. Every file is read once: what is held against its digest is what is used.

        Args:
            card: the entry's, if the caller has held it against the registry's log; else the folder's is believed.

        Raises:
            RunError: a file is missing, damaged, not the one that the card names, or does not fit the others.
        """
        folder = Path(folder)
        card = RunFolder(folder).read_json(CARD) if card is None else card
        try:
            digests, final_alpha = card["files"], card["evaluation"]["final_alpha"]
            files = {name: RecordedFile(folder / name, digests[name]) for name in digests if name in (*FILES, MODEL)}
            contents = [files[name] for name in FILES]
        except (KeyError, TypeError):
            raise RunError(f"{folder / CARD} is no card of a registry's entry.") from None
        try:
            config = Config.from_json(contents[0].getvalue().decode())
        except (ConfigError, UnicodeDecodeError) as error:
            raise RunError(f"{folder / CONFIG} cannot be used: {error}") from None
        policy, dataset = Policy.load(contents[2]), _loaded(contents[1], files.get(MODEL), config)
        refuse_misfit(policy, dataset, folder / POLICY)
        return cls._of(policy, dataset, config, final_alpha)

    @classmethod
    def _of(cls, policy: Policy, dataset: OfflineDataset, config: Config, final_alpha: float | None,
            cloned: Policy | None = None) -> "Model":
        member = Member(policy.algorithm, policy.alpha, policy.seed, policy.data_seed)
        try:
            world = World.of(dataset)
        except ConfigError as error:
            raise RunError(str(error)) from None
        return cls(member, policy, dataset, config, final_alpha, world, cloned)

    @cached_property
    def support(self) -> Support:
        policies = [self.policy, self.cloned]
        return supports_of(self.world, [self.dataset], [self.dataset] * 2, policies)[0]

    @cached_property
    def actions(self) -> list[str]:
        """A word for each action: its name in the metadata, the direction it is meant to lead in, else its number."""
        moves: Any = [] if self.world.grid is None else self.world.grid.moves
        words = self.world.named_actions or [STEPS.get((int(row), int(column))) for row, column in moves]
        named = dict(enumerate(words)) if len(set(words)) == len(words) else {}
        names = [named.get(a) or str(a) for a in range(self.dataset.num_actions)]
        return [f"action {name}" if is_number(name) else name for name in names]

    @property
    def features(self) -> list[str] | None:
        """The names of the numbers of an observation; None without."""
        return self.dataset.metadata.get("feature_names")

    @property
    def has_map(self) -> bool:
        """Whether its states are the cells of a grid that can be drawn."""
        return self.world.grid is not None and len(self.world.grid.terminal) <= LARGEST_MAP

    def observation(self, value) -> int | list[float]:
        """An observation as JSON has it, an index or a list. Raises RunError if it is none of this model's."""
        size = self.policy.network.inputs
        if self.policy.network.discrete:
            return _index(value, size, "an observation")
        if type(value) is not list or len(value) != size:
            raise RunError(f"an observation is a list of {size} numbers.")
        if not all(type(x) in (int, float) and -LARGEST <= x <= LARGEST for x in value):
            raise RunError(f"the numbers of an observation must lie within {LARGEST:g} of 0.")
        return [float(x) + 0.0 for x in value]  # -0.0 is 0.0

    def action(self, value, possible: np.ndarray) -> int:
        """An action as JSON has it. Raises RunError if it is none of this model's, or not ``possible [A]`` there."""
        action = _index(value, self.dataset.num_actions, "an action")
        if not possible[action]:
            names = ", ".join(self.actions[a] for a in np.flatnonzero(possible))
            raise RunError(f"{self.actions[action]} is none of the actions that this policy may take there: {names}.")
        return action

    def possible(self, observations, masks=None) -> np.ndarray:
        """The actions that the policy may take there, ``[A]`` or ``[B, A]`` bool. Raises RunError for a mask that is
        missing, or none of this model's."""
        try:
            possible = self.policy.possible(observations, masks)
        except ValueError as error:
            raise RunError(str(error)) from None
        batch = np.shape(observations)[: None if self.policy.network.discrete else -1]
        return np.ones((*batch, self.dataset.num_actions), np.bool_) if possible is None else possible

    def counts(self, observation) -> np.ndarray:
        """``[A]``: how often the data took each action there; zeros where they never were."""
        return self.support.counts_of(observation)

    def state(self, observation) -> int | None:
        """The state that an observation shows; None without an exact model, or if no state shows it."""
        inputs = self.world.inputs
        if self.world.mdp is None or inputs is None:
            return None
        seen = np.asarray(observation, dtype=self.dataset.observations.dtype)
        found = int(states_of(seen[None], inputs)[0])
        return found if 0 <= found < self.world.mdp.num_states else None


class RecordedFile(io.BytesIO):
    """The contents of a plain file of an entry, read once. Raises RunError if it is none or has another digest."""

    def __init__(self, path: Path, digest: str | None):
        self.path = path
        if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
            raise RunError(f"{path} is missing, or a link or another thing than a plain file.")
        super().__init__(path.read_bytes())
        if hashlib.sha256(self.getbuffer()).hexdigest() != digest:
            raise RunError(f"{path} was changed: it does not have the digest that was recorded.")

    def __str__(self) -> str:  # in messages
        return str(self.path)


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _index(value, size: int, what: str) -> int:
    """JSON has one kind of number: 3.0 is the integer 3."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 <= value < size:
        raise RunError(f"{what} of this model is an integer from 0 to {size - 1}.")
    return value


def _chosen(members: list[Member], name: str | None, path) -> Member:
    names = ", ".join(member.name for member in members[:8]) + (", …" if len(members) > 8 else "")
    if name is not None:
        if found := [member for member in members if member.name == name]:
            return found[0]
        raise RunError(f"{path} has no member {name}: it has {names}.")
    cql = [member for member in members if member.algorithm == "cql"]
    if len(cql) != 1:
        raise RunError(f"{path} has {len(cql)} CQL members: choose one with --member ({names}).")
    return cql[0]


def _loaded(path: RecordedFile, model: RecordedFile | None, config: Config) -> OfflineDataset:
    try:
        dataset = OfflineDataset.load(path)
        return dataset if model is None else KnownModel.load(model, config.max_episode_steps).known_for(dataset)
    except (ConfigError, DatasetError) as error:
        raise RunError(str(error)) from None
