"""A policy as a file that needs nothing of this package: a torch.export program (``.pt2``) or ONNX (extra ``export``).

Both take a batch of any size B, ``[B]`` int64 state indices or ``[B, n]`` float32 (float64 where they are standardised:
"dtype" in the metadata), and return the outputs ``[B, A]`` float32 (Q-values of CQL, logits of BC) and the greedy
actions ``[B]`` int64, ties to the lowest. The output of an action that the policy may not take is minus infinity: for
state indices the graph holds which these are; for vectors a policy trained with masks has a second input, ``mask
[B, A]`` bool ("mask" in the metadata). docs/deploy.md says what is checked and what a reader must not trust.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from cql.deploy.model import CARD, POLICY, Model
from cql.errors import RunError
from cql.files import atomic_write, sha256
from cql.policy import Policy
from cql.run_folder import RunFolder

TOLERANCE = 1e-5  # of an output, relative to the largest one: other products round otherwise
ROWS, ALONE = 4096, 1000  # observations that are checked at once, and at most one by one
METADATA = "metadata.json"  # among the files of a .pt2, and among the properties of an ONNX model
TRACES = ("stack_trace", "nn_module_stack", "torch_fn", "from_node")  # paths and addresses of the exporting process

INPUTS = ("observations", "mask")
Run = Callable[..., tuple[np.ndarray, np.ndarray]]  # observations [B] or [B, n], mask? -> outputs [B, A], actions [B]


class Greedy(torch.nn.Module):
    """A policy as a module: observations ``[B]`` or ``[B, n]`` to outputs ``[B, A]`` and greedy actions ``[B]``; with a
    mask ``[B, A]`` of the actions that exist where the policy was trained so.

    As in ``Policy.outputs``, an index is looked up among the outputs of all states, and a vector is read in float64, so
    that no action depends on the size of the batch.
    """

    def __init__(self, policy: Policy):
        super().__init__()
        self.network = policy.network
        tensors = ([torch.from_numpy(policy.outputs(np.arange(self.network.inputs)))] if self.network.discrete else
                   [tensor.detach().clone() for tensor in policy.parameters])
        for n, tensor in enumerate(tensors):
            self.register_buffer(f"tensor{n}", tensor)
        self.standardised, self.unit = policy.scales.mean is not None, policy.output_unit
        if self.standardised:
            self.register_buffer("mean", torch.from_numpy(policy.scales.mean))
            self.register_buffer("scale", torch.from_numpy(policy.scales.scale))

    def forward(self, observations: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.network.discrete:  # ONNX counts negative indices from the end: −1 would be the last state
            states = torch.where(observations < 0, self.network.inputs, observations)
            outputs = torch.nn.functional.embedding(states, self.get_buffer("tensor0"))
        else:
            parameters = [self.get_buffer(f"tensor{n}").double() for n in range(len(self.network.shapes))]
            if self.standardised:
                observations = ((observations - self.get_buffer("mean")) / self.get_buffer("scale")).float()
            outputs = self.network.q_values(parameters, observations[None].double())[0].float()
            outputs = outputs if self.unit == 1 else outputs * self.unit
            outputs = outputs if mask is None else outputs.masked_fill(~mask, -torch.inf)
        return outputs, outputs.argmax(-1)


def program(policy: Policy) -> ExportedProgram:
    """The policy in core ATen operators, its batch of any size."""
    module = Greedy(policy)
    vectors = torch.zeros(3, policy.network.inputs, dtype=torch.float64 if policy.scales.mean is not None else None)
    examples = [torch.zeros(3, dtype=torch.int64) if policy.network.discrete else vectors]
    examples += [torch.ones(3, policy.network.outputs, dtype=torch.bool)] * policy.masked
    batch = Dim("batch", min=0)
    sizes = ({0: batch}, *[{0: batch}] * policy.masked)
    exported = torch.export.export(module, tuple(examples), dynamic_shapes=sizes).run_decompositions()
    exported.example_inputs = None  # they are the only pickle that the file would hold
    for node in list(exported.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # of the casts; not among the core operators
            exported.graph.erase_node(node)
        for trace in TRACES:
            node.meta.pop(trace, None)
    return exported


def torch_bytes(exported: ExportedProgram, metadata: str) -> bytes:
    """The contents of a ``.pt2`` file."""
    buffer = io.BytesIO()
    torch.export.save(exported, buffer, extra_files={METADATA: metadata})
    return buffer.getvalue()


def onnx_bytes(exported: ExportedProgram, metadata: str) -> bytes:
    """The contents of an ``.onnx`` file."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators that are not here
    names = list(INPUTS[: len(exported.graph_signature.user_inputs)])
    made = torch.onnx.export(exported, dynamic_shapes=({0: "batch"}, {})[: len(names)], input_names=names,
                             output_names=["outputs", "actions"], verbose=False)
    model = made.model_proto  # a new object at each access
    model.metadata_props.add(key=METADATA, value=metadata)
    return model.SerializeToString(deterministic=True)


def torch_runner(contents: bytes) -> Run:
    """Runs a ``.pt2`` that this process made: reading one can unpickle."""
    module = torch.export.load(io.BytesIO(contents)).module()
    return lambda *inputs: tuple(tensor.numpy() for tensor in module(*map(torch.from_numpy, inputs)))


def onnx_runner(contents: bytes) -> Run:
    """Runs an ``.onnx`` on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    return lambda *inputs: tuple(session.run(["outputs", "actions"], dict(zip(INPUTS, inputs))))


FORMATS = {"torch": (".pt2", torch_bytes, torch_runner), "onnx": (".onnx", onnx_bytes, onnx_runner)}


def largest_difference(run: Run, policy: Policy, observations: np.ndarray, masks: np.ndarray | None = None) -> float:
    """How far the outputs of an exported policy are from its own, relative to the largest one.

    The observations, ``[N]`` or ``[N, n]``, are asked in batches of none and of ``ROWS``, and one by one (of very many,
    ``ALONE``); where the policy needs masks, ``[N, A]``, with these.

    Raises:
        RunError: another action somewhere, an output further off than ``TOLERANCE``, or other shapes or types.
    """
    differences, largest = [], []
    parts = [slice(0), *(slice(n, n + ROWS) for n in range(0, len(observations), ROWS)),
             *(slice(n, n + 1) for n in range(0, len(observations), -(-len(observations) // ALONE)))]
    for part in parts:
        batch, *_ = inputs = [array[part] for array in (observations, masks) if array is not None]
        expected, outputs, actions = policy.outputs(*inputs), *run(*inputs)
        right = (expected.shape, np.float32, (len(batch),), np.int64)
        if (outputs.shape, outputs.dtype, actions.shape, actions.dtype) != right:
            raise RunError(f"an exported batch of {len(batch)} has outputs {outputs.dtype} {list(outputs.shape)} and "
                           f"actions {actions.dtype} {list(actions.shape)}: the file is not kept.")
        differ = np.flatnonzero(actions != policy.act(*inputs))
        if len(differ):
            raise RunError(f"the exported policy acts otherwise on {len(differ)} of {len(batch)} observations, first "
                           f"on {batch[differ[0]].tolist()}: the file is not kept.")
        equal = outputs == expected  # minus infinity, of actions that the policy may not take, has no difference
        differences.append(np.abs(np.where(equal, 0.0, outputs) - np.where(equal, 0.0, expected)).max(initial=0.0))
        largest.append(np.abs(expected).max(initial=0.0, where=np.isfinite(expected)))
    relative = float(np.max(differences) / (np.max(largest) or 1.0))
    if not relative <= TOLERANCE:  # NaN is not
        raise RunError(f"the exported policy's outputs are {relative:.1e} off, more than {TOLERANCE:g}: "
                       "the file is not kept.")
    return relative


def observations_of(model: Model) -> np.ndarray:
    """What an export is checked on, as it reads it: every state, else the data's observations."""
    if model.policy.network.discrete:
        return np.arange(model.policy.network.inputs)
    known = model.world.inputs
    return np.asarray(model.support.observations if known is None else known,
                      dtype=np.float32 if model.policy.scales.mean is None else np.float64)


def metadata(model: Model, digest: str) -> str:
    """The contents of ``METADATA``; ``digest`` is the SHA-256 of the policy's own file."""
    network, member = model.policy.network, model.member
    return json.dumps({
        "member": member.name, "algorithm": member.algorithm, "alpha": member.alpha, "final_alpha": model.final_alpha,
        "observations": {"kind": "index" if network.discrete else "vector", "size": network.inputs,
                         **({} if model.policy.scales.mean is None else {"dtype": "float64"})},
        "outputs": "q_values" if member.algorithm == "cql" else "logits", "actions": model.actions,
        **({"mask": True} if model.policy.masked else {}), **({"features": model.features} if model.features else {}),
        "policy_sha256": digest,
    }, allow_nan=False)


def export(path: str | Path, out: str | Path, member: str | None = None,
           formats: tuple[str, ...] = ("torch",)) -> list[str]:
    """A line about each file that it writes, one for each format, all checked before the first is written.

    Args:
        path: a run folder, or an entry of a registry. out: a folder, made if there is none. member: for ``Model.open``.

    Raises:
        RunError: no such policy, an extra that is not installed, or a file that does not act as the policy does.
        OSError: the folder cannot be made or written.
    """
    model = Model.open(path, member)
    own = Path(path) / POLICY if (Path(path) / CARD).is_file() else RunFolder(path).policy_path(model.member.name)
    about, observations, made = metadata(model, sha256(own)), observations_of(model), []
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # PyTorch's, of its own code
        exported = program(model.policy)
        try:
            for ending, contents_of, runner_of in (FORMATS[name] for name in formats):
                contents = contents_of(exported, about)
                run, masks = runner_of(contents), model.dataset.masks_of(observations)
                made.append((ending, contents, largest_difference(run, model.policy, observations, masks)))
        except ModuleNotFoundError as error:
            raise RunError(f"ONNX needs the extra export: pip install 'glassbox-cql[export]' ({error}).") from None
    Path(out).mkdir(parents=True, exist_ok=True)
    lines = []
    for ending, contents, difference in made:
        atomic_write(target := Path(out) / f"{model.member.name}{ending}", contents)
        lines.append(f"{target}: {len(contents):,} bytes; acts as the policy on all of {len(observations):,} "
                     f"observations, its outputs differ by at most {difference:.1e} of the largest")
    return lines
