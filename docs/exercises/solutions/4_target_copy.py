"""4. The copy to the target network. The lines of Algorithm 1 that copy Q to Q_target are missing: put them back,
where settings.target_interval says, and before the update.

Mark it with: python -m cql exercise FILE
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from cql.algorithm import DUAL_RATE, Settings, State, cosine_decay, dual_ascent, next_values, penalty_weights
from cql.losses import Objective, bc_loss, cql_loss, td_target
from cql.network import PopulationMLP
from cql.sampling import Transitions


def updates(network: PopulationMLP, transitions: Transitions, state: State, data_index: Tensor, seeds: Tensor,
            algorithm: str, objective: Objective, settings: Settings, start: int,
            stop: int) -> Iterator[tuple[int, State, tuple[Tensor, ...]]]:
    """Generator of updates ``start … stop − 1`` of M members, which changes ``state`` in place.

    Args:
        data_index: ``[M]``, the number of each member's data set. seeds: ``[M]``, each member's training seed.
        algorithm: ``cql`` or ``bc``, that of all members.

    Yields:
        After every update: the number of updates done, the state, and the update's loss terms, each ``[M]`` (td,
        penalty and total of CQL, the cross-entropy of BC).
    """
    parameters = [tensor.detach().requires_grad_() for tensor in state.parameters]  # the same memory, for autograd
    adam = torch.optim.Adam(parameters)
    for tensor, first, second in zip(parameters, state.first_moment, state.second_moment):
        adam.state[tensor] = {"step": torch.tensor(float(start)), "exp_avg": first, "exp_avg_sq": second}
    if settings.batch_size == "full":
        batch = transitions.full_batch(data_index)

    for step in range(start, stop):
        if step % settings.target_interval == 0 and algorithm == "cql":
            for target, tensor in zip(state.target, state.parameters):
                target.copy_(tensor)
        if settings.batch_size != "full":
            batch = transitions.minibatch(data_index, seeds, step, settings.batch_size)

        outputs = network.q_values(parameters, batch.observations)  # [M, B, A]: Q, or the logits of BC
        if algorithm == "cql":
            bootstrap = next_values(network, state, batch.next_observations, objective, batch.next_action_weights)
            targets = td_target(batch.rewards, batch.terminations, bootstrap, objective.gamma)  # [M, B]
            action_weights = penalty_weights(network, state, batch, objective)
            terms = cql_loss(outputs, batch.actions, targets, state.alpha, objective.td_loss, objective.penalty,
                             objective.temperature, action_weights, batch.weights)
        else:
            if batch.action_weights is not None:  # masks: 0 for an action that does not exist
                outputs = outputs.masked_fill(batch.action_weights == 0, -torch.inf)
            terms = (bc_loss(outputs, batch.actions, batch.weights),)
        loss = terms[-1].sum()  # the total of every member; summed over members, so the gradient of each is its own
        adam.zero_grad()
        loss.backward()
        decay = cosine_decay(step, settings.steps)
        adam.param_groups[0]["lr"] = settings.learning_rate * decay
        adam.step()
        if settings.learn_alpha and algorithm == "cql":
            dual_ascent(state.alpha, terms.penalty.detach(), settings.penalty_threshold, DUAL_RATE * decay)
        yield step + 1, state, tuple(term.detach() for term in terms)
