"""Draws the six pictures of docs/tutorial.md: ``python -m benchmarks.tutorial_figures``, in a few minutes.

It trains the default network at α = 0 and α = 6 on the default data; everything else is exact. It prints the numbers
that the text names.
"""

from pathlib import Path

import gymnasium
import numpy as np
from matplotlib.figure import Figure

import cql
from cql.analysis.figures.maps import VALUES, colour_bar, draw_arrows, draw_cells, map_legend, value_norm
from cql.analysis.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, QUIET, VERMILION, WIDTH, house_style, png
from cql.exact import TabularMDP, cql_fixed_point, curve, policy_evaluation, settled_policy, softmax
from cql.exact.mdp import start_distribution
from cql.files import atomic_write
from cql.losses import Objective
from cql.world import World, exact_curve_solution

FOLDER = Path(__file__).parent.parent / "docs/figures"
GAMMA, NAMED = 0.99, (0.1, 1, 6, 20, 100)  # the alphas that are printed
ALPHAS = np.unique(np.r_[np.logspace(-2, 3, 61), NAMED].round(12))
# s0: on to s1 for −1, or end with 0; s1: end with 0 or with +5
TWO_STATES = TabularMDP.from_P([[[(1.0, 1, -1.0, False)], [(1.0, 2, 0.0, True)]],
                                [[(1.0, 2, 0.0, True)], [(1.0, 2, 5.0, True)]],
                                [[(1.0, 2, 0.0, True)], [(1.0, 2, 0.0, True)]]], start=0)
TWO_STATES_COUNTS = np.array([[50, 50], [90, 10], [0, 0]])


def panels(count: int, height: float = 3.7):
    figure = Figure((WIDTH, height), layout="constrained")
    return figure, figure.subplots(1, count)


def failure(fit: cql.Fit, data: cql.OfflineDataset, optimum: float) -> Figure:
    """The greedy policy at α = 0 on its map, and what the network says of it while it learns."""
    figure = Figure((WIDTH, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    q, (_, counts) = fit.q[0], fit.world.empirical(data)
    values = q.max(-1)
    norm = value_norm(values[~fit.world.grid.terminal])
    draw_cells(left, fit.world.grid, values, VALUES, norm, counts.any(-1))
    draw_arrows(left, fit.world.grid, q.argmax(-1), counts)
    left.set_title("α = 0: greedy actions; as colours, the largest Q")
    colour_bar(figure, left, norm, VALUES, "bottom", "what the network says that a cell is worth, max Q")
    map_legend(figure, fit.world.grid, "greedy action")
    right.axhline(optimum, color=BLACK, linestyle="--", linewidth=1.2)
    right.annotate(f"the best policy's value, {optimum:.1f}", (fit.updates[-1], optimum), (-4, -14), ha="right",
                   textcoords="offset points")
    for name, words, colour in (("q/start", "what the network says", BLUE),
                                ("exact/discounted_value", "what its policy is worth", VERMILION)):
        right.plot(fit.updates, fit.log[name][0], color=colour)
        right.annotate(words, (fit.updates[-1], fit.log[name][0, -1]), (-4, 8), color=colour, ha="right",
                       textcoords="offset points")
    right.set(title="Discounted value at the start, α = 0", xlabel="updates", xticks=range(0, 80_001, 20_000))
    right.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def penalty() -> Figure:
    """The gradient of the penalty in one state with four actions, of which the last is never logged."""
    q, beta = np.array([2.0, 1.0, 0.0, 3.0]), np.array([0.1, 0.6, 0.3, 0.0])
    p, place = softmax(q), np.arange(4)
    figure, (left, middle, right) = panels(3)
    for n, bar in enumerate(left.bar(place, q, color=GREY)):
        left.annotate(f"{q[n]:g}", (n, bar.get_height()), (0, 4), ha="center", textcoords="offset points")
    left.set(title="Four values of a network", ylabel="Q(s, a)", ylim=(0, 3.4))
    middle.bar(place - 0.2, p, 0.4, color=VERMILION, label="p = softmax Q")
    middle.bar(place + 0.2, beta, 0.4, color=BLUE, label="β, the logged actions")
    middle.legend()
    middle.set(title="Two distributions", ylabel="probability", ylim=(0, 0.85))
    right.bar(place, beta - p, color=np.where(beta > p, BLUE, VERMILION))
    right.axhline(0, color=BLACK, linewidth=0.8)
    right.set(title="Which way the penalty pushes Q", ylabel="β − p", ylim=(-0.8, 0.75))
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
    words = {
        0: ("go on to s₁ for −1:\nlogged 50 times", "end with 0:\nlogged 50 times"),
        1: ("action 0, reward 0:\nlogged 90 times", "action 1, reward +5:\nlogged 10 times")}
    for state, ax in enumerate(axes):
        for action, colour in enumerate((BLUE, ORANGE)):
            ax.plot(ALPHAS, solved.q[:, state, action], color=colour, label=words[state][action])
        ax.axvline(flips[state], color=GREY, linestyle="--", linewidth=1.2)
        ax.annotate(f"flip at α = {flips[state]:.2f}", (flips[state], ax.get_ylim()[1]), (4, -12),
                    textcoords="offset points")
        ax.set(xscale="log", xlabel="α", ylabel=f"Q(s{'₀₁'[state]}, a)", title=f"Exact Q in s{'₀₁'[state]}")
        ax.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
    return figure


def _solve_two(alphas, initial_value=None):
    return cql_fixed_point(TWO_STATES, TWO_STATES_COUNTS, alphas, GAMMA, initial_value=initial_value)


def over_alpha(world: World, data: cql.OfflineDataset) -> tuple[Figure, Figure, float]:
    """Return and hazard probability of exact CQL over α; its value estimate beside the true value; the best value."""
    empirical, counts = world.empirical(data)

    def solve(alphas, initial_value=None):
        return exact_curve_solution(Objective(), empirical, counts, alphas, initial_value=initial_value)

    solved = curve.alpha_curve(world.mdp, counts, solve, ALPHAS, GAMMA, world.horizon)
    references = curve.references(world.mdp, empirical, counts, solve, GAMMA, world.horizon)
    figure, axes = panels(2)
    for ax, name, title in zip(axes, ("return", "hazard_probability"), (
            "Undiscounted return of the greedy policy", "Probability that an episode ends in a hazard")):
        ax.plot(ALPHAS, solved.metrics[name], color=BLUE, label="exact CQL(H)")
        for key, label, colour in (("alpha_zero", "Q-learning on logged actions", GREEN), ("bc", "BC", VERMILION)):
            ax.axhline(references[key][name], color=colour, linestyle="--", linewidth=1.2, label=label)
        ax.set(xscale="log", xlabel="α", title=title)
        mark_six(ax)
    axes[0].legend(loc="lower left", bbox_to_anchor=(0, 0.1), handlelength=1.2, fontsize=10)
    axes[1].legend(loc="upper left", bbox_to_anchor=(0, 0.8), handlelength=1.2, fontsize=10)
    bound, (left, right) = panels(2)
    left.plot(ALPHAS, solved.value_estimate, color=BLUE, label="value estimate, max Q")
    left.plot(ALPHAS, solved.metrics["discounted_value"], color=VERMILION, label="true value of its policy")
    left.set(xscale="log", xlabel="α", title="Discounted value at the start")
    left.legend(loc="lower left")
    true, _ = policy_evaluation(world.mdp, settled_policy(solved.q), GAMMA)
    seen = counts.any(-1) & ~world.mdp.terminal
    share = (solved.value - true > 1e-9)[:, seen].mean(-1)
    right.plot(ALPHAS, share, color=BLUE)
    right.set(xscale="log", xlabel="α", ylim=(0, 1),
              title=f"Share of the {seen.sum()} visited states that are overestimated")
    for ax in (left, right):
        mark_six(ax)
    for alpha in NAMED:
        n = int(np.flatnonzero(ALPHAS == alpha)[0])
        print(f"α = {alpha:g}: return {solved.metrics['return'][n]:.2f}, hazard "
              f"{solved.metrics['hazard_probability'][n]:.4f}, estimate {solved.value_estimate[n]:.2f}, true "
              f"{solved.metrics['discounted_value'][n]:.2f}, overestimated {share[n]:.3f} of {seen.sum()} states")
    return figure, bound, references["optimal"]["discounted_value"]


def mark_six(ax) -> None:
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.08 * (high - low))  # room for the words
    ax.axvline(6, color=GREY, linestyle=":", linewidth=1.2)
    ax.annotate("α = 6", (6, ax.get_ylim()[1]), (-4, -12), ha="right", textcoords="offset points", color=QUIET)


def exact_losses(world: World, data: cql.OfflineDataset, alpha: float) -> dict[str, float]:
    """TD loss, its part that is the spread of outcomes, penalty and value estimate of the exact solution."""
    (empirical, counts), log = world.empirical(data), world.transitions(data)
    solution = exact_curve_solution(Objective(), empirical, counts, [alpha])
    q, value = solution.q[0], solution.value[0]
    pairs = log.observations, log.actions
    error = q[pairs] - (log.rewards + GAMMA * ~log.terminations * value[log.next_observations])
    mean = np.zeros_like(q)
    np.add.at(mean, pairs, error / counts[pairs])
    return {"losses/td": float((error ** 2).mean()), "spread": float(((error - mean[pairs]) ** 2).mean()),
            "losses/penalty": float(-np.log(softmax(q)[pairs]).mean()),
            "q/start": float(value @ start_distribution(world.mdp))}


def training(fit: cql.Fit, data: cql.OfflineDataset, exact: dict[str, float]) -> Figure:
    """TD loss, penalty and value estimate at α = 6 while the network learns, beside the exact solution."""
    figure, axes = panels(3)
    for ax, name, title, low, above in zip(axes, ("losses/td", "losses/penalty", "q/start"), (
            "TD loss, α = 6", "Penalty, α = 6", "Discounted value at the start, α = 6"), (0, 0.8, None), (6, -15, -15)):
        ax.axhline(exact[name], color=BLACK, linestyle="--", linewidth=1.2)
        ax.plot(fit.updates, fit.log[name][1], color=BLUE)
        ax.annotate(f"exact: {exact[name]:.{3 if name == 'losses/penalty' else 2}f}",
                    (fit.updates[-1], exact[name]), (0, above), ha="right", textcoords="offset points")
        ax.set(title=title, xlabel="updates (log scale)", xscale="log", ylim=(low, None))
    middle, right = axes[1:]
    middle.axhline(data.action_entropy(), color=GREY, linestyle="--", linewidth=1.2)
    middle.annotate(f"H(β), the minimum: {data.action_entropy():.3f}", (fit.updates[-1], data.action_entropy()),
                    (0, -14), ha="right", textcoords="offset points")
    true = fit.log["exact/discounted_value"][1]
    right.plot(fit.updates, true, color=VERMILION)
    right.annotate("true value", (fit.updates[-1], true[-1]), (0, 6), color=VERMILION, ha="right",
                   textcoords="offset points")
    right.annotate("value estimate", (fit.updates[-1], -15), (0, 0), color=BLUE, ha="right", textcoords="offset points")
    right.set(ylim=(None, 17))
    return figure


@house_style()
def main() -> None:
    data = cql.generate_offline_episodes(gymnasium.make("envs:SafetyCriticalGridWorld-v0"))
    fit = cql.fit(data, alpha=[0, 6], log_every=100)
    for m, member in enumerate(fit.members):
        shown = [0, 1, 4, 7, 9, 19, 49, 99, -1]
        print(member.name, {name: [round(float(x), 3) for x in fit.log[name][m][shown]]
                            for name in ("losses/td", "losses/penalty", "q/start", "exact/discounted_value",
                                         "exact/hazard_probability")})
    penalty_at_6, value_at_6 = fit.log["losses/penalty"][1], fit.log["exact/discounted_value"][1]
    print(f"α = 6: the penalty peaks at {penalty_at_6.max():.3f} after {fit.updates[penalty_at_6.argmax()]:,} updates; "
          f"the true value first reaches 12.4 after {fit.updates[(value_at_6 >= 12.4).argmax()]:,}")
    counts = fit.world.empirical(data)[1]
    visited = counts[counts.any(-1)]
    print(f"{len(data):,} transitions; OOD: {(visited == 0).sum()} of {visited.size} pairs of {len(visited)} visited "
          f"states; entropy of the logged actions: {data.action_entropy():.4f}")
    alphas, bound, optimum = over_alpha(fit.world, data)
    exact = exact_losses(fit.world, data, 6)
    print("value of the best policy at the start:", optimum, "exact solution at α = 6:", exact)
    for name, figure in (("failure", failure(fit, data, optimum)), ("penalty", penalty()), ("two_states", two_states()),
                         ("alpha", alphas), ("bound", bound), ("training", training(fit, data, exact))):
        atomic_write(FOLDER / f"tutorial_{name}.png", png(figure))


if __name__ == "__main__":
    main()
