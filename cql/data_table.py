"""A table of logged decisions, one row each, as a data set: CSV or Parquet, by the names of its columns.

pyarrow reads both kinds (``pip install -e '.[data]'``). Rows are counted from 1, without the header.
"""

from pathlib import Path

import numpy as np

from cql.dataset import OfflineDataset
from cql.errors import ConfigError, DatasetError, first_line

try:
    import pyarrow
    from pyarrow import csv, parquet, types
except ModuleNotFoundError:  # the extra ``data`` is not installed: said when a table is read
    pyarrow = None

MOST_ACTIONS = 1000  # a column with more different values is no choice among a few actions
LARGEST_LABEL = 2**53  # beyond it, different whole numbers become one in float64
EVENLY = 1e-6  # by how much of itself a distance between two steps may differ from the others


def dataset_of_table(path, episode: str, step: str, action: str, reward: str, features=(), state: str | None = None,
                     terminal: str | None = None, horizon: int | None = None, irregular=False) -> OfflineDataset:
    """The data set in a table whose rows may stand in any order.

    The next observation of a row is the observation of its episode's next row. An episode ends with its last row, by
    itself. Where a column ``terminal`` says that it did not, it was cut off: its last row only gives the observation
    that follows the row before, since what follows the last row is not known.

    Args:
        episode, step, action, reward, terminal: names of columns. features: names of columns of numbers; without them
            ``state`` names a column of labels.
        horizon: steps after which an episode is cut off, kept in the metadata.
        irregular: whether the steps of an episode may be unevenly far apart; otherwise a gap is refused.

    Raises ConfigError for columns that do not go together, and DatasetError for a table that cannot be read or used.
    """
    if bool(features) == bool(state):
        raise ConfigError("give --features, the columns of numbers that a policy sees, or --state, one of labels.")
    seen = [*features] if features else [state]
    if len(set(seen)) < len(seen):
        raise ConfigError("--features names a column twice.")
    if later := [name for name in seen if name in (action, reward, terminal)]:
        raise ConfigError(f"{later[0]} is known only once the action is chosen: a policy cannot see it.")
    if episode in seen:
        raise ConfigError(f"{episode} names the episode: that is no feature or state, since every new one has another.")
    table = _read(path, list(dict.fromkeys(filter(None, (episode, step, action, reward, *seen, terminal)))))
    episodes, _ = _labels(table, episode)
    times = types.is_temporal(table[step].type)
    steps = _column(table, step).to_numpy(False).astype(np.int64) if times else _numbers(table, step)
    order = np.lexsort([steps, episodes])  # [R], rows by episode and step
    episodes = episodes[order]
    goes_on = np.append(episodes[1:] == episodes[:-1], False)  # the next row is of the same episode
    _refuse_gaps(step, steps[order], order, goes_on, irregular)

    ended, kept = ~goes_on, np.ones(len(order), bool)
    if terminal is not None:
        flags = _numbers(table, terminal)
        if (wrong := ~np.isin(flags, (0, 1))).any():
            raise DatasetError(f"{terminal} must be true or false (0 or 1), not {flags[wrong][0]:g} as in row "
                               f"{wrong.argmax() + 1}.")
        ended = flags[order] == 1
        if (early := ended & goes_on).any():
            raise DatasetError(f"row {order[early].min() + 1} is not its episode's last, but {terminal} says so.")
        if not (kept := goes_on | ended).any():
            raise DatasetError(f"{terminal} says of no episode that it ended, and all have a single row.")
    following = np.arange(len(order)) + goes_on  # the row itself where the episode ended: nothing reads it there
    cut = goes_on & ~np.append(kept[1:], True)  # the next row only gives the observation that follows

    actions, names = _labels(table, action, order[kept])
    if len(names) == 1:
        raise DatasetError(f"{action} is {names[0]} in every row: there is no choice to learn.")
    if len(names) > MOST_ACTIONS:
        raise DatasetError(f"{action} has {len(names):,} different values: actions are few; sort them into levels.")
    if not (rewards := _numbers(table, reward, order[kept])).any():
        raise DatasetError(f"every {reward} is 0: no policy is better than another.")
    metadata: dict = {"action_names": names, "num_actions": len(names), "source": Path(path).name}
    metadata |= {} if horizon is None else {"horizon": horizon}
    if features:
        metadata["feature_names"] = seen
        observations = np.stack([_numbers(table, name) for name in seen], axis=1)[order]
    else:
        observations, labels = _labels(table, state, order)
        metadata |= {"state_names": labels, "num_states": len(labels)}
    return OfflineDataset.from_arrays(observations[kept], actions, rewards, observations[following[kept]], ended[kept],
                                      cut[kept], episodes[kept], metadata=metadata)


def _read(path, names: list[str]):
    """The named columns as a pyarrow Table."""
    if pyarrow is None:
        raise DatasetError("tables are read by pyarrow: pip install -e '.[data]'.")
    kinds = {".csv", ".parquet"} & {*Path(path).suffixes}  # of data.csv.gz too
    if not kinds:
        raise DatasetError(f"{path} is neither .csv nor .parquet.")
    try:
        present = (csv.open_csv(path).schema if ".csv" in kinds else parquet.read_schema(path)).names
        for name in names:
            if present.count(name) != 1:
                raise DatasetError(f"{path} has {'no' if name not in present else 'more than one'} column {name}: its "
                                   f"columns are {', '.join(present)}.")
        table = parquet.read_table(path, columns=names) if ".parquet" in kinds else csv.read_csv(
            path, convert_options=csv.ConvertOptions(include_columns=names, strings_can_be_null=True))
    except FileNotFoundError:
        raise DatasetError(f"there is no table at {path}.") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as a table ({first_line(error)}).") from None
    if not len(table):
        raise DatasetError(f"{path} has no rows.")
    return table


def _column(table, name: str, rows=None):
    """The column as one pyarrow array, of these rows only where given. Raises DatasetError if a value is missing."""
    column = table[name].combine_chunks()
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    rows = np.arange(len(column)) if rows is None else rows
    missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)[rows]
    if missing.any():
        raise DatasetError(f"{name} is missing in row {rows[missing].min() + 1}, the first of {missing.sum():,}: leave "
                           "such rows out or fill them in, with a column that says so.")
    return column.take(pyarrow.array(rows))


def _labels(table, name: str, rows=None) -> tuple[np.ndarray, list[str]]:
    """The number of each row's label among the different ones in order, and these as text."""
    column = _column(table, name, rows)
    if types.is_binary(column.type) or types.is_large_binary(column.type):
        raise DatasetError(f"{name} holds text that is not UTF-8: save the table in UTF-8.")
    if types.is_floating(column.type) and np.abs(column.to_numpy(zero_copy_only=False)).max(initial=0) > LARGEST_LABEL:
        raise DatasetError(f"{name} holds numbers too large to be told apart: put a letter before each, as in p17.")
    column = column.dictionary_encode()
    order = column.dictionary.to_numpy(zero_copy_only=False).argsort()
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    labels = (column.dictionary[n].as_py() for n in order)
    return number[column.indices.to_numpy()], [
        str(label).removesuffix(".0") if isinstance(label, float) else str(label) for label in labels]


def _numbers(table, name: str, rows=None) -> np.ndarray:
    """The column as float64, finite."""
    column = _column(table, name, rows)
    row_of = np.arange(len(column)) if rows is None else rows
    if types.is_string(column.type) or types.is_large_string(column.type):
        values = np.empty(len(column))
        for n, text in enumerate(column.to_pylist()):
            try:
                values[n] = float(text)
            except ValueError:
                raise DatasetError(f"{name} is no number in row {row_of[n] + 1}: {text[:40]!r}.") from None
    elif types.is_boolean(column.type) or types.is_primitive(column.type) and not types.is_temporal(column.type):
        values = column.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
    else:
        raise DatasetError(f"{name} holds {column.type}, not numbers.")
    for wrong, what in ((~np.isfinite(values), "not finite"),
                        (np.abs(values) > np.finfo(np.float32).max, "larger than float32 can hold")):
        if wrong.any():
            raise DatasetError(f"{name} is {what} in row {row_of[wrong].min() + 1}.")
    return values


def _refuse_gaps(name: str, steps, order, goes_on, irregular: bool) -> None:
    """Raises DatasetError for two rows of an episode at one step or, unless irregular, a step longer than others."""
    distance = np.diff(steps, append=steps[-1])  # to the next row
    least = distance[goes_on].min(initial=distance.max())
    gap = (not irregular) & (distance > least * (1 + EVENLY))
    apart = (f"of an episode are farther apart in {name} than others: a decision is missing between them; if decisions "
             "are not evenly spaced in time, give --irregular.")
    for wrong, what in (distance == 0, f"have the same episode and the same {name}."), (gap, apart):
        if (places := goes_on & wrong).any():
            n = places.argmax()
            raise DatasetError(f"rows {order[n] + 1} and {order[n + 1] + 1} {what}")
