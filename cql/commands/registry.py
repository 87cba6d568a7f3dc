"""The command over a registry of trained members (`cql.deploy.store`):

    python -m cql registry REG register RUN | list | show ID | promote ID --why … | rollback --why … | verify

Keep the head that ``verify`` prints somewhere else, and give it back with ``--head``.
"""

import argparse
import getpass
import json
import sys
from dataclasses import fields

from cql.deploy import gate
from cql.deploy.gate import Limits
from cql.deploy.store import Refused, Registry
from cql.errors import RunError, reports_errors
from cql.text import aligned, number


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cql registry",
                                     description="Trained members: registered, promoted, verified.")
    parser.add_argument("registry", metavar="REG", help="the registry's folder; the first registration makes it")
    commands = parser.add_subparsers(dest="command", required=True)
    register = commands.add_parser("register", help="take a member of a finished run in")
    register.add_argument("run", metavar="RUN")
    register.add_argument("--member", metavar="NAME", help="cql-a6-s42-d42; without it, the run's only CQL member")
    commands.add_parser("list", help="every entry, a line each")
    show = commands.add_parser("show", help="what the card of an entry says")
    promote = commands.add_parser("promote", help="put an entry into service if it meets the limits")
    for command in (show, promote):
        command.add_argument("id", metavar="ID", help="or its first digits, at least 4")
    show.add_argument("--json", action="store_true", help="the whole card")
    rollback = commands.add_parser("rollback", help="put the entry promoted before back into service")
    for command in (register, promote, rollback):
        command.add_argument("--by", metavar="NAME", help="who does it (default: the user's name)")
    for command in (promote, rollback):
        command.add_argument("--why", required=True, metavar="TEXT", help="stands in the record")
    defaults = {each.name: each.default for each in fields(Limits)}
    for name, said in (("max_hazard", "largest hazard probability"), ("min_return", "least return"),
                       ("max_unsupported", "largest share of steps with an action not in the data"),
                       ("confidence", "of the limits where the model is not known exactly"),
                       ("episodes", "of the test set there")):
        promote.add_argument(f"--{name.replace('_', '-')}", type=type(defaults[name]), default=defaults[name],
                             metavar="X", help=f"{said} (default %(default)s)")
    verify = commands.add_parser("verify", help="every file and every record against its digest")
    verify.add_argument("--head", metavar="SHA", help="an earlier head: it must still be the digest of a record")
    return parser.parse_args(argv)


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """0; 1 where a gate refused or ``verify`` found something; 2 for what cannot be done."""
    arguments = parse(argv)
    try:
        return _run(Registry(arguments.registry), arguments)
    except Refused as refused:
        print(f"{gate.table(refused.record['gate'])}\n{refused.record['id']} is refused:", file=sys.stderr)
        for reason in refused.record["gate"]["reasons"]:
            print(f"- {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: list and show say whether it was done.") from None


def _run(registry: Registry, arguments: argparse.Namespace) -> int:
    command = arguments.command
    if command == "register":
        id, new = registry.registered(arguments.run, arguments.member, _name(arguments.by))
        done = "registered" if new else "is registered already, nothing was changed"
        print(f"{id}  {registry.card(id)['member']}  {done}")
    elif command == "list":
        print(_listed(registry.entries(), registry.promoted()))
    elif command == "show":
        card = registry.card(arguments.id)
        print(json.dumps(card, indent=2) if arguments.json else _shown(card, registry.history().records))
    elif command == "promote":
        limits = Limits(**{each.name: getattr(arguments, each.name) for each in fields(Limits)})
        record = registry.promote(arguments.id, _name(arguments.by), arguments.why, limits)
        print(f"{gate.table(record['gate'])}\n{record['id']} is in service (record {record['n']}).")
    elif command == "rollback":
        record = registry.rollback(_name(arguments.by), arguments.why)
        print(f"{record['id']} is in service again (record {record['n']}).")
    else:
        problems = registry.verify(arguments.head)
        for problem in problems:
            print(problem)
        if problems:
            print(f"{registry.path}: {len(problems)} problem(s)")
            return 1
        history = registry.history()
        print(f"{registry.path}: sound, {len(history.cards)} entries, {len(history.records)} records")
        print(f"head {history.head}")
    return 0


def _name(by: str | None) -> str:
    if by is not None:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        raise RunError("the user has no name here: give --by.") from None


def _listed(cards: list[dict], promoted: str | None) -> str:
    """Cards as a table."""
    if not cards:
        return "no entries"
    rows = [("", "id", "member", "registered", "return", "hazard", "unsupported")]
    for card in cards:
        exact = card["evaluation"].get("exact") or {}
        rows.append(("*" if card["id"] == promoted else "", card["id"], card["member"], card["registered"],
                     number(exact.get("return"), ".2f"), number(exact.get("hazard_probability"), ".4f"),
                     number(card["evaluation"].get("exact_unsupported_action_rate"), ".4f")))
    note = "return, hazard, unsupported: exact, of an episode; – where the model is not known.   "
    return "\n".join([*aligned(rows, left=range(4)), "",
                      note + ("* in service." if promoted else "None is in service.")])


def _shown(card: dict, records: list[dict]) -> str:
    """The card as text, and what was recorded of its entry."""
    evaluation, audit = card["evaluation"], card["audit"] or {"none": card["no_audit"]}
    rows = [*((name, card[name]) for name in ("id", "member", "registered")),
            *((name, ", ".join(card[name])) for name in ("actions", "features") if card.get(name)),
            *_leaves("sha256", card["files"]), *_leaves("commit of", card["commit"]),
            *_leaves("version of", card["versions"]),
            *(leaf for name in ("environment", "exact", "rollout") for leaf in _leaves(name, evaluation[name])),
            *(leaf for name in ("none", "distance", "start", "hazard", "kl_mean", "kl_max") if name in audit
              for leaf in _leaves(f"audit: {name}", audit[name])),
            *((f"{each['action']} {each['time']}", f"by {each['by']}" + f": {each['why']}" * bool(each["why"]))
              for each in records if each["id"] == card["id"])]
    printable = [tuple("".join(c if c.isprintable() else "?" for c in cell) for cell in row) for row in rows]
    return "\n".join(aligned(printable, left=range(2)))


def _leaves(name: str, value) -> list[tuple[str, str]]:
    """Every number and text of nested dictionaries, under its names; lists are left out."""
    if isinstance(value, dict):
        return [leaf for key, each in value.items() for leaf in _leaves(f"{name} {key.replace('_', ' ')}", each)]
    return [] if isinstance(value, list) else [(name, value if isinstance(value, str) else number(value, ".6g"))]
