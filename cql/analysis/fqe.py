"""Fitted Q evaluation by networks (FQE): discounted values of greedy policies, from logged episodes of vectors alone.

Half of the episodes, drawn at random, are fitted; at the first observations of the others V is read. Every member is a
policy and a resample of the episodes of both halves. It fits Q(s, a) to

    y = r + gamma (1 - terminated) Q-(s', pi(s')),    clipped to the values that the rewards allow.

These lie between the least and the largest logged reward, taken for one step or for all steps of an episode: times
(1 - gamma^H) / (1 - gamma). A target counts as clipped if it lies outside by more than TOLERANCE of their width: Q does
not know how many steps are left, so that at the bound y exceeds it by gamma^H r.

What was logged can be judged as a policy too, beyond the steps where episodes were cut off: pi(s') is then the action
that was logged there, and transitions after which none was are left out.

Axes: N policy, R resample (0: the episodes as they are), M = N (R + 1) member, B transition, U distinct observation.
"""

from dataclasses import dataclass

import numpy as np
import torch

from cql.dataset import OfflineDataset
from cql.diagnostics import population_outputs
from cql.network import PopulationMLP
from cql.policy import Policy
from cql.sampling import Transitions, uniform_bits
from cql.scales import discounted_returns

RESAMPLES, UPDATES, BATCH, COPIED_EVERY, HIDDEN, RATE = 20, 3000, 128, 10, (32, 32), 1e-3
TOLERANCE = 0.01  # of the width of the allowed values
JUDGED = 10_000  # transitions, evenly spaced, of which the clipped targets are counted


@dataclass(frozen=True, eq=False)
class FittedValues:
    """What FQE gives.

    Attributes:
        values: ``[N, R + 1]``, mean V at the starts, of what was logged in the last row if that was asked for; earlier:
            likewise after three quarters of the updates.
        logged: ``[R + 1]``, mean discounted return of the same episodes as far as they go.
        clipped: ``[N]``, the share of clipped targets at the end, without resampling.
    """

    values: np.ndarray
    earlier: np.ndarray
    logged: np.ndarray
    clipped: np.ndarray


def fitted_values(dataset: OfflineDataset, policies: list[Policy], gamma: float, horizon: int | None,
                  with_logged: bool = False, resamples: int = RESAMPLES, updates: int = UPDATES,
                  seed: int = 0) -> FittedValues:
    """The values of all policies. ``horizon``: steps of an episode, H; None where they are not known."""
    random, starts, count = np.random.default_rng(seed), dataset.episode_starts, len(policies) + with_logged
    members = count * (resamples + 1)
    halves, counts = np.array_split(random.permutation(len(starts)), 2), []
    halves = [np.sort(half) for half in halves]
    for half in halves:  # how often each episode counts: once as they are, then in each resample
        drawn = random.multinomial(len(half), np.full(len(half), 1 / len(half)), resamples)
        counts.append(np.concatenate([np.ones((1, len(half))), drawn]))  # [R + 1, E]
    fitted, held = parts = [dataset.of_episodes(dataset.episode_ids[starts[half]]) for half in halves]
    data = Transitions(parts, torch.device("cpu"), compress=False)
    table = data.observations.double()
    table = ((table - table.mean(0)) / table.std(0, correction=0).masked_fill_(table.std(0) == 0, 1)).float()
    seen = data.observations.numpy()
    masks = dataset.masks_of(seen)
    chosen = torch.from_numpy(np.stack([policy.act(seen, masks) for policy in policies]))  # [N, U]
    lengths = np.diff(fitted.episode_starts, append=len(fitted))
    weights = torch.from_numpy(counts[0].repeat(lengths, 1)).float()  # [R + 1, D]
    going_on = torch.ones(len(fitted), dtype=torch.bool)  # whether the next transition is of the same episode
    going_on[fitted.episode_starts - 1] = False  # -1: the last of all
    followed = torch.stack([torch.ones_like(going_on)] * len(policies) + [going_on | data.terminations[: len(fitted)]])
    low, high = allowed_values(dataset.rewards, gamma, horizon)
    scale = float(np.abs(discounted_returns(dataset, gamma)).max()) or 1.0  # networks learn values of about 1
    spare, low, high = TOLERANCE * (high - low) / scale, low / scale, high / scale
    network = PopulationMLP(table.shape[1], dataset.num_actions, HIDDEN, discrete=False)
    parameters = [tensor.requires_grad_() for tensor in network.initial(list(range(resamples + 1)) * count)]
    optimiser = torch.optim.Adam(parameters, lr=RATE, fused=True)
    target: list[torch.Tensor] = []

    def q_of(networks, rows, actions):  # [M, B]; actions [N or 1, B]
        q = population_outputs(network, networks, table[rows])
        return q.gather(-1, actions.repeat_interleave(members // len(actions), 0)[..., None])[..., 0]

    def actions_at(rows, logged):  # [N, B], of every policy
        return torch.cat([chosen[:, rows], logged[None].long()])[:count]

    @torch.no_grad()
    def backup(index):  # y of transitions [B], before clipping: [M, B]
        batch = data.at(index)
        afterwards = data.actions[(index + 1).clamp_max(len(fitted) - 1)]
        following = q_of(target, batch.next_observations, actions_at(batch.next_observations, afterwards))
        return batch.rewards / scale + gamma * torch.where(batch.terminations, 0.0, following)

    @torch.no_grad()
    def at_starts():  # [N, R + 1]
        first = len(fitted) + torch.from_numpy(held.episode_starts)
        rows = data.rows[first].long()
        v = q_of(parameters, rows, actions_at(rows, data.actions[first])).double().numpy()
        v = v.reshape(count, resamples + 1, -1)
        return scale * (v * counts[1]).sum(-1) / len(halves[1])

    for update in range(updates):
        if update % COPIED_EVERY == 0:
            target = [tensor.detach().clone() for tensor in parameters]
        optimiser.param_groups[0]["lr"] = RATE * (1 - update / updates)
        if update == updates * 3 // 4:
            earlier = at_starts()
        uniforms = uniform_bits(torch.tensor([seed]), torch.tensor([update]), BATCH)[0]
        index = data.minibatch_indices(torch.tensor([0]), uniforms)[0]  # the same for all members
        y = backup(index).clamp_(low, high)
        error = q_of(parameters, data.rows[index].long(), data.actions[index].long()[None]) - y
        optimiser.zero_grad()
        (weights[:, index].repeat(count, 1) * followed[:count, index].repeat_interleave(resamples + 1, 0)
         * error**2).mean(1).sum().backward()
        optimiser.step()
    some = torch.arange(0, len(fitted), -(-len(fitted) // JUDGED))
    y, counted = backup(some)[:: resamples + 1], followed[:count, some].double()
    clipped = (((y < low - spare) | (y > high + spare)) * counted).sum(1) / counted.sum(1).clamp_min(1)
    logged = counts[1] @ discounted_returns(held, gamma) / len(halves[1])
    return FittedValues(at_starts(), earlier, logged, clipped.numpy())


def allowed_values(rewards: np.ndarray, gamma: float, horizon: int | None) -> tuple[float, float]:
    """The least and the largest discounted value that rewards of this range allow."""
    steps = np.inf if horizon is None else horizon
    many = steps if gamma == 1 else (1 - gamma**steps) / (1 - gamma)
    least, most = float(rewards.min()), float(rewards.max())
    return min(least, least * many), max(most, most * many)
