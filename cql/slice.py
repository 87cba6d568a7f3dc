"""One slice of the population in training: what is logged and checkpointed together, tile by tile on all cores."""

import math
import multiprocessing

import torch
from torch import Tensor

from cql import learner, products, workers
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.diagnostics import largest_rewards, value_bound
from cql.networks import Layer, PopulationMLP
from cql.policy import Policy
from cql.population import Member, largest_slice
from cql.runs import RunError
from cql.sampling import Transitions
from cql.tile import BLOCK, BLOCK_VALUES, Tile, input_rows, loss_terms

TILE_BYTES = 2**23  # of parameters and activations that one CPU core works on at a time: about its share of the cache
TILES = 8  # so many tiles, or about a multiple of it, has a slice that has the members, to keep as many cores equally busy
ONE_THREAD = 2**24  # multiply-adds of a tile's largest product below which a second CPU thread costs more than it gives


class Slice:
    """The members that are logged and checkpointed together, all of one algorithm.

    On a CPU they are trained in tiles small enough for a core's cache, several tiles at once, each on one core; on a GPU as
    one tile. How many cores there are changes no result, unless there is one tile.

    Args:
        threads: CPU cores to use.

    Attributes:
        draws: ``[M]`` the data draw of each member.
        steps: updates to do. schedule: ``[steps]`` learning rates.
        threads_per_tile: what PyTorch is to be set to while it trains.
    """

    def __init__(self, members: list[Member], config: Config, transitions: Transitions, datasets: list[OfflineDataset],
                 threads: int = 1):
        device = transitions.actions.device
        self.network = network_for(config, datasets[0])
        self.config, self.members, self.algorithm = config, members, members[0].algorithm
        self.steps = config.steps if self.algorithm == "cql" else config.bc_steps
        draws = {member.data_seed - config.data_seed for member in members}
        largest_of = {draw: largest_rewards(datasets[draw]) for draw in draws}
        self.rewards = [largest_of[member.data_seed - config.data_seed] for member in members]
        self.schedule = cosine_schedule(config.lr, self.steps).to(device)
        rows = input_rows(config, transitions)
        size = tile_size(self.network, rows, len(members)) if device.type == "cpu" else len(members)
        count = min(threads, -(-len(members) // size))
        forked = count > 1 and workers.FORKS and not multiprocessing.current_process().daemon  # daemons may not fork
        self.tiles = [Tile(members[n : n + size], config, transitions, self.network, self.schedule,
                           *[workers.shared] * forked) for n in range(0, len(members), size)]
        self._workers, self._threads, self._forked = None, count, forked
        self.sizes = [len(tile.draws) for tile in self.tiles]
        self.draws = torch.cat([tile.draws for tile in self.tiles])
        self.block, self.summed = min(tile.block for tile in self.tiles), 0
        largest = size * rows * max(i * o for i, o in self.network.sizes[self.network.discrete :] or [(1, 1)])
        alone = len(self.tiles) == 1
        self.threads_per_tile = threads if alone and largest >= ONE_THREAD else 1

    @property
    def state(self) -> learner.State:
        """Of all members, copied; ``updates`` is the same number for all."""
        parts = [tile.state for tile in self.tiles]
        joined = {name: self.network.joined([getattr(part, name) for part in parts]) for name in learner.BUFFERS}
        return learner.State(**joined, alpha=torch.cat([part.alpha for part in parts]), updates=parts[0].updates.clone())

    @property
    def alpha(self) -> list[float]:
        """Of each member now (0 for BC): the shortest decimals that mean its float32, as the user gives them."""
        return [float(str(alpha)) for alpha in torch.cat([tile.state.alpha for tile in self.tiles]).cpu().numpy()]

    @property
    def bounds(self) -> Tensor:
        """``value_bound`` of each member at its alpha now ``[M]``."""
        return torch.tensor([value_bound(rewards, alpha, self.config.gamma, self.config.td_loss)
                             for rewards, alpha in zip(self.rewards, self.alpha)], device=self.draws.device)

    @property
    def sums(self) -> list[Tensor]:
        """Loss terms since the last log entry, each ``[M]``."""
        return [torch.cat(parts) for parts in zip(*(tile.sums for tile in self.tiles))]

    def restore(self, state: dict[str, Tensor], sums: list) -> None:
        """Takes over a checkpoint. Raises RunError if its shapes are not these."""
        theirs_by_name = [state[name] for name in learner.State._fields]
        if len(sums) != len(self.sums) + 1:
            raise RunError("checkpoint.pt does not fit this run's config.")
        for mine, theirs in [*zip(self.state, theirs_by_name), *zip(self.sums, sums)]:
            if not isinstance(theirs, Tensor) or mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                raise RunError("checkpoint.pt does not fit this run's config.")
        for name in learner.BUFFERS:
            for tile, part in zip(self.tiles, self.network.split(state[name], self.sizes)):
                getattr(tile.state, name).copy_(part)
        for tile, alpha, *parts in zip(self.tiles, *(values.split(self.sizes) for values in (state["alpha"], *sums[:-1]))):
            tile.state.updates.copy_(state["updates"])
            tile.state.alpha.copy_(alpha)
            for mine, theirs in zip(tile.sums, parts):
                mine.copy_(theirs)
        self.summed = sums[-1]

    def policies(self) -> list[Policy]:
        layers = self.network.layers(self.state.parameters)
        return [Policy(self.network, [Layer(*(None if t is None else t[m : m + 1] for t in layer)) for layer in layers],
                       member.algorithm, member.alpha, member.seed, member.data_seed)
                for m, member in enumerate(self.members)]

    def loss_means(self) -> dict[str, list[float]]:
        """Mean of every loss term over the updates since the last call, ``name -> [M]``."""
        means = {name: (total.double() / max(self.summed, 1)).tolist()
                 for name, total in zip(loss_terms(self.algorithm), self.sums)}
        for tile in self.tiles:
            for total in tile.sums:
                total.zero_()
        self.summed = 0
        return means

    def block_of_updates(self, start: int, end: int) -> None:
        """Updates ``start … end − 1`` of every member, no target copy inside."""
        if self._workers is None:  # not before it is clear that there is something to do, and what from
            self._workers = (workers.Processes if self._forked else workers.Threads)(self.tiles, self._threads)
        with products.tf32(self.config.precision == "tf32"):
            self._workers.block_of_updates(start, end)
        self.summed += end - start


def network_for(config: Config, dataset: OfflineDataset) -> PopulationMLP:
    inputs = dataset.num_states if dataset.discrete else dataset.observations.shape[1]
    return PopulationMLP(inputs, dataset.num_actions, config.hidden, dataset.discrete)


def tile_size(network: PopulationMLP, rows: int, members: int) -> int:
    """Members per tile on a CPU."""
    # parameters, their gradient and two moments; activations and their gradients
    bytes_per_member = 4 * (4 * network.parameters_per_member + 2 * rows * sum(o for _, o in network.sizes))
    fitting = max(1, TILE_BYTES // bytes_per_member)
    tiles = -(-members // (fitting * TILES)) * TILES
    return -(-members // tiles)


def memory_needed(config: Config, dataset: OfflineDataset) -> int:
    """Bytes of the largest slice, about: parameters, target, gradient and moments, activations and their gradients, what a block
    keeps; and the schedule."""
    network = network_for(config, dataset)
    observed = min(len(dataset), dataset.num_states) if dataset.discrete else len(dataset)
    rows = observed if config.full_batch else config.batch_size
    kept = max(min(BLOCK * rows * network.outputs, BLOCK_VALUES), rows * network.outputs)
    distinct = 12 * len(dataset) if config.full_batch else 0  # a member's places in the data, at most: `FullBatch`
    per_member = 6 * network.parameters_per_member + 2 * rows * sum(o for _, o in network.sizes) + 3 * kept + distinct
    return 4 * (largest_slice(config) * per_member + 8 * max(config.steps, config.bc_steps))


def cosine_schedule(rate: float, steps: int) -> Tensor:
    """Learning rate of every update, from ``rate`` down to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983): ``[steps]``."""
    progress = torch.arange(steps, dtype=torch.float64) / max(steps, 1)
    return (rate * 0.5 * (1 + torch.cos(math.pi * progress))).float()
