"""The outputs in every state at every log entry: one ``.npy`` of a slice's members ``[M, S, A]`` float32 for each.

    RUN/snapshots/<update>-<the slice's first member>.npy
"""

import io
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cql.config import Config
from cql.dataset import OfflineDataset
from cql.diagnostics import population_outputs
from cql.errors import RunError
from cql.files import atomic_write
from cql.members import Member, all_members, slices
from cql.network import PopulationMLP
from cql.run_folder import RunFolder
from cql.scales import Scales
from cql.world import World

MOST_MEMBERS = 64  # with more, snapshots are off


def recorder(run: RunFolder, config: Config) -> Callable:
    """What ``cql.training.train`` calls at every log entry: it keeps a snapshot where ``--snapshots`` asks for it.

    A resumed run writes the same entries again, with the same bytes.
    """
    if not config.snapshots:
        return lambda *_: None
    dataset, number = run.datasets(config)[0], len(all_members(config))
    scales = Scales.of(config, dataset)
    inputs = state_inputs(dataset, World.of(dataset))
    if inputs is None or number > MOST_MEMBERS:
        why = "the states cannot be listed" if inputs is None else f"{number:,} members are more than {MOST_MEMBERS}"
        print(f"note: --snapshots is off: {why}.", file=sys.stderr)
        return lambda *_: None

    def record(part: list[Member], step: int, network: PopulationMLP, parameters: list[Tensor]) -> None:
        contents = io.BytesIO()
        np.save(contents, state_outputs(part, network, parameters, inputs, scales), allow_pickle=False)
        (run.path / "snapshots").mkdir(exist_ok=True)
        atomic_write(run.path / "snapshots" / f"{step:010d}-{part[0].name}.npy", contents.getvalue())

    return record


def load(run: RunFolder, config: Config, member: Member) -> tuple[np.ndarray, np.ndarray] | None:
    """The updates ``[T]`` and outputs ``[T, S, A]`` of a member; None where no snapshots were kept.
    Raises RunError if a file is damaged."""
    part = next(part for part in slices(config) if member in part)
    paths = sorted((run.path / "snapshots").glob(f"{'[0-9]' * 10}-{part[0].name}.npy"))
    if not paths:
        return None
    try:
        outputs = np.array([np.load(path, allow_pickle=False)[part.index(member)] for path in paths])
    except (ValueError, OSError, EOFError, IndexError) as error:
        raise RunError(f"the snapshots of {run.path} cannot be read ({error}).") from None
    return np.array([int(path.name[:10]) for path in paths]), outputs.astype(np.float64)


def state_inputs(dataset: OfflineDataset, world: World) -> Tensor | None:
    """What an agent sees in every state; None where the states cannot be listed."""
    if world.inputs is not None:
        return torch.from_numpy(world.inputs)
    return torch.arange(dataset.num_states) if dataset.discrete else None


@torch.no_grad()
def state_outputs(part: list[Member], network: PopulationMLP, parameters: list[Tensor], inputs: Tensor,
                  scales: Scales) -> np.ndarray:
    """The outputs of every member of a slice at these inputs, in the units of the data, ``[M, S, A]`` float32."""
    read = torch.from_numpy(scales.inputs(inputs.numpy())).to(parameters[0].device)
    outputs = population_outputs(network, parameters, read).float().cpu().numpy()
    return outputs * np.float32(scales.reward) if part[0].algorithm == "cql" else outputs
