"""Whether policies are better than what was logged: one table for runs on given data, ``judging.json``.

Every worth is from the best source there is: the exact model, else rollouts, else estimates from the logged episodes
alone, by networks (``fqe``) where observations are vectors, else by state (``ope``). Exact values, rollouts and
estimates by state are returns of an episode; FQE with networks gives discounted ones, of what was logged too.

- An interval (95 %, Student's) covers the logged episodes or their resamples, the rollouts, and, from FEWEST networks
  of an alpha on, training; with fewer it is about these very networks. Differences to BC are paired by training seed
  and by rollout or resample, estimated differences to what was logged by resample. Exact values have no interval.
- A verdict is "better" where the whole interval of the difference lies above 0, "not better" where no part of it does,
  else "cannot tell". Each row stands by itself: the best of several looks better than it is.
- **No estimate** is given where one cannot be believed: ``doubt`` lists the reasons.

Axes: N policy, S training seed, K rollout or resample (of estimates, column 0 is the episodes as they are), E episode.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cql.analysis import convergence, evaluation, fqe, ope
from cql.analysis.results import write_results
from cql.analysis.statistics import student_quantile, units_needed
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.exact import ROUNDING
from cql.members import all_members
from cql.policy import Policy
from cql.run_folder import RunFolder
from cql.text import aligned, counted, interval, number
from cql.world import World

FILE = "judging.json"
LEVEL = 0.95
FEWEST = int(units_needed(0.5, LEVEL))  # independent values that the interval of a mean takes
MOST_LOST = 0.01  # share of clipped targets, of episodes with an OOD action, and of a return after the log is cut off
SOURCES = {"exact": "exact return of an episode", "rollouts": "return in rollouts",
           "networks": "discounted return, FQE with networks on held-out episodes",
           "states": "return of an episode, FQE by state"}


def write(run: RunFolder, episodes: int = evaluation.DEFAULT_EPISODES, seed: int = evaluation.DEFAULT_SEED) -> str:
    """Writes evaluation.json, results.csv and, of given data, judging.json; returns the table to print.

    Raises: as ``evaluation.evaluate``.
    """
    evaluated = evaluation.evaluate(run, episodes, seed)
    judged = None if run.config().dataset is None else judge(run, evaluated)
    run.write_json("evaluation.json", evaluated)
    if judged is not None:
        run.write_json(FILE, judged)
    write_results(run)
    return evaluation.table(evaluated) if judged is None else table(judged)


def judge(run: RunFolder, evaluated: dict) -> dict:
    """The content of ``judging.json``, from the evaluation of a run on given data."""
    config = run.config()
    dataset, = run.datasets(config)
    world, entries, broken = World.of(dataset), evaluated["members"], dataset.breaks_in_words()
    logged = None if broken else dataset.episode_returns()
    if world.mdp is not None:
        values = [[(entry["exact"] or {}).get("return", math.nan)] for entry in entries]
        table = Worths("exact", np.array(values), logged, [e["exact_unsupported_action_rate"] for e in entries])
    elif world.environment is not None:
        nothing = {"returns": [math.nan] * evaluated["rollout_episodes"]}
        values = [(entry["rollout"] or nothing)["returns"] for entry in entries]
        table = Worths("rollouts", np.array(values), logged,
                       [(entry["rollout"] or {}).get("unsupported_action_rate") for entry in entries])
    else:
        table = estimated(config, world, dataset, policies_of(run, dataset, evaluated))
    groups: dict[tuple, list[int]] = {}
    for n, entry in enumerate(entries):
        groups.setdefault((entry["algorithm"], entry["alpha"]), []).append(n)
    cloned = groups.get(("bc", None))
    rows: list[dict] = [{"policy": "logged", "alpha": None, "value": table.of_logged()}]
    for (algorithm, alpha), members in sorted(groups.items(), key=lambda group: (group[0][0], group[0][1] or 0.0)):
        to_logged = table.cell(members, to_logged=True)
        to_bc = table.cell(members, cloned) if cloned and algorithm != "bc" else None
        shares = [share for n in members if (share := table.unsupported[n]) is not None]
        rows.append({"policy": algorithm, "alpha": alpha, "networks": len(members), "value": table.cell(members),
                     "minus_logged": to_logged, "than_logged": verdict(to_logged), "minus_bc": to_bc,
                     "than_bc": verdict(to_bc) if cloned and algorithm != "bc" else None,
                     "unsupported": float(np.mean(shares)) if shares else None, "why": table.why(members),
                     "notes": sorted({_note(entries[n]) for n in members} - {""})})
    return {"source": table.source, "gamma": config.gamma if table.source == "networks" else None,
            "bc": evaluated["bc"], "logged_episodes": len(dataset.episode_starts), "misfit": evaluated["misfit"],
            "rollout_episodes": evaluated["rollout_episodes"] if table.source == "rollouts" else None,
            "cut": broken or table.cut, "rows": rows, "logged_estimated": table.logged_estimated,
            "estimates": table.entries(entries) if table.estimates else None}


def _note(entry: dict) -> str:
    if entry["diverged"]:
        return f"DIVERGED ({entry['diverged']['reason']})"
    return convergence.words(entry["convergence"])


def policies_of(run: RunFolder, dataset: OfflineDataset, evaluated: dict) -> list[Policy | None]:
    """The policies of a run on one data set, by member; None where one has no policy."""
    gone = [(entry["diverged"] or {}).get("reason") == "not finite" for entry in evaluated["members"]]
    return [None if lost else evaluation.load_policy(run, member, dataset)
            for lost, member in zip(gone, all_members(run.config()))]


def estimates_of(run: RunFolder) -> list[dict]:
    """``Worths.entries`` of a run on given data: those of judging.json, else made now."""
    if (run.path / FILE).exists() and (found := run.read_json(FILE)["estimates"]) is not None:
        return found
    config, evaluated = run.config(), run.read_json("evaluation.json")
    dataset, = run.datasets(config)
    policies = policies_of(run, dataset, evaluated)
    return estimated(config, World.of(dataset), dataset, policies).entries(evaluated["members"])


def verdict(difference: list | None) -> str:
    """The word for a difference [mean, low, high]."""
    if difference is None or difference[1] is None:
        return "cannot tell"
    return "better" if difference[1] > 0 else "not better" if difference[2] <= 0 else "cannot tell"


@dataclass(frozen=True, eq=False)
class Worths:
    """What N policies are worth.

    Attributes:
        source: one of SOURCES. values: ``[N, K]``, NaN without a policy.
        logged: the return of every logged episode ``[E]``, of estimates its mean over each resample ``[K]``; None where
            episodes are broken.
        unsupported: of each policy, the share of its steps that take an unsupported action; of estimates the share of
            the logged observations where it would, or the probability that an episode comes to an OOD action; None
            where it is not known.
        withheld: of estimates, why there is none for a policy, or "": one of the sentences of ``doubt``.
        cut: why no difference to what was logged is given, or None. logged_estimated: whether what was logged is an
            estimate too, beyond the steps where episodes were cut off.
    """

    source: str
    values: np.ndarray
    logged: np.ndarray | None
    unsupported: Sequence[float | None] = ()
    withheld: list[str] | None = None
    cut: str | None = None
    logged_estimated: bool = False

    @property
    def estimates(self) -> bool:
        """Whether they are estimated from the log alone."""
        return self.withheld is not None

    def cell(self, members: list[int], others: list[int] | None = None, to_logged: bool = False) -> list | None:
        """[mean, low, high] of the members' worth, or less that of the others or of what was logged; None: unknown."""
        if self.why(members + (others or [])) or (to_logged and (self.logged is None or self.cut)):
            return None
        values = self.values[members] - (0.0 if others is None else self.values[others])  # [S, K]
        if others is not None:  # the sums of policies that act alike differ by rounding
            values[np.abs(values) <= ROUNDING * (1 + np.abs(self.values[members]))] = 0.0
        values = values[~np.isnan(values).any(1)]
        if not len(values):
            return None
        variances, freedom = [0.0], [sys.maxsize]
        point, spread = values.mean(), values.mean(0)
        if self.estimates:
            values = values - (self.logged if to_logged else 0.0)
            point, spread = values[:, 0].mean(), values.mean(0)[1:]
            variances.append(spread.var(ddof=1))
            freedom.append(len(spread) - 1)
        elif to_logged:
            point = point - self.logged.mean()
            variances.append(_error(self.logged))
            freedom.append(len(self.logged) - 1)
        if self.source == "rollouts":
            variances.append(_error(spread))
            freedom.append(len(spread) - 1)
        if len(values) >= FEWEST:
            variances.append(_error(values[:, 0] if self.estimates else values.mean(1)))
            freedom.append(len(values) - 1)
        return _interval(float(point), sum(variances), min(freedom))

    def of_logged(self) -> list | None:
        """[mean, low, high] of what was logged."""
        if self.logged is None:
            return None
        if self.estimates:
            return _interval(float(self.logged[0]), self.logged[1:].var(ddof=1), len(self.logged) - 2)
        return _interval(float(self.logged.mean()), _error(self.logged), len(self.logged) - 1)

    def why(self, members: list[int]) -> list[str]:
        """Why there is no estimate of these policies."""
        return sorted({self.withheld[n] for n in members} - {""}) if self.withheld else []

    def entries(self, members: list[dict]) -> list[dict]:
        """Of every member: its estimate [mean, low, high], or None and why there is none."""
        return [{**{name: entry[name] for name in ("algorithm", "alpha", "seed")}, "value": self.cell([n]),
                 "withheld": self.withheld[n], "unsupported": self.unsupported[n]} for n, entry in enumerate(members)]


def _error(values: np.ndarray) -> float:
    """The variance of their mean; NaN for too few."""
    return float(values.var(ddof=1)) / len(values) if len(values) >= FEWEST else math.nan


def _interval(mean: float, variance: float, freedom: int) -> list:
    if math.isnan(variance):
        return [mean, None, None]
    half = student_quantile((1 + LEVEL) / 2, freedom) * math.sqrt(variance) if variance else 0.0
    return [mean, mean - half, mean + half]


def estimated(config: Config, world: World, dataset: OfflineDataset, policies: list[Policy | None]) -> Worths:
    """The estimates of policies: by networks where no state numbers stand behind vectors, else by state."""
    by_state = dataset.discrete or world.inputs is not None
    known = [n for n, policy in enumerate(policies) if policy is not None]
    values = np.full((len(policies), fqe.RESAMPLES + 1), np.nan)
    unsupported: list[float | None] = [None] * len(policies)
    withheld = ["no policy"] * len(policies)
    source, broken = "states" if by_state else "networks", dataset.breaks_in_words()
    few = f"{counted(len(dataset.episode_starts), 'episode')}, fewer than {2 * FEWEST}"
    if broken or len(dataset.episode_starts) < 2 * FEWEST:
        why = "broken episodes" if broken else few
        return Worths(source, values, None, unsupported, [why] * len(policies), broken)
    horizon = world.horizon or dataset.metadata.get("horizon")
    used = [policies[n] for n in known]
    lengths = np.diff(dataset.episode_starts, append=len(dataset))
    ended = dataset.terminations[dataset.episode_starts + lengths - 1]
    logged_estimated = False
    if by_state:
        logged, rows = _by_state(world, dataset, used, horizon or int(lengths.max()))
        lost = float((~ended & (lengths < (horizon or lengths.max()))).mean())
    else:
        lost = float(np.where(ended, 0.0, config.gamma ** lengths.astype(np.float64)).mean())
        logged, rows, logged_estimated = _by_networks(world, dataset, used, config.gamma, horizon, lost > MOST_LOST)
    for n, (value, share, doubt) in zip(known, rows):
        values[n], unsupported[n], withheld[n] = value, share, doubt
    cut = None if lost <= MOST_LOST or logged_estimated else (
        "Logged episodes are cut off before they end: the estimates go on and what was logged does not, so that no "
        "difference between them is given.")
    return Worths(source, values, logged, unsupported, withheld, cut, logged_estimated)


def _by_networks(world, dataset, policies, gamma, horizon, cut_off):
    found = fqe.fitted_values(dataset, policies, gamma, horizon, with_logged=cut_off)
    supports = evaluation.supports_of(world, [dataset], [dataset] * len(policies), policies)
    rows, masks = [], dataset.masks_of(dataset.observations)
    for n, (policy, support) in enumerate(zip(policies, supports)):
        actions = evaluation.in_parts(policy.act, dataset.observations, masks)
        flags = support.unsupported(dataset.observations, actions, masks)
        rows.append((found.values[n], None if flags is None else float(flags.mean()),
                     doubt(found.values[n], float(found.clipped[n]), float(found.earlier[n, 0]))))
    believed = cut_off and not doubt(found.values[-1], float(found.clipped[-1]), float(found.earlier[-1, 0]))
    return found.values[-1] if believed else found.logged, rows, believed


def doubt(values: np.ndarray, clipped: float, earlier: float) -> str:
    """Why an estimate by networks is not believed, or "".

    Args:
        values: ``[K]``, with the episodes as they are and with each resample. clipped: share of clipped targets.
        earlier: the estimate after three quarters of the updates.
    """
    low, high = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if clipped > MOST_LOST:
        return "more than 1 % of the targets lie outside the values that the rewards allow"
    if not low <= values[0] <= high:
        return "the estimate lies outside the percentiles of its resamples"
    if abs(values[0] - earlier) > (high - low) / 2:
        return "the fit still moved by more than its interval"
    return ""


def _by_state(world, dataset, policies, horizon):
    log, observations = ope.episode_log(dataset, world)
    if max(log.num_states, len(log.starts)) * horizon > ope.MAX_WORK:
        return None, [(math.nan, None, "too many states and steps for estimates by state")] * len(policies)
    tables = (np.stack([policy.act(observations) for policy in policies])[..., None]
              == np.arange(log.num_actions)).astype(np.float64)
    size = len(log.starts)
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), fqe.RESAMPLES)
    counts = np.concatenate([np.ones((1, size)), drawn]).T.copy()  # [E, K]
    values, _ = ope.fitted_q(log, ope.signals(log)["return"], tables, counts, horizon)
    ood = ope.fitted_q(log, ope.Signal(np.zeros(len(log.states)), ~log.terminations, ood_worth=1.0), tables,
                       counts[:, :1], horizon)[0][:, 0]
    logged = dataset.episode_returns() @ counts / size
    return logged, [(value, float(share), "" if share <= MOST_LOST else
                     "more than 1 % of its episodes come to an action never logged there")
                    for value, share in zip(values, ood)]


def table(judged: dict) -> str:
    """The table for the terminal, with what its numbers are below it."""
    rows = cells(judged, words)
    return "\n".join([heading(judged), *aligned(rows, left=range(3, len(rows[0]))), *notes(judged)])


def cells(judged: dict, words: Callable) -> list[list]:
    """The heads and a row of every policy, without columns that say nothing; ``words(estimate, form)`` is a cell."""
    rows = [["policy", "alpha", "networks", "return [95 %]", "minus logged", "than logged", "minus BC", "than BC",
             "unsupported", ""]]
    for row in judged["rows"]:
        if row["policy"] == "logged":
            rows.append(["logged", "", "", words(row["value"]), *[""] * 6])
            continue
        to_bc = [words(row["minus_bc"], "+.2f"), row["than_bc"]] if row["than_bc"] else ["", ""]
        rows.append([row["policy"].upper(), number(row["alpha"], "g"), str(row["networks"]),
                     "no estimate" if row["why"] else words(row["value"]), words(row["minus_logged"], "+.2f"),
                     row["than_logged"], *to_bc, number(row["unsupported"], ".3f"), "; ".join(row["notes"])])
    return without_unknown(rows)


def without_unknown(rows: list[list]) -> list[list]:
    """The rows without columns that say nothing, the heads standing in the first."""
    kept = [n for n in range(len(rows[0])) if any(row[n] not in ("", "–") for row in rows[1:])]
    return [[row[n] for n in kept] for row in rows]


def words(estimate: list | None, form: str = ".2f") -> str:
    """``interval``, of an exact value without an interval."""
    return interval(estimate and ([estimate[0], None, None] if estimate[1] == estimate[2] else estimate), form)


def heading(judged: dict) -> str:
    """What the numbers are, in a line."""
    gamma = f" at gamma {judged['gamma']:g}" if judged["gamma"] is not None else ""
    many = f" ({judged['rollout_episodes']} episodes of each network)" if judged["rollout_episodes"] else ""
    return f"Is it better than what was logged? ({SOURCES[judged['source']]}{gamma}{many})"


def notes(judged: dict) -> list[str]:
    """What the table's numbers mean and why some are missing, a sentence a line."""
    networks = max((row.get("networks", 0) for row in judged["rows"]), default=0)
    estimates = judged["estimates"] is not None
    over = [counted(judged["logged_episodes"], "logged episode"), *["rollouts"] * (judged["source"] == "rollouts"),
            *["training seeds"] * (networks >= FEWEST)]
    lines = []
    if any(row["value"] and row["value"][1] is not None for row in judged["rows"]):
        lines.append(f"Intervals cover {' and '.join([', '.join(over[:-1]), over[-1]] if len(over) > 1 else over)}"
                     + ("." if networks >= FEWEST else f", not training: {FEWEST} seeds would (--num-seeds)."))
    lines += [f"No estimate for {', '.join(names)}: {why}." for why, names in _withheld(judged["rows"]).items()]
    unsupported = {"networks": "share of the logged observations where BC gives the action less than 0.3 of its most "
                               "likely action's probability",
                   "states": "probability that an episode comes to an action never logged there"}.get(judged["source"])
    shown = any(row.get("unsupported") is not None for row in judged["rows"])
    lines += [f"Unsupported: {unsupported}."] if unsupported and shown else []
    lines += ["These are estimates from the log alone: nothing was tried out."] if estimates else []
    lines += ["Logged episodes are cut off before they end: the row logged is an estimate too, of going on as logged."
              ] if judged["logged_estimated"] else []
    lines += [judged["cut"]] if judged["cut"] else []
    lines += [f"BC clones {judged['bc'].removeprefix('BC of ')}."] if judged["bc"] != "BC" else []
    return lines + ([f"note: {judged['misfit']}"] if judged["misfit"] else [])


def _withheld(rows: list[dict]) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for row in rows:
        for why in row.get("why", ()):
            named.setdefault(why, []).append("BC" if row["alpha"] is None else f"alpha {row['alpha']:g}")
    return named
