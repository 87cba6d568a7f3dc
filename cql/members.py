"""Who is trained: the members of a run, their names and their slices."""

from dataclasses import dataclass

from cql.config import Config


@dataclass(frozen=True)
class Member:
    """One agent: an (algorithm, alpha, training seed, data seed). BC has no alpha."""

    algorithm: str  # "cql" | "bc"
    alpha: float | None
    seed: int
    data_seed: int

    @property
    def name(self) -> str:
        """``cql-a6-s42-d42`` or ``bc-s42-d42``: names its files and its rows."""
        alpha = "" if self.alpha is None else f"-a{_shortest(self.alpha)}"
        return f"{self.algorithm}{alpha}-s{self.seed}-d{self.data_seed}"

    @property
    def group(self) -> str:
        """``alpha=6`` or ``bc``: names the members that differ in their seeds only."""
        return self.algorithm if self.alpha is None else f"alpha={_shortest(self.alpha)}"


def members(config: Config, algorithm: str) -> list[Member]:
    """All members of one algorithm, ordered by data seed, training seed, alpha; none if it has no updates to do."""
    if (config.steps if algorithm == "cql" else config.bc_steps) == 0:
        return []
    alphas = config.alpha if algorithm == "cql" else (None,)
    return [Member(algorithm, alpha, seed, data_seed)
            for data_seed in config.data_seeds for seed in config.seeds for alpha in alphas]


def all_members(config: Config) -> list[Member]:
    return members(config, "bc") + members(config, "cql")


def slices(config: Config) -> list[list[Member]]:
    """The members in the order and groups in which they are trained; a slice holds one algorithm."""
    size = slice_size(config)
    return [group[start : start + size] for group in (members(config, "bc"), members(config, "cql"))
            for start in range(0, len(group), size)]


def slice_size(config: Config) -> int:
    """Members of a slice, where there are so many: as asked for, or what the device is fastest with, about."""
    return config.slice_size or (1024 if config.on_cuda else 64)


def updates_of(config: Config, group: list[Member]) -> int:
    """Updates of each member of a slice."""
    return config.steps if group[0].algorithm == "cql" else config.bc_steps


def largest_slice(config: Config) -> int:
    """Members of the largest slice."""
    return min(slice_size(config), len(config.alpha) * config.num_seeds * config.num_datasets)


def _shortest(number: float) -> str:
    short = f"{number:g}"
    return short if float(short) == number else repr(number)
