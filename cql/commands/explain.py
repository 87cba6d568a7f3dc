"""``python -m cql explain RUN --state 31 --action 1``: an explanation as numbers and in plain words."""

import argparse
import json
import sys

from cql.deploy.explanation import Explainer
from cql.deploy.explanation_text import table
from cql.deploy.language_model import AskError, ask
from cql.deploy.model import Model
from cql.errors import RunError, reports_errors

ASK_FAILED = 3  # exit status where the numbers were printed and the language model had no answer


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cql explain", description=(
        "Why a model acts as it does in a state: its numbers, and a paragraph in plain words."),
        epilog=f"Exit status: 0; 2 for bad input; {ASK_FAILED} where only the language model failed.")
    parser.add_argument("run", metavar="RUN", help="a finished run, or the folder of a registry's entry")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--state", type=int, metavar="N", help="the number of a state")
    where.add_argument("--cell", type=int, nargs=2, metavar=("ROW", "COLUMN"),
                       help="a cell of a grid, from 0 at the top left")
    where.add_argument("--observation", type=float, nargs="+", metavar="X", help="an observation vector")
    parser.add_argument("--action", metavar="A",
                        help="its number or word, as down (default: the action the model chooses)")
    parser.add_argument("--mask", type=int, nargs="+", metavar="0|1",
                        help="with --observation: whether each action exists there, 1 or 0")
    parser.add_argument("--member", metavar="NAME", help="of a run with several")
    parser.add_argument("--json", action="store_true", help="print the explanation as JSON")
    parser.add_argument("--ask", metavar="URL",
                        help="also send it to a language model (extra llm): the base URL of an OpenAI-compatible "
                             "endpoint, as http://127.0.0.1:8080/v1; a key is read from GLASSBOX_API_KEY")
    parser.add_argument("--model", metavar="NAME", help="the language model's name there")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S",
                        help="seconds for the whole answer of the language model (default 30)")
    arguments = parser.parse_args(argv)
    if (arguments.ask is None) != (arguments.model is None):
        parser.error("--ask and --model go together.")
    if not 0 < arguments.timeout <= 3600:
        parser.error("--timeout must be between 0 and 3600 seconds.")
    return arguments


def chosen_observation(model: Model, arguments: argparse.Namespace):
    """The observation that the command line names. Raises RunError if this model has no such one."""
    if arguments.observation is not None:
        if model.dataset.discrete:
            raise RunError("the observations of this model are states: name one with --state.")
        return arguments.observation
    state = arguments.state
    if arguments.cell is not None:
        if model.world.grid is None:
            raise RunError("the states of this model are not the cells of a known grid: --cell does not go with it.")
        (row, column), (rows, columns) = arguments.cell, model.world.grid.shape
        if not (0 <= row < rows and 0 <= column < columns):
            raise RunError(f"the grid has rows 0 to {rows - 1} and columns 0 to {columns - 1}.")
        state = row * columns + column
    if model.dataset.discrete:
        return state
    if model.world.inputs is None:
        raise RunError("the observations of this model are vectors: give one with --observation.")
    if not 0 <= state < len(model.world.inputs):
        raise RunError(f"states go from 0 to {len(model.world.inputs) - 1}.")
    return model.world.inputs[state].tolist()


def chosen_action(model: Model, text: str | None) -> int | None:
    """An action by its number or its word. Raises RunError if there is none of that name."""
    if text is None:
        return None
    names = [name.casefold() for name in model.actions]
    for name in (text.casefold(), f"action {text}"):  # a name that is a number stands as "action 2.5"
        if name in names:
            return names.index(name)
    worded = not any(name.startswith("action ") for name in names)
    if worded and text.isascii() and text.isdigit() and int(text[:9]) < len(names):
        return int(text)
    known = ", ".join(name.removeprefix("action ") for name in model.actions)
    raise RunError(f"there is no action {text!r}: give {f'a number from 0 to {len(names) - 1}, or ' * worded}{known}.")


@reports_errors
def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    model = Model.open(arguments.run, arguments.member)
    observation, action = chosen_observation(model, arguments), chosen_action(model, arguments.action)
    found = Explainer(model).explain(observation, action, arguments.mask)
    if not arguments.json:
        print(f"{table(found)}\n\n{found['text']}", flush=True)
    answer = failure = None
    if arguments.ask is not None:
        try:
            answer = ask(arguments.ask, arguments.model, found, arguments.timeout)
        except AskError as error:
            failure = error
    if arguments.json:
        said = {} if arguments.ask is None else {"language_model": {"name": arguments.model, "text": answer}}
        print(json.dumps({**found, **said}, indent=2, allow_nan=False, ensure_ascii=False))
    elif answer is not None:
        print(f"\nIn the words of the language model {arguments.model}, which may err:\n{answer}")
    if failure is not None:
        print(f"error: {failure}", file=sys.stderr)
        return ASK_FAILED
    return 0
