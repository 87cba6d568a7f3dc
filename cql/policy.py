"""A trained member, ready to act. The only place that drops the member axis."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cql.errors import RunError
from cql.files import archive_bytes, atomic_write, load_archive
from cql.network import PopulationMLP
from cql.scales import Scales

FORMAT, SCALED, MASKED = 3, 4, 5  # without and with scales of observations and rewards; acting by a mask
AT_ONCE = 2**16  # states that the network reads at once


class Policy:
    """One agent, loaded from ``policies/*.pt`` or made from its tensors; knows nothing of how it was trained.

    Attributes:
        algorithm: ``cql`` or ``bc``; alpha, seed, data_seed: which member it is (alpha None for BC).
        network: shapes; parameters: in the order of its ``shapes``, with a member axis of length 1.
        allowed: ``[S, A]`` bool, the actions that it may take, others having the output minus infinity; None: all.
        scales: of observations and rewards: what is asked and answered is in the units of the data.
        masked: whether it was trained on vectors with masks, and acts only where the caller gives one.

    Where a method takes a ``mask``, it is ``[A]`` or ``[B, A]`` bool: the actions that exist at the observations, which
    are vectors (of state numbers it stands in ``allowed``). Others have the output minus infinity.
    """

    def __init__(self, network: PopulationMLP, parameters: list[Tensor], algorithm: str, alpha: float | None, seed: int,
                 data_seed: int, allowed: Tensor | None = None, scales: Scales | None = None, masked: bool = False):
        self.network, self.parameters, self.allowed, self.scales = network, parameters, allowed, scales or Scales()
        self.algorithm, self.alpha, self.seed, self.data_seed = algorithm, alpha, seed, data_seed
        self.masked = masked

    @classmethod
    def load(cls, path) -> "Policy":
        """Raises RunError, one sentence, for a file that is missing, damaged or no policy."""
        try:
            return cls._from_contents(load_archive(path))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if isinstance(error, RunError):
                raise
            raise RunError(f"{path} is no policy of this project ({type(error).__name__}: {error}).") from None

    def save(self, path) -> None:
        """One ``.pt`` of tensors and plain values, written whole; equal policies give equal bytes."""
        space = ({"type": "Discrete", "n": self.network.inputs} if self.network.discrete
                 else {"type": "Box", "shape": [self.network.inputs]})
        parameters = {name: tensor[0].detach().cpu().clone()
                      for name, tensor in zip(self.network.shapes, self.parameters)}
        columns = {} if self.scales.mean is None else {name: torch.from_numpy(getattr(self.scales, name))
                                                       for name in ("mean", "scale")}
        atomic_write(path, archive_bytes({
            "format": MASKED if self.masked else SCALED if self.scales.used else FORMAT,
            "algorithm": self.algorithm, "alpha": self.alpha, "seed": self.seed, "data_seed": self.data_seed,
            "observation_space": space,
            "num_actions": self.network.outputs, "hidden": list(self.network.hidden), "parameters": parameters,
            **({} if self.allowed is None else {"allowed": self.allowed}),
            **({"scales": {"reward": self.scales.reward, **columns}} if self.scales.used else {})}))

    @classmethod
    def _from_contents(cls, contents: dict) -> "Policy":
        if contents["format"] not in (FORMAT, SCALED, MASKED):
            raise ValueError(f"format {contents['format']!r} is not known")
        if contents["algorithm"] not in ("cql", "bc"):
            raise ValueError(f"algorithm {contents['algorithm']!r} is not known")
        space, parameters = contents["observation_space"], contents["parameters"]
        discrete = space["type"] == "Discrete"
        network = PopulationMLP(space["n"] if discrete else space["shape"][0], contents["num_actions"],
                                tuple(contents["hidden"]), discrete)
        if {name: tensor.shape for name, tensor in parameters.items()} != network.shapes:
            raise ValueError("its parameters do not fit its sizes")
        if not all(tensor.dtype == torch.float32 and torch.isfinite(tensor).all() for tensor in parameters.values()):
            raise ValueError("its parameters are not finite float32")
        scales = Scales(**{name: value if name == "reward" else value.numpy()
                           for name, value in contents.get("scales", {}).items()})
        return cls(network, [parameters[name][None] for name in network.shapes], contents["algorithm"],
                   contents["alpha"], contents["seed"], contents["data_seed"], contents.get("allowed"), scales,
                   contents["format"] == MASKED)

    @property
    def finite(self) -> bool:
        """Whether every parameter is a finite number; what is not is never saved."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.parameters)

    def act(self, observation, mask=None):
        """The greedy action, ties to the lowest: an int, or ``[B]`` int64 for a batch."""
        actions = self.outputs(observation, mask).argmax(-1)
        return int(actions) if actions.ndim == 0 else actions

    def q_values(self, observation, mask=None) -> np.ndarray:
        """Q(s, .): ``[A]`` or ``[B, A]`` float32.
        Raises ValueError for a BC policy, whose outputs are logits, or an observation of another kind."""
        if self.algorithm != "cql":
            raise ValueError("a Behaviour Cloning policy has no Q-values.")
        return self.outputs(observation, mask)

    def probabilities(self, observation, mask=None) -> np.ndarray:
        """softmax of the outputs, ``[A]`` or ``[B, A]``: for BC its estimate of the behaviour, for CQL the p of the
        penalty, which compares Q in the scale of the training; the policy itself acts greedily."""
        return torch.from_numpy(self.outputs(observation, mask)).div(self.output_unit).softmax(-1).numpy()

    def outputs(self, observation, mask=None) -> np.ndarray:
        """Q-values of CQL, logits of BC: ``[A]`` or ``[B, A]`` float32.

        The result for an observation does not depend on the batch around it: float32 products of other sizes round
        differently, which would decide between two actions that are all but equal. So indices are looked up in a table
        of all states, and vectors go through the network in float64.
        Raises ValueError for an observation of another kind, or the lack of a mask, or one that is none.
        """
        observations, single = self._batched(np.asarray(observation))
        outputs = self._table[observations] if self.network.discrete else self._read_in_float64(observations)
        outputs = outputs if self.output_unit == 1 else outputs * self.output_unit
        outputs = outputs[0] if single else outputs
        possible = self.possible(observation, mask)
        return (outputs if possible is None else outputs.masked_fill(~torch.from_numpy(possible), -torch.inf)).numpy()

    def possible(self, observation, mask=None) -> np.ndarray | None:
        """The actions that it may take there, ``[A]`` or ``[B, A]`` bool; None: all, everywhere.
        Raises ValueError as ``outputs`` does."""
        seen, actions = np.asarray(observation), self.network.outputs
        if self.network.discrete:
            if mask is not None:
                raise ValueError("which actions exist in a state stands in the policy: a mask is for vectors.")
            return None if self.allowed is None else self.allowed[torch.from_numpy(np.asarray(seen, np.int64))].numpy()
        if mask is None:
            if self.masked:
                raise ValueError("the policy was trained with masks: it needs one, which says of each of the "
                                 f"{actions} actions whether it exists there.")
            return None
        try:
            mask = np.asarray(mask)
        except ValueError:  # ragged
            mask = np.empty(0)
        shape = (*seen.shape[:-1], actions)
        if mask.shape != shape or mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
            raise ValueError(f"a mask is {actions} times true or false (1 or 0), for each observation.")
        if not mask.any(-1).all():
            raise ValueError("a mask leaves no action.")
        return mask.astype(np.bool_)

    @property
    def output_unit(self) -> float:
        """Of the network's outputs, in the units of the data; logits have none."""
        return self.scales.reward if self.algorithm == "cql" else 1.0

    @cached_property
    @torch.no_grad()
    def _table(self) -> Tensor:
        """Outputs at every state, ``[S, A]``."""
        states = torch.arange(self.network.inputs)[None]
        return torch.cat([self.network.q_values(self.parameters, part)[0] for part in states.split(AT_ONCE, -1)])

    @torch.no_grad()
    def _read_in_float64(self, observations: Tensor) -> Tensor:
        return self.network.q_values(self._parameters_in_float64, observations[None].double())[0].float()

    @cached_property
    def _parameters_in_float64(self) -> list[Tensor]:
        return [tensor.double() for tensor in self.parameters]

    def _batched(self, array: np.ndarray) -> tuple[Tensor, bool]:
        if self.network.discrete:
            if not np.issubdtype(array.dtype, np.integer) or array.ndim > 1:
                raise ValueError("an observation is one integer, a batch a vector of them.")
            if array.size and not 0 <= array.min() <= array.max() < self.network.inputs:
                raise ValueError(f"observations must lie in 0 … {self.network.inputs - 1}.")
            return torch.from_numpy(np.atleast_1d(array).astype(np.int64)), array.ndim == 0
        if array.ndim not in (1, 2) or array.shape[-1] != self.network.inputs:
            raise ValueError(f"an observation is a vector of length {self.network.inputs}, a batch of them [B, n].")
        if array.dtype.kind not in "iuf":
            raise ValueError("an observation must be numbers.")
        vectors = self.scales.inputs(np.atleast_2d(array))
        if not np.isfinite(vectors).all():
            raise ValueError("an observation holds NaN or infinite numbers.")
        return torch.from_numpy(vectors), array.ndim == 1
