"""The fixed data set: plain arrays, validated once, one ``.npz`` file, no pickle.

Axes: ``D`` transitions. If a step sets both flags, it counts as a termination.
"""

import hashlib
import io
import json
import os
import zipfile
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cql.errors import DatasetError, GlassboxError, first_line
from cql.files import atomic_write

if TYPE_CHECKING:
    from cql.model_file import KnownModel

FORMAT = 1
MAX_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # a small archive can unpack to any size
ARRAYS = {  # name -> dtype on disk; None: int32 for Discrete, float32 or float64 for Box observations
    "observations": None,
    "actions": np.int32,
    "rewards": np.float32,
    "next_observations": None,
    "terminations": np.bool_,
    "truncations": np.bool_,
    "episode_ids": np.int32,
    "behavior_probabilities": np.float64,
    "action_masks": np.bool_,
    "next_action_masks": np.bool_,
}
MASKS = ("action_masks", "next_action_masks")
INTEGERS = np.iinfo(np.int32)
LARGEST_NUMBER = INTEGERS.max - 1  # of a state or an action: there is one more of them
LARGEST_REWARD = 1e30  # so that sums over episodes and squares stay within floating point
FINENESS = 1e-3  # of a column's standard deviation: rounding that moves no number by more is no loss
ROUNDING = 1e-6  # by which the sum of probabilities may differ from 1
REQUIRED = ("observations", "actions", "rewards", "next_observations", "terminations")


@dataclass(frozen=True)
class OfflineDataset:
    """Logged transitions of whole or partial episodes.

    Args:
        observations, next_observations: ``[D]`` int32 state indices (Discrete) or ``[D, n]`` float32 (Box); float64
            where float32 would lose something of the observations.
        actions: ``[D]`` int32, 0 … ``num_actions`` − 1.
        rewards: ``[D]`` float32, of a size of at most ``LARGEST_REWARD``.
        terminations, truncations: ``[D]`` bool, never both.
        episode_ids: ``[D]`` int32; the transitions of an episode are consecutive.
        behavior_probabilities: ``[D]`` float64 in (0, 1], the logged action's under one policy, or None: in every
            state, the smallest probability logged for each action, summed over actions, is at most 1.
        action_masks, next_action_masks: ``[D, A]`` bool, which actions exist in the observation and in the next one, or
            None: all do. Equal observations have equal masks; those after a terminated step are not read.
        metadata: JSON-able; ``num_actions`` and, for Discrete observations, ``num_states`` among it; where they are
            known ``environment`` (a spec of ``cql.collect``), ``horizon``, the steps after which an episode is cut off,
            and the texts ``action_names`` and ``state_names`` or ``feature_names``. Beside them stand what was set
            right: ``first_state``, ``first_action``, ``terminated_and_truncated`` and ``begun_at_breaks``.
        model: the true model, where a file of one was given (``cql.model_file``); not saved with the data.

    Raises DatasetError on construction, if any of the above does not hold.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    episode_ids: np.ndarray
    behavior_probabilities: np.ndarray | None = None
    metadata: dict = field(default_factory=dict)
    action_masks: np.ndarray | None = None
    next_action_masks: np.ndarray | None = None
    model: "KnownModel | None" = None

    def __post_init__(self):
        _validate(self)

    @classmethod
    def from_arrays(cls, observations, actions, rewards, next_observations, terminations, truncations=None,
                    episode_ids=None, behavior_probabilities=None, metadata=None, first_state=0,
                    first_action=0, action_masks=None, next_action_masks=None) -> "OfflineDataset":
        """A data set from plain arrays of any integer or float kind.

        Without ``truncations`` nothing was truncated; without ``episode_ids`` an episode ends where either flag is set.
        ``num_actions`` and ``num_states`` are taken from the metadata, else from the largest value that occurs.

        Integer observations ``[D, 1]`` are state indices. A step with both flags, as Gymnasium's TimeLimit sets them
        where an episode ends on its last step, is a termination; ``terminated_and_truncated`` in the metadata counts
        these. Episode ids may be any integers and are stored as 0, 1, …; −0.0 is stored as 0.0. Vectors are stored as
        float64 where float32 would make two that differ equal, or move a number by more than a ``FINENESS`` of its
        column's standard deviation.

        Args:
            first_state, first_action: what the environment calls its first state and action (the ``start`` of its
                Discrete spaces). They are stored as 0, and the metadata keep these numbers.
        """
        first_state = _integer(first_state, "first_state")
        first_action = _integer(first_action, "first_action")
        observations = _observations(observations, "observations", first_state)
        next_observations = _observations(next_observations, "next_observations", first_state)
        observations, next_observations = _as_float32_where_it_suffices(observations, next_observations)
        actions = _integers(actions, "actions", first_action)
        terminations = _flags(terminations, "terminations")
        truncations = np.zeros_like(terminations) if truncations is None else _flags(truncations, "truncations")
        if truncations.shape != terminations.shape:
            raise DatasetError(f"truncations have the shape {truncations.shape}, terminations {terminations.shape}.")
        if episode_ids is None:
            ends = (terminations | truncations).reshape(-1)
            episode_ids = np.concatenate([[0], np.cumsum(ends[:-1])]) if ends.size else np.zeros(0)
        if metadata is not None and not isinstance(metadata, dict):
            raise DatasetError("the metadata are no dictionary.")
        metadata = {name: int(value) if isinstance(value, np.integer) else value
                    for name, value in (metadata or {}).items()}
        if both := int((terminations & truncations).sum()):
            truncations = truncations & ~terminations
            metadata["terminated_and_truncated"] = both
        if first_state:
            metadata["first_state"] = first_state
        if first_action:
            metadata["first_action"] = first_action
        masks = {name: None if mask is None else _flags(mask, name)
                 for name, mask in zip(MASKS, (action_masks, next_action_masks))}
        if actions.size:
            width = max((mask.shape[1] for mask in masks.values() if mask is not None and mask.ndim == 2), default=0)
            metadata.setdefault("num_actions", max(int(actions.max()) + 1, width))
        if observations.ndim == 1 and next_observations.ndim == 1 and next_observations.size:
            metadata.setdefault("num_states", int(max(observations.max(), next_observations.max())) + 1)
        if behavior_probabilities is not None:
            behavior_probabilities = _numbers(behavior_probabilities, "behavior_probabilities", np.float64)
            rounded = (behavior_probabilities > 1) & (behavior_probabilities <= 1 + ROUNDING)
            behavior_probabilities[rounded] = 1  # 1 in float32, for one
        return cls(observations, actions, _numbers(rewards, "rewards", np.float32), next_observations, terminations,
                   truncations, _episode_numbers(episode_ids), behavior_probabilities, metadata,
                   masks["action_masks"], masks["next_action_masks"])

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def episode_starts(self) -> np.ndarray:
        """Index of the first transition of every episode ``[E]``."""
        return np.flatnonzero(np.diff(self.episode_ids, prepend=self.episode_ids[0] - 1))

    @property
    def breaks(self) -> np.ndarray:
        """The transitions whose next observation is not the observation of the following one in their episode."""
        differ = self.next_observations[:-1] != self.observations[1:]
        return np.flatnonzero((differ if self.discrete else differ.any(1)) & (np.diff(self.episode_ids) == 0))

    def breaks_in_words(self) -> str | None:
        """How many breaks there are, where the first is and what to do, as a sentence; None without any."""
        if not (breaks := self.breaks).size:
            return None
        return (f"episodes are broken in {len(breaks):,} place{'s' * (len(breaks) > 1)}, first after transition "
                f"{breaks[0]}, whose next observation is not the observation of the transition that follows: returns "
                "and estimates over episodes are withheld (--split-episodes begins a new episode at each place).")

    def split_at_breaks(self) -> "OfflineDataset":
        """This data set with a new episode after each of its ``breaks``, which ``begun_at_breaks`` counts."""
        if not (breaks := self.breaks).size:
            return self
        begins = np.zeros(len(self), np.int32)
        begins[np.concatenate([self.episode_starts, breaks + 1])] = 1
        return replace(self, episode_ids=np.cumsum(begins, dtype=np.int32) - 1,
                       metadata={**self.metadata, "begun_at_breaks": len(breaks)})

    def of_episodes(self, ids) -> "OfflineDataset":
        """The transitions of the episodes with these ids; what was counted of all is not in the metadata."""
        kept = np.isin(self.episode_ids, ids)
        columns = {name: column[kept] for name in ARRAYS if (column := getattr(self, name)) is not None}
        counted = {"terminated_and_truncated", "begun_at_breaks"}
        return replace(self, **columns, metadata={
            name: value for name, value in self.metadata.items() if name not in counted})

    @property
    def discrete(self) -> bool:
        """Whether observations are state indices."""
        return self.observations.ndim == 1

    @property
    def num_actions(self) -> int:
        return self.metadata["num_actions"]

    @property
    def action_names(self) -> list[str] | None:
        """What the metadata call the actions: their names, else their numbers where these do not begin at 0."""
        first = self.metadata.get("first_action", 0)
        numbers = [str(first + action) for action in range(self.num_actions)] if first else None
        return self.metadata.get("action_names", numbers)

    @property
    def num_states(self) -> int:
        """Size of the Discrete observation space. Raises DatasetError for vector observations."""
        if not self.discrete:
            raise DatasetError("this data set has vector observations, so its states cannot be counted.")
        return self.metadata["num_states"]

    @cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The states ``[S]``, or the distinct vectors ``[U, n]`` among observations and next observations in order; and
        the row of each observation and of each next observation there, ``[D]`` and ``[D]``."""
        if self.discrete:
            return np.arange(self.num_states), self.observations, self.next_observations
        table, rows = number_rows(np.concatenate([self.observations, self.next_observations]))
        return table, rows[: len(self)], rows[len(self) :]

    @cached_property
    def admissible(self) -> np.ndarray | None:
        """``[S, A]`` or ``[U, A]`` bool: the actions that exist at each row of ``rows``, by the masks and the model, or
        all where these do not say; None where all exist everywhere."""
        known = None if self.model is None else self.model.admissible
        if self.action_masks is None and self.next_action_masks is None:
            return known
        distinct, here, following = self.rows
        table = np.ones((len(distinct), self.num_actions), np.bool_) if known is None else known.copy()
        if self.next_action_masks is not None:
            table[following[~self.terminations]] &= self.next_action_masks[~self.terminations]
        if self.action_masks is not None:
            table[here] &= self.action_masks
        return table

    @property
    def masked(self) -> bool:
        """Whether policies trained on it need a mask to act: those of vectors with masks. Others hold their own."""
        return not self.discrete and self.admissible is not None

    def masks_of(self, observations: np.ndarray) -> np.ndarray | None:
        """The masks that policies need to act at these observations, ``[B, A]`` bool, all true where the data do not
        say; None where they need none."""
        if not self.masked:
            return None
        distinct = self.rows[0]
        both, place = number_rows(np.concatenate([distinct, np.asarray(observations, distinct.dtype)]))
        table = np.ones((len(both), self.num_actions), np.bool_)
        table[place[: len(distinct)]] = self.admissible
        return table[place[len(distinct) :]]

    @property
    def environment(self) -> dict | None:
        """The environment that the metadata name, or the model in its place; None without either."""
        return self.metadata.get("environment") if self.model is None else self.model.spec

    def action_entropy(self) -> float:
        """Entropy of the logged action given the observation, in nats: the least cross-entropy of any policy."""
        _, rows = np.unique(self.observations, axis=0, return_inverse=True)
        rows = rows.reshape(-1).astype(np.int64)
        _, count = np.unique(rows * self.num_actions + self.actions, return_counts=True)
        per_state = np.bincount(rows)
        return float((per_state * np.log(per_state)).sum() - (count * np.log(count)).sum()) / len(self)

    # ------------------------------------------------------------------------------------------------ disk

    def save(self, path) -> None:
        """Writes one ``.npz``, whole or not at all; equal data sets give equal bytes."""
        atomic_write(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        arrays = {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}
        try:
            arrays["metadata"] = np.array(json.dumps({"format": FORMAT, **self.metadata}, sort_keys=True))
        except (TypeError, ValueError, RecursionError) as error:
            raise DatasetError(f"the metadata cannot be written as JSON ({first_line(error)}).") from None
        # digest first, metadata (which require it) last: no single hole removes both
        arrays = {"sha256": np.array(_digest(arrays)), **arrays}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                member = io.BytesIO()
                np.lib.format.write_array(member, array, allow_pickle=False)
                # a fixed date, so that the bytes depend on the contents alone
                archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getbuffer())
        return buffer.getvalue()

    @classmethod
    def load(cls, path) -> "OfflineDataset":
        """The data set in an ``.npz`` (a path, or its contents as a file); optional arrays and metadata may be missing.

        ``first_state`` and ``first_action`` in the metadata of plain arrays are those of ``from_arrays``.
        Raises DatasetError if the file is missing, cut short, of another kind, or its contents are not valid.
        """
        found = read_npz(path, "data set", DatasetError)
        digest = str(found.pop("sha256")) if "sha256" in found else None
        refuse_other_arrays(path, found, REQUIRED, [*ARRAYS, "metadata"], "data set", DatasetError)
        arrays = {name: found[name] for name in ARRAYS if name in found}
        digested = _digest({**arrays, "metadata": found["metadata"]}) if "metadata" in found else None
        metadata = read_metadata(path, found, DatasetError)
        if "format" in metadata or digest is not None:  # written by this project: whole, or not at all
            if metadata.pop("format", None) != FORMAT:
                raise DatasetError(f"{path} is of a format that this version does not know.")
            if digest != digested:
                raise DatasetError(f"{path} is damaged: its contents do not have the digest it was written with.")
        first = {}
        if digest is None:  # plain arrays, in the numbers of their environment
            first = {name: metadata.pop(name) for name in ("first_state", "first_action") if name in metadata}
        try:
            return cls.from_arrays(**arrays, metadata=metadata, **first)
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from None

    # ------------------------------------------------------------------------------------------------ views

    def compress(self) -> "CompressedDataset":
        """The distinct (s, a, r, s', terminated, truncated) and how often each occurs."""
        names = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
        first, _, counts = _distinct([getattr(self, name) for name in names])
        return CompressedDataset(**{name: getattr(self, name)[first] for name in names}, counts=counts)

    def episode_returns(self) -> np.ndarray:
        """Undiscounted return of every episode ``[E]``, float64. Raises DatasetError if episodes are broken."""
        if broken := self.breaks_in_words():
            raise DatasetError(broken)
        _, episode = np.unique(self.episode_ids, return_inverse=True)
        return np.bincount(episode, weights=self.rewards.astype(np.float64))


@dataclass(frozen=True)
class CompressedDataset:
    """The distinct transitions ``[N]`` of a data set with their ``counts [N]`` (int64, summing to D)."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def weights(self) -> np.ndarray:
        """``counts / D``, float64: what turns a sum over distinct transitions into the mean over the data set."""
        return self.counts / self.counts.sum()


def read_npz(path, what: str, error: type[GlassboxError]) -> dict[str, np.ndarray]:
    """The arrays in an ``.npz``, a path or its contents as a file. Raises ``error`` if it is missing, damaged or too
    large."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_BYTES:
            raise error(f"{path} unpacks to {unpacked / 2**30:,.0f} GiB, more than this machine's memory.")
        if isinstance(path, io.BytesIO):
            path.seek(0)  # from where NumPy reads
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise error(f"there is no {what} at {path}.") from None
    except Exception as damage:  # NumPy and zipfile raise many kinds on a damaged archive
        if isinstance(damage, error):
            raise
        raise error(f"{path} cannot be read as a {what} ({first_line(damage)}).") from None


def read_metadata(path, arrays: dict[str, np.ndarray], error: type[GlassboxError]) -> dict:
    """The JSON object in the array ``metadata`` of a file; empty without one."""
    try:
        metadata = json.loads(str(arrays.get("metadata", "{}")))
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise error(f"{path}: its metadata are not a JSON object.")
    return metadata


def refuse_other_arrays(path, arrays, required, known, what: str, error: type[GlassboxError]) -> None:
    """Raises ``error`` if a required array is missing or one is not known."""
    if missing := [name for name in required if name not in arrays]:
        raise error(f"{path} lacks the array{'s' * (len(missing) > 1)} {', '.join(missing)} of a {what}.")
    if unknown := sorted(set(arrays) - set(known)):
        raise error(f"{path} has {', '.join(unknown)}: the arrays of a {what} are {', '.join(known)}.")


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def observation_keys(observations, dtype) -> list[bytes]:
    """Of each observation, in this dtype, bytes that are equal for equal ones: −0.0 and 0.0 are."""
    return [observation.tobytes() for observation in np.asarray(observations, dtype) + 0]  # -0.0 + 0 is 0.0


def number_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows in lexicographic order, and the number of each row: ``[D] or [D, n] -> [U] or [U, n], [D]``."""
    first, number, _ = _distinct([rows])
    return rows[first], number


def _distinct(arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First occurrence ``[U]`` of each distinct row in lexicographic order, number ``[D]`` of each row among them, and
    how often each occurs ``[U]``.

    Only one row of each hash is sorted, since sorting rows takes many times longer than hashing them.

    Args:
        arrays: the columns, each ``[D]`` or ``[D, n]``, not empty, without NaN.
    """
    columns = [column for array in arrays for column in (array.T if array.ndim > 1 else array[None])]
    hashes = np.zeros(len(arrays[0]), np.uint64)
    for column in columns:
        hashes ^= np.ascontiguousarray(column).view(f"u{column.itemsize}")
        hashes *= np.uint64(0x9E3779B97F4A7C15)  # odd: distinct numbers stay distinct
        hashes ^= hashes >> np.uint64(32)
    _, one, group = np.unique(hashes, return_index=True, return_inverse=True)  # a row of each hash, and each row's
    if any((column[one][group] != column).any() for column in columns):  # different rows share a hash
        one = group = np.arange(len(hashes))
    rank = np.zeros(len(one), np.int64)  # of each of these rows, by the columns so far
    for column in columns:
        if rank.max() == len(rank) - 1:
            break  # all differ already
        values, code = np.unique(column[one], return_inverse=True)
        rank = np.unique(rank * len(values) + code, return_inverse=True)[1]
    number = rank[group]
    _, first, counts = np.unique(number, return_index=True, return_counts=True)
    return first, number, counts


def _array(values, name: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise DatasetError(f"{name} is ragged: its entries differ in length.") from None
    if array.ndim == 0:
        raise DatasetError(f"{name} is a single value, not one per transition.")
    return array


def _observations(array, name: str, first: int) -> np.ndarray:
    array = _array(array, name)
    if len(array) == 0:
        raise DatasetError("the data set has no transitions.")
    if array.dtype == np.bool_:
        array = array.astype(np.int32)
    if array.dtype.kind in "iu" and (array.ndim == 1 or array.shape[1:] == (1,)):
        return _integers(array.reshape(-1), name, first)
    if array.ndim == 1 and array.dtype.kind == "f":
        raise DatasetError(f"{name} is one number per transition but no integer: give [D] integers or [D, n] vectors.")
    if array.ndim > 2:
        raise DatasetError(f"{name} has {array.ndim} axes: flatten each observation to one vector.")
    return _numbers(array, name, np.float32 if array.dtype == np.float32 else np.float64)


def _integral(array, name: str) -> np.ndarray:
    array = _array(array, name)
    if array.size and array.dtype.kind not in "iu":
        if array.dtype.kind != "f" or not (np.isfinite(array) & (array == np.floor(array))).all():
            raise DatasetError(f"{name} must be integers.")
    return array


def _integers(array, name: str, first: int) -> np.ndarray:
    """Integers from ``first`` on, as int32 from 0 on."""
    array = _integral(array, name)
    if array.size and (array.min() < first or array.max() > first + LARGEST_NUMBER):
        raise DatasetError(f"{name} must lie between {first} and {first + LARGEST_NUMBER}.")
    return (array.astype(np.int64) - first).astype(np.int32)


def _episode_numbers(ids) -> np.ndarray:
    """The numbers of the episodes in order, 0, 1, …, as int32, for ids that are any integers."""
    ids = _integral(ids, "episode_ids")
    if ids.ndim > 1:  # refused with the other arrays' shapes
        return ids.astype(np.int32)
    begins = np.ones(len(ids), np.bool_)
    begins[1:] = ids[1:] != ids[:-1]
    _refuse_repeated(ids[begins])
    return np.cumsum(begins, dtype=np.int32) - 1


def _refuse_repeated(ids: np.ndarray) -> None:
    """Raises DatasetError if two episodes have the same id, ``ids [E]``."""
    if len(np.unique(ids)) != len(ids):
        raise DatasetError("the transitions of an episode must stand together: an episode_id comes back later.")


def _numbers(array, name: str, dtype) -> np.ndarray:
    array = _array(array, name)
    if array.dtype.kind not in "biuf":
        raise DatasetError(f"{name} must be numbers.")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        array = array.astype(dtype)
    array += 0  # -0.0 becomes 0.0
    return array


def _flags(array, name: str) -> np.ndarray:
    array = _array(array, name)
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise DatasetError(f"{name} must be true or false (0 or 1).")
    return array.astype(np.bool_)


def _integer(value, name: str, low: int = INTEGERS.min, high: int = INTEGERS.max) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise DatasetError(f"{name} must be an integer from {low} to {high}.")
    return int(value)


def _as_float32_where_it_suffices(*vectors: np.ndarray) -> list[np.ndarray]:
    """Observations and next observations, both float64 where float32 would lose something of either."""
    if all(array.dtype != np.float64 for array in vectors):
        return list(vectors)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        rounded = [array.astype(np.float32) if array.dtype == np.float64 else array for array in vectors]
    if vectors[0].shape != vectors[1].shape or not all(np.isfinite(array).all() for array in rounded):
        return rounded  # refused later
    before, after = np.concatenate(vectors, dtype=np.float64), np.concatenate(rounded)
    moved = np.abs(before - after).max(0)
    if not moved.any():
        return rounded
    lost = (moved > FINENESS * before.std(0)).any() or len(number_rows(before)[0]) > len(number_rows(after)[0])
    return [array.astype(np.float64) for array in vectors] if lost else rounded


def _validate(data: OfflineDataset) -> None:
    for name in ("observations", "next_observations"):
        array = getattr(data, name)
        if (array.ndim, array.dtype) not in ((1, np.int32), (2, np.float32), (2, np.float64)) or not len(array):
            raise DatasetError(f"{name} must be [D] int32 or [D, n] float32 or float64, not {array.dtype} "
                               f"{array.shape}.")
    for name, dtype in ARRAYS.items():
        array = getattr(data, name)
        if array is None:
            continue
        if len(array) != len(data.observations):
            raise DatasetError(f"{name} has {len(array)} entries, observations has {len(data.observations)}.")
        if name in MASKS:
            if array.dtype != dtype or array.shape[1:] != (data.metadata.get("num_actions"),):
                raise DatasetError(f"{name} must be one bool per transition and action, [{len(array)}, "
                                   f"{data.metadata.get('num_actions')}], not {array.dtype} {list(array.shape)}.")
        elif dtype is not None and (array.ndim != 1 or array.dtype != dtype):
            raise DatasetError(f"{name} must be one {np.dtype(dtype).name} per transition, not {array.dtype} "
                               f"{array.shape}.")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise DatasetError(f"{name} holds NaN or infinite numbers{_where(array, data.metadata)}.")
    if np.abs(data.rewards).max() > LARGEST_REWARD:
        raise DatasetError(f"rewards must lie between {-LARGEST_REWARD:g} and {LARGEST_REWARD:g}.")
    here, following = data.observations, data.next_observations
    if (here.shape, here.dtype) != (following.shape, following.dtype):
        raise DatasetError("observations and next_observations differ in shape or kind.")
    if not data.discrete and data.observations.shape[1] == 0:
        raise DatasetError("observations are vectors of length 0.")
    both = np.flatnonzero(data.terminations & data.truncations)
    if both.size:
        raise DatasetError(f"transition {both[0]} is both terminated and truncated: here it is one of them; "
                           "from_arrays takes it as terminated.")
    _validate_range(data, "actions", "num_actions")
    if data.discrete:
        for name in ("observations", "next_observations"):
            _validate_range(data, name, "num_states")
    _validate_names(data)
    for name, low, high in (("first_state", INTEGERS.min, INTEGERS.max), ("first_action", INTEGERS.min, INTEGERS.max),
                            ("terminated_and_truncated", 0, int(data.terminations.sum())),
                            ("begun_at_breaks", 0, len(data))):
        _integer(data.metadata.get(name, 0), f"{name} in the metadata", low, high)
    probabilities = data.behavior_probabilities
    if probabilities is not None and not ((probabilities > 0) & (probabilities <= 1)).all():
        raise DatasetError("behavior_probabilities must lie in (0, 1]: each logged action was possible.")
    if probabilities is not None:
        _refuse_contradictions(data)
    _validate_masks(data)
    _refuse_repeated(data.episode_ids[data.episode_starts])
    longest = int(np.diff(data.episode_starts, append=len(data)).max())
    if (horizon := _integer(data.metadata.get("horizon", longest), "horizon in the metadata", 1)) < longest:
        raise DatasetError(f"an episode has {longest} steps, the horizon in the metadata is {horizon}.")
    going_on = np.flatnonzero((data.terminations | data.truncations)[:-1] & (np.diff(data.episode_ids) == 0))
    if going_on.size:
        raise DatasetError(f"transition {going_on[0]} ends its episode, yet the next one has the same episode_id.")


def _refuse_contradictions(data: OfflineDataset) -> None:
    """Raises DatasetError if the probabilities are not those of one policy.

    An action may have several probabilities in a state. In no state may the smallest of each logged action sum to more
    than 1.
    """
    _, state = number_rows(data.observations)  # [D]
    pairs, pair = np.unique(state * data.num_actions + data.actions, return_inverse=True)  # [P], [D]
    smallest = np.ones(len(pairs))
    np.minimum.at(smallest, pair, data.behavior_probabilities)
    total = np.bincount(pairs // data.num_actions, weights=smallest)[state]  # [D]
    if (total > 1 + ROUNDING).any():
        n = np.argmax(total > 1 + ROUNDING)
        raise DatasetError(f"behavior_probabilities are not those of one policy: the smallest of each action logged in "
                           f"state {data.observations[n].tolist()} sum to {total[n]:.6g}, above 1; leave "
                           "behavior_probabilities out, and relative frequencies are used.")


def _where(array: np.ndarray, metadata: dict) -> str:
    """In which transition the first number is that is not finite, in which feature, and how many there are."""
    places = np.argwhere(~np.isfinite(array))
    first, *feature = places[0]
    names = metadata.get("feature_names")
    named = "".join(f", feature {names[n] if isinstance(names, list) and n < len(names) else n}" for n in feature)
    return f", first in transition {first}{named} ({len(places):,} in all)"


def _validate_names(data: OfflineDataset) -> None:
    seen = ("state_names", data.num_states) if data.discrete else ("feature_names", data.observations.shape[1])
    for name, size in (("action_names", data.num_actions), seen):
        names = data.metadata.get(name)
        if names is not None and not (isinstance(names, list) and all(isinstance(text, str) for text in names)
                                      and len(names) == size == len(set(names))):
            raise DatasetError(f"{name} in the metadata must be {size} different texts.")


def _validate_masks(data: OfflineDataset) -> None:
    """Raises DatasetError if masks are not one table over the observations, or leave out an action that was logged."""
    if data.admissible is None:
        return
    distinct, here, following = data.rows
    others = f"another transition{' or the model' * (data.model is not None)}"
    names = data.action_names or range(data.num_actions)

    def seen(row: int) -> str:
        return f"{'state' if data.discrete else 'observation'} {distinct[row].tolist()}"

    for name, rows, read in (("action_masks", here, np.ones(len(data), np.bool_)),
                             ("next_action_masks", following, ~data.terminations)):
        if (masks := getattr(data, name)) is None:
            continue
        if (empty := read & ~masks.any(1)).any():
            raise DatasetError(f"{name} of transition {np.argmax(empty)} leave no action in "
                               f"{seen(rows[np.argmax(empty)])}.")
        if (differ := read & (masks != data.admissible[rows]).any(1)).any():
            raise DatasetError(f"the masks contradict each other: {name} of transition {np.argmax(differ)} are not "
                               f"those that {others} gives for {seen(rows[np.argmax(differ)])}.")
    if (wrong := ~data.admissible[here, data.actions]).any():
        n = np.argmax(wrong)
        raise DatasetError(f"transition {n} takes action {names[data.actions[n]]} in {seen(here[n])}, which its mask "
                           "or the model says does not exist there.")


def _validate_range(data: OfflineDataset, name: str, number: str) -> None:
    if number not in data.metadata:
        raise DatasetError(f"the metadata lack {number}.")
    size = _integer(data.metadata[number], f"{number} in the metadata", 1, INTEGERS.max)
    values = getattr(data, name)
    if values.min() < 0 or values.max() >= size:
        raise DatasetError(f"{name} go from {values.min()} to {values.max()}, outside 0 … {size - 1}.")
