"""The device that a run is trained on: which one, how many members fit its memory, PyTorch's settings while it
trains."""

import os
import sys
from contextlib import contextmanager
from dataclasses import replace

import torch

from cql import engine
from cql.config import Config
from cql.dataset import OfflineDataset
from cql.errors import RunError, first_line
from cql.members import largest_slice
from cql.network import PopulationMLP


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` is CUDA if present and usable; ``cuda`` without a number is the device of this rank's number on its
    node.
    Raises RunError for CUDA where there is none (or fewer devices than ranks) or none that can be used, or an unknown
    name.
    """
    if automatic := name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RunError(f"--device {name or repr(name)} is no device: give auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise RunError(f"--device {name} is not supported: give auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA device(s) here.")
    if why := _why_unusable(device):
        if not automatic:
            raise RunError(f"--device {name} cannot be used: {why}")
        print(f"note: training on the CPU: {name} cannot be used: {why}", file=sys.stderr)
        return torch.device("cpu")
    return device


def _why_unusable(device: torch.device) -> str | None:
    """What PyTorch says of a CUDA device that is too old for it, reserved by another process, or full."""
    if device.type == "cuda":
        try:
            torch.ones(1, device=device).add(1).item()
        except RuntimeError as error:
            return first_line(error)
    return None


def network_for(config: Config, dataset: OfflineDataset) -> PopulationMLP:
    """The network of every member of a run."""
    inputs = dataset.num_states if dataset.discrete else dataset.observations.shape[1]
    return PopulationMLP(inputs, dataset.num_actions, config.hidden, dataset.discrete)


def config_for(device: torch.device, config: Config, dataset: OfflineDataset) -> tuple[Config, str | None]:
    """The config with the device that ``auto`` chose, and with its slice size halved as often as it takes until the
    members of a slice fit the free memory; and one sentence where it was.
    Raises RunError if not even one member fits.
    """
    if config.device == "auto":  # each rank has a device of its own number
        config = replace(config, device=device.type)
    present, asked = _memory(device), largest_slice(config)
    while (needed := memory_needed(config, dataset)) > present:
        if largest_slice(config) == 1:
            inputs = "states" if dataset.discrete else "features"
            raise RunError(f"a member of this population needs {needed / 2**30:,.0f} GiB and there are "
                           f"{present / 2**30:,.0f}: the data have {network_for(config, dataset).inputs:,} {inputs} "
                           f"and {dataset.num_actions:,} actions, by their largest numbers; if that is right, give a "
                           "smaller --hidden, --batch-size or --steps.")
        config = replace(config, slice_size=max(1, largest_slice(config) // 2))
    if (size := largest_slice(config)) == asked:
        return config, None
    return config, f"slices of {size} members instead of {asked}, to fit the memory"


def memory_needed(config: Config, dataset: OfflineDataset) -> int:
    """Bytes that the largest slice takes, about."""
    observed = min(len(dataset), dataset.num_states) if dataset.discrete else len(dataset)
    return engine.memory_needed(network_for(config, dataset), len(dataset), config.full_batch,
                                observed if config.full_batch else config.batch_size, largest_slice(config),
                                max(config.steps, config.bc_steps), config.on_cuda)


def _memory(device: torch.device) -> int:
    """Bytes that are free on the card, or that the machine has, free or not."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def torch_settings(device: torch.device):
    """Within it PyTorch is set for training; yields the previous number of CPU threads, restored afterwards.

    One thread is set: small products on several wait longer for each other than they take. Denormals are flushed, and
    on CUDA algorithms are deterministic; memory that is about to be written is not filled first.
    Raises RunError if the device ran out of memory.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_flush_denormal(True)  # Adam's moments of rarely visited states decay into denormals, which are slow
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of the devices of a node each rank has its own
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    try:
        yield threads
    except RuntimeError as error:  # of the allocators; cuBLAS has a word of its own
        if not any(words in str(error) for words in ("out of memory", "not enough memory", "ALLOC_FAILED")):
            raise
        raise RunError(f"the memory of {device} is full: give a smaller --slice-size, --hidden or --batch-size "
                       f"({first_line(error)})") from None
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
        if device.type == "cuda":  # a call imports half of torch.compile, a second or more
            torch.use_deterministic_algorithms(deterministic)
            torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
