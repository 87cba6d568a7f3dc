"""The engine's generator: members split into cohorts, cohorts over the cores, updates into blocks."""

import multiprocessing
from collections.abc import Callable, Iterator
from operator import itemgetter

import torch
from torch import Tensor

from cql.algorithm import Settings, State, cosine_decay
from cql.engine import workers
from cql.engine.batches import full_batch_rows
from cql.engine.cohort import Cohort, block_length
from cql.losses import Objective
from cql.network import PopulationMLP
from cql.sampling import Transitions

COHORT_BYTES = 2**23  # of parameters and activations that one CPU core works on at a time: about its share of the cache
COHORTS = 8  # where there are members enough, cohorts are about so many, to keep as many cores busy
FEWEST = 4  # members of a cohort, where they fit: fewer take nearly as long
ONE_THREAD = 2**24  # multiply-adds of a cohort's largest product below which a second thread costs more than it gives


def serves(algorithm: str, objective: Objective) -> bool:
    """Whether the engine knows this objective; ``cql.algorithm`` trains every other."""
    return algorithm == "bc" or (objective.is_cql_h and objective.td_loss in ("mse", "half_mse"))


def updates(network: PopulationMLP, transitions: Transitions, state: State, data_index: Tensor, seeds: Tensor,
            algorithm: str, objective: Objective, settings: Settings, start: int,
            stop: int) -> Iterator[tuple[int, State, tuple[Tensor, ...]]]:
    """Generator of the updates of ``cql.algorithm.updates``, to rounding; what it yields may be a copy of ``state``.

    On a CPU members are trained in cohorts small enough for a core's cache, several at once, each on one core; on a
    GPU as one cohort. How many cores there are changes no result, unless there is one cohort.

    Yields:
        After every block of updates, and at the multiples of ``settings.yield_every``: the number of updates done,
        the state, and the sums of the loss terms over the updates since the last time.

    Raises:
        RunError: a worker process was ended from outside.
    """
    device, threads, before = data_index.device, settings.threads, torch.get_num_threads()
    rows = full_batch_rows(transitions) if settings.batch_size == "full" else settings.batch_size
    size = cohort_size(network, rows, len(data_index)) if device.type == "cpu" else len(data_index)
    parts = [slice(first, first + size) for first in range(0, len(data_index), size)]
    count = min(threads, len(parts))
    forked = count > 1 and workers.FORKS and not multiprocessing.current_process().daemon  # daemons may not fork
    allocate = workers.shared if forked else torch.Tensor.contiguous
    state = _mapped(state, allocate)
    terms = [allocate(torch.zeros(len(data_index), device=device)) for _ in range(3 if algorithm == "cql" else 1)]
    rates = torch.tensor([cosine_decay(step, settings.steps) for step in range(settings.steps)], dtype=torch.float64)
    rates = (settings.learning_rate * rates).float().to(device)
    cohorts = [Cohort(network, transitions, _mapped(state, itemgetter(part)), data_index[part], seeds[part], algorithm,
                      objective, settings, [term[part] for term in terms], rates) for part in parts]
    run = (workers.Processes if forked else workers.Threads)(cohorts, count).block_of_updates
    length = min(cohort.length for cohort in cohorts)
    try:
        torch.set_num_threads(_threads_per_cohort(network, rows, size, len(cohorts), threads))
        for begin, end in _blocks(start, stop, length, (settings.target_interval, *settings.yield_every)):
            run(begin, end)
            yield end, state, tuple(terms)
    finally:
        torch.set_num_threads(before)


def _blocks(start: int, stop: int, length: int, breaks: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Start and end (exclusive) of every block of updates: none is longer than ``length`` or goes across a multiple
    of one of ``breaks``."""
    while start < stop:
        end = min(start + length, stop, *((start // every + 1) * every for every in breaks))
        yield start, end
        start = end


def _mapped(state: State, function: Callable[[Tensor], Tensor]) -> State:
    """The state with the function applied to every tensor of it."""
    return State(*(list(map(function, field)) if isinstance(field, list) else function(field) for field in state))


def cohort_size(network: PopulationMLP, rows: int, members: int) -> int:
    """Members per cohort on a CPU."""
    # parameters, their gradient and two moments; activations and their gradients
    bytes_per_member = 4 * (4 * network.parameters_per_member + 2 * rows * sum(o for _, o in network.sizes))
    fitting = max(1, COHORT_BYTES // bytes_per_member)
    cohorts = -(-members // (fitting * COHORTS)) * COHORTS
    return max(-(-members // cohorts), min(FEWEST, fitting, members))


def _threads_per_cohort(network: PopulationMLP, rows: int, size: int, cohorts: int, threads: int) -> int:
    """PyTorch's threads within a cohort."""
    largest = size * rows * max((i * o for i, o in network.sizes[network.discrete :]), default=1)
    return threads if cohorts == 1 and largest >= ONE_THREAD else 1


def memory_needed(network: PopulationMLP, transitions: int, full_batch: bool, rows: int, members: int,
                  steps: int, on_cuda: bool) -> int:
    """Bytes that training so many members takes, about: parameters, target, gradient and moments, activations and
    their gradients, what a block keeps; and the schedule.

    Args:
        transitions: in a data set. rows: observations per member that the network reads in one update.
    """
    q_values, states = rows * network.outputs, network.inputs if network.discrete and not full_batch else 0
    if on_cuda:  # Q, targets, weights, what the loss terms are made from; of a minibatch also int64 numbers of states
        length = block_length(members * q_values, members * states, torch.device("cuda"))
        kept = length * (8 * q_values + 10 * states)
    else:
        kept = 3 * q_values * block_length(q_values, 0, torch.device("cpu"))
    distinct = 12 * transitions if full_batch else 0  # a member's pairs of transitions, at most
    per_member = 6 * network.parameters_per_member + 2 * rows * sum(o for _, o in network.sizes) + kept + distinct
    return 4 * (members * per_member + 8 * steps)
