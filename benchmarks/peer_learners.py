"""Trains another library's discrete CQL for ``benchmarks.peer_agreement``, under a Python that has the library:

    python -m benchmarks.peer_learners '{"library": "torchrl", "problem": "FILE.npz", "answer": "FILE.npz", ...}'

All get the same network, initial parameters, minibatches and learning rate; loss, optimiser and target are the
library's. Imports nothing of this project, which the library's environment need not have. Axes: B transitions of a
batch, S states, A actions, N quantiles.
"""

import json
import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """Transitions, with one-hot observations."""

    rows: np.ndarray  # [B], which transitions of the data set
    observations: Tensor  # [B, S]
    actions: Tensor  # [B]
    rewards: Tensor  # [B]
    next_observations: Tensor  # [B, S]
    terminations: Tensor  # [B], 0 or 1


class Learner(NamedTuple):
    parameters: list[nn.Parameter]  # in the order of the layers
    optimiser: torch.optim.Optimizer
    update: Callable[[Batch], Any]  # the library's own; returns the loss, and leaves the gradient in the parameters
    copy_to_target: Callable[[], Any]
    q_values: Callable[[Tensor], Tensor]  # [B, S] -> [B, A]


def layers(sizes: list[int]) -> list[nn.Module]:
    """Of the project's default network: a table (no bias, no ReLU), a hidden layer with a ReLU, and the outputs."""
    states, width, outputs = sizes
    return [nn.Linear(states, width, bias=False), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)]


def plain(settings: dict, sizes: list[int], data: Batch) -> Learner:
    """The control: a textbook DQN with CQL's penalty, the whole square, a hard target and Adam."""
    network, target = nn.Sequential(*layers(sizes)), nn.Sequential(*layers(sizes))
    optimiser = torch.optim.Adam(network.parameters(), lr=settings["lr"])
    steps = 0

    def copy_to_target() -> None:
        target.load_state_dict(network.state_dict())

    def update(batch: Batch) -> Tensor:
        nonlocal steps
        q = network(batch.observations)
        taken = q.gather(1, batch.actions[:, None])[:, 0]
        with torch.no_grad():
            following = target(batch.next_observations).max(1).values
            targets = batch.rewards + settings["gamma"] * (1 - batch.terminations) * following
        loss = nn.functional.mse_loss(taken, targets) + settings["alpha"] * (q.logsumexp(1) - taken).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
        if steps % settings["target_interval"] == 0:
            copy_to_target()
        return loss.detach()

    return Learner(list(network.parameters()), optimiser, update, copy_to_target, network)


def d3rlpy(settings: dict, sizes: list[int], data: Batch) -> Learner:
    """DiscreteCQL of d3rlpy 2.8; with ``square`` half the square takes the place of its Huber loss."""
    import d3rlpy
    from d3rlpy.models.torch.q_functions import mean_q_function
    from d3rlpy.torch_utility import TorchMiniBatch

    if settings.get("square"):
        mean_q_function.compute_huber_loss = lambda y, target: (target - y) ** 2 / 2
    encoder = SimpleNamespace(create=lambda shape: nn.Sequential(*layers(sizes)[:-1]))
    algorithm = d3rlpy.algos.DiscreteCQLConfig(
        alpha=settings["alpha"], learning_rate=settings["lr"], gamma=settings["gamma"], encoder_factory=encoder,
        batch_size=settings["batch"], target_update_interval=settings["target_interval"]).create(device="cpu:0")
    algorithm.create_impl((sizes[0],), sizes[-1])
    learner, q_function, steps = algorithm.impl, algorithm.impl.q_function[0], 0

    def update(batch: Batch) -> float:
        nonlocal steps
        steps += 1
        actions, rewards, terminals = (x[:, None] for x in (batch.actions, batch.rewards, batch.terminations))
        nothing, one = torch.zeros_like(rewards), torch.ones_like(rewards)
        return learner.update(TorchMiniBatch(batch.observations, actions, rewards, batch.next_observations, actions,
                                             nothing, terminals, one, "cpu:0"), steps)["loss"]

    return Learner(list(q_function.parameters()), learner.q_function_optim, update, learner.update_target,
                   lambda x: q_function(x).q_value)


def torchrl(settings: dict, sizes: list[int], data: Batch) -> Learner:
    """DiscreteCQLLoss of TorchRL 0.14, whose two terms the training loop adds: here with alpha at the penalty."""
    from tensordict import TensorDict
    from torchrl.data import Categorical
    from torchrl.modules import QValueActor
    from torchrl.objectives import DiscreteCQLLoss, HardUpdate

    network, spec = nn.Sequential(*layers(sizes)), Categorical(sizes[-1])
    parameters = list(network.parameters())
    terms_of = DiscreteCQLLoss(QValueActor(network, in_keys=["observation"], spec=spec), action_space=spec)
    terms_of.make_value_estimator(gamma=settings["gamma"])
    optimiser = torch.optim.Adam(parameters, lr=settings["lr"])
    copy, copy_now = (HardUpdate(terms_of, value_network_update_interval=interval)  # copies at every (interval + 1)th
                      for interval in (settings["target_interval"] - 1, 0))

    def update(batch: Batch) -> Tensor:
        ended, rewards = batch.terminations[:, None].bool(), batch.rewards[:, None]
        following = {"observation": batch.next_observations, "reward": rewards, "done": ended, "terminated": ended}
        terms = terms_of(TensorDict({"observation": batch.observations, "action": batch.actions, "next": following},
                                    len(ended)))
        loss = terms["loss_qvalue"] + settings["alpha"] * terms["loss_cql"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        copy.step()
        return loss.detach()

    return Learner(parameters, optimiser, update, copy_now.step, network)


def tianshou(settings: dict, sizes: list[int], data: Batch) -> Learner:
    """DiscreteCQL of tianshou 2.0, with N quantiles for each action."""
    from gymnasium.spaces import Discrete
    from tianshou.algorithm import DiscreteCQL
    from tianshou.algorithm.modelfree.qrdqn import QRDQNPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import ReplayBuffer
    from tianshou.utils.torch_utils import policy_within_training_step

    one_hot, quantiles = torch.eye(sizes[0]), settings["quantiles"]

    class Network(nn.Sequential):
        def forward(self, obs, state=None, info=None):
            return super().forward(one_hot[torch.as_tensor(obs)]).view(len(obs), -1, quantiles), state

    network = Network(*layers(sizes))
    policy = QRDQNPolicy(model=network, action_space=Discrete(sizes[-1] // quantiles))
    algorithm = DiscreteCQL(policy=policy, optim=AdamOptimizerFactory(lr=settings["lr"]), gamma=settings["gamma"],
                            min_q_weight=settings["alpha"], num_quantiles=quantiles,
                            target_update_freq=settings["target_interval"])
    ended = data.terminations.bool().numpy()
    buffer = ReplayBuffer.from_data(
        data.observations.argmax(1).numpy(), data.actions.numpy(), data.rewards.numpy().astype(np.float64), ended,
        np.zeros_like(ended), ended, data.next_observations.argmax(1).numpy())

    def update(batch: Batch) -> float:
        buffer.sample_indices = lambda size: batch.rows  # the minibatch of all libraries
        with policy_within_training_step(policy):
            return algorithm.update(buffer, len(batch.rows)).loss

    return Learner(list(network.parameters()), algorithm.optim._optim, update, algorithm._update_lagged_network_weights,
                   lambda x: network(x.argmax(1))[0].mean(2))


LIBRARIES = {"plain": plain, "d3rlpy": d3rlpy, "torchrl": torchrl, "tianshou": tianshou}


def main(settings: dict) -> None:
    """Writes loss and gradient of the first minibatch, and Q after every ``log_every`` updates, ``[T, S, A]``.

    The problem holds the columns of the data set and three sets of parameters: those of the network and of the target
    network for loss and gradient, and the initial ones.
    """
    torch.set_num_threads(1)
    with np.load(settings["problem"]) as file:
        problem = {name: torch.from_numpy(file[name]) for name in file.files}
    given = {name: [problem[f"{name}/{n}"] for n in range(5)] for name in ("compared", "target", "initial")}
    one_hot = torch.eye(len(given["initial"][0].T))
    sizes = [len(one_hot), len(given["initial"][1]), len(given["initial"][-1])]

    def batch(rows: np.ndarray) -> Batch:
        return Batch(rows, one_hot[problem["observations"][rows]], problem["actions"][rows], problem["rewards"][rows],
                     one_hot[problem["next_observations"][rows]], problem["terminations"][rows])

    data = batch(np.arange(len(problem["actions"])))

    def learner_with(parameters: str, target: str, lr: float) -> Learner:
        learner = LIBRARIES[settings["library"]](settings | {"lr": lr}, sizes, data)
        for name in (target, parameters):  # the first ones are copied to the target before the second ones come
            learner.copy_to_target()
            for parameter, value in zip(learner.parameters, given[name], strict=True):
                parameter.data.copy_(value)
        return learner

    learner, draws = learner_with("compared", "target", 0.0), np.random.default_rng(settings["seed"])
    answer = {"loss": float(learner.update(batch(draws.integers(len(data.actions), size=settings["batch"]))))}
    answer |= {f"gradient/{n}": parameter.grad.numpy() for n, parameter in enumerate(learner.parameters)}
    learner, history = learner_with("initial", "initial", settings["lr"]), []
    draws = np.random.default_rng(settings["seed"])
    for step in range(settings["updates"]):
        if settings.get("decay"):
            factor = (1 + math.cos(math.pi * step / settings["updates"])) / 2
            learner.optimiser.param_groups[0]["lr"] = settings["lr"] * factor
        learner.update(batch(draws.integers(len(data.actions), size=settings["batch"])))
        if (step + 1) % settings["log_every"] == 0:
            with torch.no_grad():
                history.append(learner.q_values(one_hot).numpy().copy())
    np.savez(settings["answer"], q=np.array(history), **answer)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
