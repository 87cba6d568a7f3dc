"""The device that a run is trained on: which one, how many members fit its memory, PyTorch's settings while it
trains."""

import os
from contextlib import contextmanager
from dataclasses import replace

import torch

from cql import engine
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.errors import RunError
from cql.members import largest_slice
from cql.network import PopulationMLP


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` is CUDA if present; ``cuda`` without a number is the device of this rank's number on its node.

    Raises:
        RunError: CUDA where there is none (or fewer devices than ranks), or an unknown name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RunError(f"--device {name} is no device: give auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise RunError(f"--device {name} is not supported: give auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA device(s) here.")
    return device


def network_for(config: Config, dataset: OfflineDataset) -> PopulationMLP:
    """The network of every member of a run."""
    inputs = dataset.num_states if dataset.discrete else dataset.observations.shape[1]
    return PopulationMLP(inputs, dataset.num_actions, config.hidden, dataset.discrete)


def with_slices_that_fit(config: Config, dataset: OfflineDataset, device: torch.device) -> Config:
    """The config with its slice size halved as often as it takes until the members of a slice fit the device's memory.

    Raises:
        RunError: not even one member does.
    """
    present = _memory(device)
    while (needed := memory_needed(config, dataset)) > present:
        if largest_slice(config) == 1:
            raise RunError(f"a member of this population needs {needed / 2**30:,.0f} GiB and there are "
                           f"{present / 2**30:,.0f}: {_cause(config, dataset, present)}.")
        config = replace(config, slice_size=max(1, largest_slice(config) // 2))
    return config


def memory_needed(config: Config, dataset: OfflineDataset) -> int:
    """Bytes that the largest slice takes, about."""
    return _memory_of(network_for(config, dataset), config, dataset)


def _cause(config: Config, dataset: OfflineDataset, present: int) -> str:
    """The numbers of states or actions, if they alone make a member too large; else the settings to lower."""
    network = network_for(config, dataset)
    if _memory_of(replace(network, outputs=1), config, dataset) <= present:
        return (f"the data set has {network.outputs:,} actions, its largest action number being "
                f"{dataset.actions.max():,}, and the network as many outputs")
    if dataset.discrete and _memory_of(replace(network, inputs=1), config, dataset) <= present:
        largest = max(dataset.observations.max(), dataset.next_observations.max())
        return (f"the data set has {network.inputs:,} states, its largest state number being {largest:,}, and the "
                "network as many inputs")
    return "give a smaller --hidden, --batch-size or --steps"


def _memory_of(network: PopulationMLP, config: Config, dataset: OfflineDataset) -> int:
    observed = min(len(dataset), dataset.num_states) if dataset.discrete else len(dataset)
    return engine.memory_needed(network, len(dataset), config.full_batch,
                                observed if config.full_batch else config.batch_size, largest_slice(config),
                                max(config.steps, config.bc_steps))


def _memory(device: torch.device) -> int:
    """Bytes of the card or of the machine, free or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def torch_settings(device: torch.device):
    """Within it PyTorch is set for training; yields the previous number of CPU threads, restored afterwards.

    One thread is set: small products on several wait longer for each other than they take. Denormals are flushed, and
    on CUDA algorithms are deterministic.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_flush_denormal(True)  # Adam's moments of rarely visited states decay into denormals, which are slow
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of the devices of a node each rank has its own
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
        if device.type == "cuda":  # a call imports half of torch.compile, a second or more
            torch.use_deterministic_algorithms(deterministic)
