"""A file of somebody's own functions, marked: they train small cases in place of the project's, against exact answers.

A mistake of the catalogue is recognised by its first updates: the file trains, to rounding, as the mistake does.
"""

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from types import CodeType

import gymnasium
import numpy as np
import torch
from torch import Tensor

from cql import algorithm, losses
from cql.algorithm import Settings, State
from cql.collect import generate_offline_episodes
from cql.dataset import OfflineDataset
from cql.errors import GlassboxError
from cql.exact import empirical_policy, softmax
from cql.exercises.catalogue import EXERCISES, MODULES, home
from cql.losses import Objective
from cql.network import PopulationMLP
from cql.sampling import Transitions
from cql.text import aligned
from cql.world import World, exact_solution

NAMES = [name for module in MODULES for name, value in vars(module).items()
         if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")]
ALPHA, FAR_ALPHAS, FIRST_ALPHA = 6.0, (10.0, 100.0, 1000.0), 1.0
OBJECTIVE = Objective(gamma=0.9)
UPDATES, INTERVAL, RATE = 1500, 20, 0.5
FIRST_UPDATES = 25  # by which a mistake is recognised: beyond the first copy to the target network
CLOSE, CLOSE_ALPHA, CLOSE_POLICY = 1e-3, 1e-2, 1e-3  # in Q, in α relative to it, in probabilities
SHOWN = 3  # states


class ExerciseError(GlassboxError):
    """A file that cannot be marked, or functions that cannot be trained with."""


@dataclass(frozen=True, eq=False)
class Case:
    """The small case: a map of 3 × 4 cells, its data, and what is exact about them."""

    dataset: OfflineDataset
    world: World
    counts: np.ndarray  # [S, A]
    q: np.ndarray  # [S, A], the exact solution at ALPHA
    far: np.ndarray  # [N, S, A], at FAR_ALPHAS
    threshold: float  # the penalty of q

    @property
    def logged(self) -> np.ndarray:
        return (self.counts > 0) & ~self.world.mdp.terminal[:, None]

    @property
    def facts(self) -> dict[str, int]:
        """What the sentences of the mistakes name."""
        return {"terminations": int(self.dataset.terminations.sum()),
                "truncations": int(self.dataset.truncations.sum()), "distinct": len(self.dataset.compress().counts)}


@cache
def case() -> Case:
    """60 episodes of at most 7 steps, of which many are cut off."""
    environment = gymnasium.make("envs:SafetyCriticalGridWorld-v0", desc=("S...", ".H..", "...G"), slip_probability=0.2,
                                 max_episode_steps=7)
    dataset = generate_offline_episodes(environment, 60, 0.5, 42)
    world = World.of(dataset)
    mdp, counts = world.empirical(dataset)
    q = exact_solution(OBJECTIVE, mdp, counts, (ALPHA, *FAR_ALPHAS)).q
    logged = np.isfinite(q[0]) & ~mdp.terminal[:, None]
    threshold = -np.average(np.log(softmax(q[0])[logged]), weights=counts[logged])  # the penalty is a cross-entropy
    return Case(dataset, world, counts, q[0], q[1:], float(threshold))


def read(path) -> dict[str, Callable]:
    """The functions of a file that have a name of the project's. Raises ExerciseError if there are none."""
    space: dict = {"__name__": "exercise"}
    try:
        code: CodeType = compile(Path(path).read_text(encoding="utf-8"), str(path), "exec")
        exec(code, space)
    except OSError as error:
        raise ExerciseError(f"{str(path) or repr('')} cannot be read ({error.strerror}).") from None
    except (Exception, SystemExit) as error:
        raise ExerciseError(f"{path} is no Python file that runs ({_words(error, path)}).") from None
    found = {name: space[name] for name in NAMES if inspect.isfunction(space.get(name))
             and space[name].__code__.co_filename == str(path)}
    if not found:
        raise ExerciseError(f"{path} defines none of the functions that can be marked: {', '.join(NAMES)}.")
    return found


def mark(functions: dict[str, Callable], path: str = "<exercise>") -> tuple[bool, str]:
    """Whether the functions end at the exact solution and make no known mistake, and what is said of them.

    Args:
        path: the file that they come from, to which errors point.
    """
    passed, lines = True, list[str]()
    for name, function in functions.items():
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ExerciseError(f"{name} is an async function: write def without async.")
    try:
        if not functions.keys() <= {"bc_loss", "dual_ascent"}:
            state = trained(functions, "cql", UPDATES)
            passed, lines = _judge_q(state)
        if "dual_ascent" in functions:
            good, line = _judge_alpha(trained(functions, "cql", UPDATES, learn_alpha=True))
            passed, lines = passed and good, [line, *lines]
        if "bc_loss" in functions:
            good, line = _judge_cloning(trained(functions, "bc", UPDATES))
            passed, lines = passed and good, [line, *lines]
        sentence = known_mistake(functions)
    except ExerciseError:
        raise
    except (Exception, SystemExit) as error:  # a function of somebody's own may raise anything
        raise ExerciseError(f"the functions cannot be trained with: {_words(error, path)}.") from None
    if sentence is not None:
        return False, "\n".join([lines[0], sentence.format(**case().facts), *lines[1:]])
    return passed, "\n".join([*lines, "Passed." if passed else "This is none of the mistakes that are known here."])


def _judge_q(state: State) -> tuple[bool, list[str]]:
    """Whether Q is the exact solution, in a sentence, and where it is not in a table of states."""
    small, q = case(), state.parameters[0][0].double().numpy()
    error = np.where(small.logged, np.abs(q - np.where(small.logged, small.q, 0.0)), 0.0)
    line = (f"Your Q is {error.max():.2g} from the exact solution at α = {ALPHA:g}: the largest difference over "
            f"{small.logged.sum()} logged pairs.")
    if not np.isfinite(q).all():
        return False, ["Your Q is not finite: training diverged."]
    if error.max() <= CLOSE:
        return True, [line]
    worst = np.argsort(-error.max(-1))[:SHOWN]
    rows = [["state", "action", "logged", "your Q", "exact Q"]]
    for s in worst:
        a = int(error[s].argmax())
        rows.append([small.world.state_names[s], small.world.action_names[a], str(small.counts[s, a]),
                     f"{q[s, a]:.2f}", f"{small.q[s, a]:.2f}"])
    return False, [line, *aligned(rows, left=(0, 1))]


def _judge_alpha(state: State) -> tuple[bool, str]:
    alpha = float(state.alpha[0])
    return abs(alpha / ALPHA - 1) <= CLOSE_ALPHA, (
        f"Your α went from {FIRST_ALPHA:g} to {alpha:.4g}: the exact solution whose penalty is the threshold "
        f"{case().threshold:.4f} is that at α = {ALPHA:g}.")


def _judge_cloning(state: State) -> tuple[bool, str]:
    small, p = case(), softmax(state.parameters[0][0].double().numpy())
    rows = small.logged.any(-1)
    others = empirical_policy(small.counts), *map(softmax, small.far)
    apart = [float(np.abs(p - other)[rows].max()) for other in others]
    return apart[0] <= CLOSE_POLICY, (
        f"Your softmax is {apart[0]:.2g} from the frequencies β of the logged actions; that of the exact CQL solution "
        "is " + ", ".join(f"{x:.2g}" for x in apart[1:]) + " from yours at α = "
        + ", ".join(f"{alpha:g}" for alpha in FAR_ALPHAS) + ".")


def known_mistake(functions: dict[str, Callable]) -> str | None:
    """The sentence of the mistake that makes the same first updates as these functions; None if there is none."""
    mine = first_updates(functions, functions)
    if same(mine, first_updates({}, functions)):
        return None
    return next((mistake.sentence for exercise in EXERCISES if set(exercise.functions) & functions.keys()
                 for mistake in exercise.mistakes
                 if same(mine, first_updates(functions | exercise.wrong(mistake), functions))), None)


def first_updates(functions: dict[str, Callable], asked) -> list[Tensor]:
    """What the first updates make of the cases in which the functions ``asked`` for take part."""
    states = [trained(functions, "cql", FIRST_UPDATES), trained(functions, "cql", FIRST_UPDATES, learn_alpha=True)]
    if "bc_loss" in asked:
        states.append(trained(functions, "bc", FIRST_UPDATES))
    return [tensor.detach() for state in states for tensor in (state.parameters[0], state.alpha)]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in zip(some, others))


def trained(functions: dict[str, Callable], name: str, updates: int, learn_alpha: bool = False) -> State:
    """The state of a table Q[s, a] after some updates with these functions in place of the project's.

    Args:
        name: of the algorithm, cql or bc. learn_alpha: from FIRST_ALPHA, with the threshold of the case.
    """
    small, zero = case(), torch.tensor([0])
    transitions = Transitions([small.dataset], torch.device("cpu"), compress=True)
    network = PopulationMLP(small.world.mdp.num_states, small.world.mdp.num_actions, (), discrete=True)
    settings = Settings("full", RATE, UPDATES, INTERVAL, learn_alpha, small.threshold)
    with replaced(functions):
        state = algorithm.initial_state(network, [0], [FIRST_ALPHA if learn_alpha else ALPHA], torch.device("cpu"))
        for _ in algorithm.updates(network, transitions, state, zero, zero, name, OBJECTIVE, settings, 0, updates):
            pass
    return state  # which the updates change in place


@contextmanager
def replaced(functions: dict[str, Callable]) -> Iterator[None]:
    """The functions stand in ``cql.losses`` and ``cql.algorithm`` for those of the same names."""
    before = [(module, name, getattr(module, name)) for module in MODULES for name in NAMES if hasattr(module, name)]
    functions = {name: functions[name] for name in NAMES if name in functions}
    if "td_target" in functions:
        functions["td_target"] = _without_truncations(functions["td_target"])
    functions = {name: _checked(name, function) for name, function in functions.items()}
    if "cql_gradient" in functions:
        functions["cql_loss"] = _with_gradient(functions["cql_gradient"], functions.get("cql_loss", losses.cql_loss))
    try:
        for module, name, _ in before:
            setattr(module, name, functions.get(name, getattr(module, name)))
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def _checked(name: str, function: Callable) -> Callable:
    """The function, which must leave its arguments as they are and give a result of the shape of the project's."""
    original, seen = getattr(home(name), name), list[str]()

    @wraps(function)
    def checked(*arguments, **named):
        given = inspect.signature(original).bind(*arguments, **named).arguments
        versions = {key: value._version for key, value in given.items() if isinstance(value, Tensor)}
        result = function(*arguments, **named)
        if name in ("updates", "dual_ascent", "initial_state"):
            return result
        for key, version in versions.items():
            if given[key]._version != version:
                raise ExerciseError(f"{name} changes its argument {key} in place: make a new tensor.")
        if seen:
            return result
        seen.append(name)
        with torch.no_grad():
            right = original(*arguments, **named)
        if result is None and right is not None:
            raise ExerciseError(f"{name} returns nothing: its lines are still to be written.")
        if isinstance(right, Tensor) and (not isinstance(result, Tensor) or result.shape != right.shape):
            got = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ExerciseError(f"{name} must return a tensor {list(right.shape)}, not {got}.")
        return result

    return checked


def _without_truncations(function: Callable) -> Callable:
    """A td_target with the project's arguments, from one that may ask for the truncations of the full batch too."""
    if "truncations" not in inspect.signature(function).parameters:
        return function
    truncations = torch.from_numpy(case().dataset.compress().truncations)[None]

    def td_target(rewards, terminations, next_values, gamma):
        return function(rewards, terminations, truncations, next_values, gamma)

    return td_target


def _with_gradient(gradient: Callable, cql_loss: Callable) -> Callable:
    """A cql_loss whose derivative by Q is that of the function."""
    def with_gradient(q_values, actions, targets, alpha, td_loss, penalty, temperature, action_weights, weights):
        terms = cql_loss(q_values, actions, targets, alpha, td_loss, penalty, temperature, action_weights, weights)
        by_hand = gradient(q_values.detach(), actions, targets, alpha, td_loss, weights)
        return terms._replace(total=(q_values * by_hand).sum((-1, -2)))

    return with_gradient


def _words(error: BaseException, path) -> str:
    """An error in a line, with the line of the file that it comes from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"line {lines[-1]}: " if lines else ""
    try:
        message = str(error).splitlines()[0]
    except Exception:  # it is empty, or of a class whose __str__ raises
        message = "no message"
    return f"{where}{type(error).__name__}: {message}".rstrip(".")
