"""The eight exercises: what is asked, and the mistakes that each is known for, as edits of the project's own source.

A template is the project's function without its lines, its solution the function itself, and a mistake one edit of the
solution with the sentence that explains it. So all three change with ``losses.py`` and ``algorithm.py``.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

from cql import algorithm, losses

MODULES = (losses, algorithm)
TODO = "    ...  # your lines\n"


class Mistake(NamedTuple):
    """One edit of a solution, and what is said of it. ``{terminations}`` and the like are facts of the small case."""

    old: str
    new: str
    sentence: str


class Exercise(NamedTuple):
    """What is asked.

    Attributes:
        name: of its files. functions: those to write, by their names in ``losses.py`` or ``algorithm.py``.
        adapted: an edit of the source that makes the solution. removed: the lines that a template lacks, or the edit
            that plants its bug; None: a template lacks the lines of the whole function.
    """

    name: str
    task: str
    functions: tuple[str, ...]
    mistakes: tuple[Mistake, ...]
    adapted: tuple[str, str] = ("", "")
    removed: tuple[str, str] | None = None

    @property
    def source(self) -> str:
        """The functions as the project has them, with the private ones that they call."""
        return "\n\n".join(sources(self.functions)).replace(*self.adapted)

    @property
    def solution(self) -> str:
        """The text of the file that solves the exercise."""
        return self._file(self.source)

    @property
    def template(self) -> str:
        """The text of the file to begin with."""
        if self.removed is not None:
            return self._file(self.source.replace(*self.removed))
        return self._file("\n\n".join(without_lines(text) for text in sources(self.functions, private=False)).replace(
            *self.adapted))

    def _file(self, source: str) -> str:
        task = textwrap.fill(f"{self.name.partition('_')[0]}. {self.task}", 116)
        return f'"""{task}\n\nMark it with: python -m cql exercise FILE\n"""\n\n{imports(self.source)}\n\n{source}'

    def wrong(self, mistake: Mistake) -> dict[str, Callable]:
        """The functions with this mistake in them."""
        assert self.source.count(mistake.old) == 1, (self.name, mistake.old)
        return defined(self.source.replace(mistake.old, mistake.new))


def notebook() -> str:
    """The templates as a Jupyter notebook: a cell each, and after it one that marks its functions."""
    intro = ("# Eight exercises\n\nEach cell holds a function of the algorithm without its lines (the last one: with a "
             "bug). Write the lines, run the cell, and run the cell below it: it trains small cases with your function "
             "and says what the exact solution says. The solutions are in `docs/exercises/solutions`; the text behind "
             "them is `docs/tutorial.md`.")
    helper = ("from cql.exercises.marking import ExerciseError, mark\n\n\ndef show(**functions):\n    try:\n"
              "        print(mark(functions)[1])\n    except ExerciseError as error:\n        print(error)")
    cells = [("markdown", intro), ("code", helper)]
    for exercise in EXERCISES:
        _, task, code = exercise.template.split('"""', 2)
        calls = ", ".join(f"{name}={name}" for name in exercise.functions)
        cells += [("markdown", task.partition("\n\nMark it")[0]), ("code", code.strip()), ("code", f"show({calls})")]
    return json.dumps({"cells": [{"cell_type": kind, "id": f"cell-{n}", "metadata": {}, "source": text,
                                  **({"execution_count": None, "outputs": []} if kind == "code" else {})}
                                 for n, (kind, text) in enumerate(cells)],
                       "metadata": {"language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5},
                      indent=1, ensure_ascii=False) + "\n"


def home(name: str) -> ModuleType:
    """The module whose function this is."""
    return next(module for module in MODULES if getattr(module, name, None) is not None
                and getattr(module, name).__module__ == module.__name__)


def sources(names: tuple[str, ...], private: bool = True) -> Iterator[str]:
    """The source of each function; after them that of the private ones that they call."""
    texts = [inspect.getsource(getattr(home(name), name)) for name in names]
    yield from texts
    called = {node.id for node in ast.walk(ast.parse("\n".join(texts))) if isinstance(node, ast.Name)}
    hidden = sorted(name for name in called if name.startswith("_") and hasattr(home(names[0]), name))
    if private and hidden:
        yield from sources(tuple(hidden))


def without_lines(source: str) -> str:
    """A function's signature and documentation."""
    function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    return "".join(source.splitlines(keepends=True)[: function.body[0].end_lineno]) + TODO


def imports(source: str) -> str:
    """The import lines that the source needs, from those of ``losses.py`` and ``algorithm.py``."""
    tree = ast.parse(source)
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - own
    plain: set[str] = set()
    found: dict[str, set[str]] = {}
    for module in MODULES:
        known = {name for name in vars(module) if name in used}
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ImportFrom):
                found.setdefault(node.module, set()).update(names := known & {alias.name for alias in node.names})
                known -= names
            elif isinstance(node, ast.Import):
                plain |= (names := known & {alias.name for alias in node.names})
                known -= names
        found.setdefault(module.__name__, set()).update(known)
    lines = [(name, f"import {name}") for name in sorted(plain)]
    lines += [(name, f"from {name} import {', '.join(sorted(found[name]))}") for name in sorted(found) if found[name]]
    groups = [[line for name, line in lines if (name.partition(".")[0] in ("torch", "cql")) * (
        1 + name.startswith("cql")) == rank] for rank in range(3)]  # standard library, PyTorch, the project
    return "\n\n".join("\n".join(group) for group in groups if group) + "\n"


def defined(source: str) -> dict[str, Callable]:
    """The functions of a source that is run among the project's own names."""
    space = vars(losses) | vars(algorithm)
    exec(compile(source, "<exercise>", "exec"), space)
    return {node.name: space[node.name] for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


EXERCISES = (
    Exercise(
        "1_penalty",
        "The penalty. Write CQL(H)'s penalty of every transition: the logsumexp of Q over the actions minus Q of the "
        "logged action. Only this penalty is asked for: leave the last three arguments alone.",
        ("conservative_penalty",),
        (Mistake(
            "pushed_down - q_taken(q_values, actions)", "pushed_down",
            "Your penalty pushes every action down and pulls the logged one up nowhere: that is Q = y − (α/2) p/β, "
            "below the target on every pair. Subtract Q of the logged action."),
         Mistake(
            "temperature * _weighted(q_values, temperature, action_weights).logsumexp(-1)", "q_values.amax(-1)",
            "Your penalty has a maximum where the logsumexp belongs: only the largest Q of a state is pushed down, "
            "and the penalty is 0 as soon as the logged action is the largest."),
         Mistake(
            "temperature * _weighted(q_values, temperature, action_weights).logsumexp(-1)", "q_values.mean(-1)",
            "Your penalty pushes the mean over the actions down, whatever their Q: it has no lower bound, and OOD "
            "actions fall for ever without taking part in the maximum. Take the logsumexp."),
         Mistake(
            "pushed_down - q_taken(q_values, actions)", "q_taken(q_values, actions) - pushed_down",
            "Your penalty has the wrong sign: it pulls OOD actions up and pushes the logged ones down."))),
    Exercise(
        "2_target",
        "The target. Write the target y = r + γ V(s') of every transition. A terminated step has no next state that "
        "is worth anything.",
        ("td_target",),
        (Mistake(
            "torch.where(terminations, 0.0, next_values)", "next_values",
            "Your target bootstraps through {terminations} terminations; these states show it. After a terminated step "
            "nothing is left to gain, and y is the reward alone. (Terminal cells keep their small initial values "
            "here, so the error is small by luck.)"),
         Mistake(
            "gamma * torch.where", "torch.where",
            "Your target does not discount: multiply the next value by γ."),
         Mistake(
            "rewards + gamma * torch.where(terminations, 0.0, next_values)",
            "gamma * (rewards + torch.where(terminations, 0.0, next_values))",
            "Your target discounts the reward too: γ belongs to the next value alone."),
         Mistake(
            "torch.where(terminations, 0.0, next_values)", "torch.where(terminations, next_values, 0.0)",
            "Your target has the flag the wrong way round: it bootstraps through terminations and nowhere else."))),
    Exercise(
        "3_truncation",
        "Truncation. As exercise 2, but you are told which episodes were cut off by the step limit (the project does "
        "not need to know). Decide for each of the two flags whether the step bootstraps.",
        ("td_target",),
        (Mistake(
            "torch.where(terminations, 0.0", "torch.where(terminations | truncations, 0.0",
            "Your target takes {truncations} truncated steps for terminations: the step limit ended the log, not the "
            "episode's worth, so they bootstrap. These states show it."),
         Mistake(
            "torch.where(terminations, 0.0", "torch.where(truncations, 0.0",
            "Your target ends at truncations and bootstraps through terminations: the two flags are exchanged.")),
        adapted=("terminations: Tensor, next_values: Tensor, gamma: float) -> Tensor:",
                 "terminations: Tensor, truncations: Tensor, next_values: Tensor,\n              gamma: float) "
                 "-> Tensor:")),
    Exercise(
        "4_target_copy",
        "The copy to the target network. The lines of Algorithm 1 that copy Q to Q_target are missing: put them back, "
        "where settings.target_interval says, and before the update.",
        ("updates",),
        (Mistake(
            "                target.copy_(tensor)\n", "                pass\n",
            "Your updates never copy Q to the target network: every target is that of the initial weights, and values "
            "do not travel."),
         Mistake(
            "step % settings.target_interval == 0 and algorithm", "algorithm",
            "Your updates copy Q to the target network before every update. On this small case that ends at the exact "
            "solution, but settings.target_interval is not obeyed: with a network such targets run after themselves."),
         Mistake(
            "target.copy_(tensor)", "tensor.data.copy_(target)",
            "Your updates copy the wrong way: the target network overwrites Q, and what was learned is undone."),
         Mistake(
            "step % settings.target_interval == 0", "(step + 1) % settings.target_interval == 0",
            "Your updates copy one update early: the first copy belongs before update 0, the next before update "
            "settings.target_interval.")),
        removed=("            for target, tensor in zip(state.target, state.parameters):\n"
                 "                target.copy_(tensor)\n", "            ...  # your lines\n")),
    Exercise(
        "5_gradient",
        "The gradient by hand. Write the derivative of the mean loss by Q, without autograd: "
        "[ 2 (Q − y) 1_a + α (softmax Q − 1_a) ] times the transition's share of the batch, which is weights where "
        "they are given. Only td_loss mse and the penalty logsumexp are asked for.",
        ("cql_gradient",),
        (Mistake(
            '"mse": 2 * errors', '"mse": errors',
            "Your gradient has the slope Q − y, that of half the square: your Q is the exact solution at α = 12."),
         Mistake(
            "(p - pulled_up)", "p",
            "Your gradient of the penalty lacks − 1_a: nothing pulls the logged action up."),
         Mistake(
            "gradient / actions.shape[-1] if weights is None else gradient * weights[..., None]",
            "gradient / actions.shape[-1]",
            "Your gradient counts each of the {distinct} distinct transitions once, however often it was logged: use "
            "weights."),
         Mistake(
            "alpha[:, None, None] * (p - pulled_up)", "alpha[:, None, None] * p - pulled_up",
            "Your gradient multiplies the softmax by α, but not the − 1_a beside it."))),
    Exercise(
        "6_learned_alpha",
        "A learned α. Write one step of dual ascent, in place: log α rises by rate times (penalty − threshold), the "
        "difference being clipped to ±1.",
        ("dual_ascent",),
        (Mistake(
            "rate * (penalty - threshold).clamp", "rate * (threshold - penalty).clamp",
            "Your α moves the wrong way: it must rise while the penalty is above the threshold."),
         Mistake(
            "alpha.mul_(", "alpha.mul(",
            "Your α never moves: change the tensor in place, as alpha.mul_ does."),
         Mistake(
            "alpha.mul_(torch.exp(rate * (penalty - threshold).clamp(-1, 1)))",
            "alpha.add_(rate * (penalty - threshold).clamp(-1, 1))",
            "Your step is one in α, not in log α: it takes as long from 1 to 2 as from 1001 to 1002, and may reach "
            "0."))),
    Exercise(
        "7_bc_limit",
        "Behaviour Cloning, the limit of CQL as α grows. Write its loss: the mean cross-entropy of the logged actions, "
        "where weights are given their weighted mean. Its softmax is the frequency β of the logged actions, to which "
        "that of CQL tends.",
        ("bc_loss",),
        (Mistake(
            "batch_mean(conservative_penalty(logits, actions), weights)",
            "conservative_penalty(logits, actions).mean(-1)",
            "Your loss counts each of the {distinct} distinct transitions once, however often it was logged: it clones "
            "another policy. Use weights."),
         Mistake(
            "conservative_penalty(logits, actions)", "-q_taken(logits, actions)",
            "Your loss raises the logits of the logged actions and lowers none: it has no minimum. The logsumexp is "
            "missing."),
         Mistake(
            "conservative_penalty(logits, actions)", "q_taken(logits.softmax(-1), actions).neg()",
            "Your loss is minus the probability of the logged action, without a logarithm: its minimum is the most "
            "frequent action alone, not the frequencies."))),
    Exercise(
        "8_planted_bug",
        "Find the bug. One place in these functions was changed; training runs through all the same. Look for it "
        "before you mark the file: the mark names it.",
        ("cql_loss", "next_values"),
        (Mistake(
            "conservative_penalty(q_values, actions, penalty, temperature, action_weights), weights)",
            "conservative_penalty(q_values, actions, penalty, temperature, action_weights), None)",
            "Your penalty is a plain mean over the {distinct} distinct transitions, while the TD loss counts each as "
            "often as it was logged: the β that it knows is not that of the data."),
         Mistake(
            "td_losses(q_taken(q_values, actions) - targets, td_loss), weights)",
            "td_losses(q_taken(q_values, actions) - targets, td_loss), None)",
            "Your TD loss is a plain mean over the {distinct} distinct transitions: rare outcomes of a pair count as "
            "much as frequent ones."),
         Mistake(
            "td + alpha * mean_penalty", "td + mean_penalty",
            "Your total has no α: Q is the exact solution at α = 1."),
         Mistake(
            "target_values.amax(-1)", "target_values.mean(-1)",
            "Your next value is a mean over the actions, OOD ones among them, in place of the maximum.")),
        removed=("conservative_penalty(q_values, actions, penalty, temperature, action_weights), weights)",
                 "conservative_penalty(q_values, actions, penalty, temperature, action_weights), None)")),
)
