"""Draws the six pictures of docs/tutorial.md: ``python -m benchmarks.tutorial_figures``, in a few minutes.

It trains the default network at α = 0 and α = 6 on the default data; everything else is exact. It prints the numbers
that the text names.
"""

from pathlib import Path

import gymnasium
import numpy as np
from matplotlib.figure import Figure

import cql
from cql.analysis.figures.maps import VALUES, draw_arrows, draw_cells, value_norm
from cql.analysis.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, WIDTH, house_style, png
from cql.exact import TabularMDP, cql_fixed_point, curve, policy_evaluation, settled_policy, softmax
from cql.files import atomic_write
from cql.losses import Objective
from cql.world import World, exact_curve_solution

FOLDER = Path(__file__).parent.parent / "docs/figures"
GAMMA, ALPHAS = 0.99, np.logspace(-2, 3, 61)
# s0: on to s1 for −1, or end with 0; s1: end with 0 or with +5
TWO_STATES = TabularMDP.from_P([[[(1.0, 1, -1.0, False)], [(1.0, 2, 0.0, True)]],
                                [[(1.0, 2, 0.0, True)], [(1.0, 2, 5.0, True)]],
                                [[(1.0, 2, 0.0, True)], [(1.0, 2, 0.0, True)]]], start=0)
TWO_STATES_COUNTS = np.array([[50, 50], [90, 10], [0, 0]])


def panels(count: int, height: float = 3.7):
    figure = Figure((WIDTH, height), layout="constrained")
    return figure, figure.subplots(1, count)


def failure(fit: cql.Fit, data: cql.OfflineDataset) -> Figure:
    """The greedy policy at α = 0 on its map, and what the network says of it while it learns."""
    figure = Figure((WIDTH, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    q, (_, counts) = fit.q[0], fit.world.empirical(data)
    values = q.max(-1)
    draw_cells(left, fit.world.grid, values, VALUES, value_norm(values[~fit.world.grid.terminal]), counts.any(-1))
    draw_arrows(left, fit.world.grid, q.argmax(-1), counts)
    left.set_title("α = 0: greedy actions (orange: never logged in that state)")
    right.plot(fit.updates, fit.log["q/start"][0], color=BLUE)
    right.plot(fit.updates, fit.log["exact/discounted_value"][0], color=VERMILION)
    right.annotate("what the network says", (fit.updates[-1], fit.log["q/start"][0, -1]), (-4, 8), color=BLUE,
                   textcoords="offset points", ha="right")
    right.annotate("what its policy is worth", (fit.updates[-1], fit.log["exact/discounted_value"][0, -1]), (-4, 8),
                   textcoords="offset points", ha="right", color=VERMILION)
    right.set(title="Value at the start, α = 0", xlabel="updates")
    right.axhline(0, color=GREY, linewidth=0.8)
    return figure


def penalty() -> Figure:
    """The gradient of the penalty in one state with four actions, of which the last is never logged."""
    q, beta = np.array([2.0, 1.0, 0.0, 3.0]), np.array([0.1, 0.6, 0.3, 0.0])
    p, place = softmax(q), np.arange(4)
    figure, (left, middle, right) = panels(3)
    left.bar(place, q, color=GREY)
    left.set(title="Q(s, ·) of the network")
    middle.bar(place - 0.2, p, 0.4, color=VERMILION, label="p = softmax Q")
    middle.bar(place + 0.2, beta, 0.4, color=BLUE, label="β, the logged actions")
    middle.legend()
    middle.set(title="Two distributions", ylim=(0, 0.85))
    right.bar(place, beta - p, color=np.where(beta > p, BLUE, VERMILION))
    right.axhline(0, color=BLACK, linewidth=0.8)
    right.set(title="Where the penalty moves Q: β − p", ylim=(-0.8, 0.75))
    for n, value in enumerate(beta - p):
        right.annotate("up" if value > 0 else "down", (n, value), (0, 4 if value > 0 else -14), ha="center",
                       textcoords="offset points")
    for ax in (left, middle, right):
        ax.set_xticks(place, ["a₀", "a₁", "a₂", "a₃ (OOD)"])
    return figure


def two_states() -> Figure:
    """Q of both states over α, with the flips."""
    solved = curve.alpha_curve(TWO_STATES, TWO_STATES_COUNTS, _solve_two, ALPHAS, GAMMA, 10)
    flips = {flip.state: flip.alpha for flip in curve.flip_points(solved, _solve_two)}
    print("flips of s0 and s1:", flips)
    figure, axes = panels(2)
    words = {0: ("go on to s₁ for −1", "end with 0"), 1: ("action 0, reward 0:\nlogged 90 times",
                                                          "action 1, reward +5:\nlogged 10 times")}
    for state, ax in enumerate(axes):
        for action, colour in enumerate((BLUE, ORANGE)):
            ax.plot(ALPHAS, solved.q[:, state, action], color=colour, label=words[state][action])
        ax.axvline(flips[state], color=GREY, linestyle="--", linewidth=1.2)
        ax.annotate(f"α = {flips[state]:.2f}", (flips[state], ax.get_ylim()[1]), (4, -12), textcoords="offset points")
        ax.set(xscale="log", xlabel="α", title=f"Exact Q(s{'₀₁'[state]}, ·)")
        ax.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
    return figure


def _solve_two(alphas, initial_value=None):
    return cql_fixed_point(TWO_STATES, TWO_STATES_COUNTS, alphas, GAMMA, initial_value=initial_value)


def over_alpha(world: World, data: cql.OfflineDataset) -> tuple[Figure, Figure]:
    """Return and hazard probability of exact CQL over α; its value estimate beside the true value."""
    empirical, counts = world.empirical(data)

    def solve(alphas, initial_value=None):
        return exact_curve_solution(Objective(), empirical, counts, alphas, initial_value=initial_value)

    solved = curve.alpha_curve(world.mdp, counts, solve, ALPHAS, GAMMA, world.horizon)
    references = curve.references(world.mdp, empirical, counts, solve, GAMMA, world.horizon)
    figure, axes = panels(2)
    for ax, name, title in zip(axes, ("return", "hazard_probability"),
                               ("Return of the greedy policy", "Probability that an episode ends in a hazard")):
        ax.plot(ALPHAS, solved.metrics[name], color=BLUE)
        for key, label, colour in (("alpha_zero", "Q-learning on logged actions", GREEN), ("bc", "BC", VERMILION)):
            ax.axhline(references[key][name], color=colour, linestyle="--", linewidth=1.2, label=label)
        ax.set(xscale="log", xlabel="α", title=title)
    axes[0].legend(loc="lower left")
    bound, (left, right) = panels(2)
    left.plot(ALPHAS, solved.value_estimate, color=BLUE, label="value estimate, max Q")
    left.plot(ALPHAS, solved.metrics["discounted_value"], color=VERMILION, label="true value of its policy")
    left.set(xscale="log", xlabel="α", title="Value at the start")
    left.legend()
    true, _ = policy_evaluation(world.mdp, settled_policy(solved.q), GAMMA)
    seen = counts.any(-1) & ~world.mdp.terminal
    share = (solved.value - true > 1e-9)[:, seen].mean(-1)
    right.plot(ALPHAS, share, color=BLUE)
    right.set(xscale="log", xlabel="α", ylim=(0, 1), title="Share of the states whose value is overestimated")
    for alpha in (0.1, 1, 6, 20, 100):
        n = int(np.abs(np.log(ALPHAS / alpha)).argmin())
        print(f"α = {ALPHAS[n]:.3g}: return {solved.metrics['return'][n]:.2f}, hazard "
              f"{solved.metrics['hazard_probability'][n]:.4f}, estimate {solved.value_estimate[n]:.2f}, true "
              f"{solved.metrics['discounted_value'][n]:.2f}, overestimated {share[n]:.3f} of {seen.sum()} states")
    return figure, bound


def training(fit: cql.Fit, data: cql.OfflineDataset) -> Figure:
    """TD loss, penalty and value estimate at α = 6 while the network learns."""
    figure, (left, middle, right) = panels(3)
    left.plot(fit.updates, fit.log["losses/td"][1], color=BLUE)
    left.set(title="TD loss", ylim=(0, None))
    middle.plot(fit.updates, fit.log["losses/penalty"][1], color=BLUE)
    middle.axhline(data.action_entropy(), color=GREY, linestyle="--", linewidth=1.2)
    middle.annotate("H(β), the minimum", (fit.updates[-1], data.action_entropy()), (0, 5), ha="right",
                    textcoords="offset points")
    middle.set(title="Penalty", ylim=(0.8, None))
    for name, words, colour, above in (("q/start", "value estimate", BLUE, -16),
                                       ("exact/discounted_value", "true value", VERMILION, 6)):
        right.plot(fit.updates, fit.log[name][1], color=colour)
        right.annotate(words, (fit.updates[-1], fit.log[name][1, -1]), (0, above), color=colour, ha="right",
                       textcoords="offset points")
    right.set(title="Value at the start", ylim=(None, 17))
    for ax in (left, middle, right):
        ax.set(xlabel="updates (log scale)", xscale="log")
    return figure


@house_style()
def main() -> None:
    data = cql.generate_offline_episodes(gymnasium.make("envs:SafetyCriticalGridWorld-v0"))
    fit = cql.fit(data, alpha=[0, 6], log_every=100)
    for m, member in enumerate(fit.members):
        print(member.name, {name: [round(float(x), 3) for x in fit.log[name][m][[0, 1, 4, 9, 19, 49, 99, -1]]]
                            for name in ("losses/td", "losses/penalty", "q/start", "exact/discounted_value",
                                         "exact/hazard_probability")})
    print("entropy of the logged actions:", data.action_entropy())
    alphas, bound = over_alpha(fit.world, data)
    for name, figure in (("failure", failure(fit, data)), ("penalty", penalty()), ("two_states", two_states()),
                         ("alpha", alphas), ("bound", bound), ("training", training(fit, data))):
        atomic_write(FOLDER / f"tutorial_{name}.png", png(figure))


if __name__ == "__main__":
    main()
