"""What an entry of a registry holds and its card says: taken from a run, and shown as text."""

import hashlib
import json
from pathlib import Path

from cql.analysis.audit import ExactTables, audit_policy
from cql.cloned import cloned_episodes
from cql.deploy.model import CONFIG, DATA, POLICY, Model
from cql.errors import ConfigError, DatasetError, RunError
from cql.run_folder import MANIFEST, RunFolder, commit, versions
from cql.text import aligned, number

FILES = (CONFIG, DATA, POLICY)  # what an entry's ID is made of
CARD_KEYS = {"id", "member", "registered", "files", "data_digest", "config", "evaluation", "audit", "no_audit",
             "versions", "commit"}


def id_of(digests: dict[str, str]) -> str:
    """Of an entry: 16 hexadecimal digits made of the SHA-256 of its files, by name."""
    return hashlib.sha256("\n".join(f"{name} {digests[name]}" for name in sorted(digests)).encode()).hexdigest()[:16]


def entry_of(path: str | Path, member: str | None) -> tuple[dict[str, bytes], dict]:
    """The files of a member's entry, and its card but for the time: ``registered`` is None.

    Raises:
        RunError: the run is not finished and evaluated, not what its manifest records, or has no such member.
    """
    run = RunFolder.open(path)
    run.check_manifest()
    model = Model.of_run(path, member)
    sources = {CONFIG: "config.json", DATA: f"datasets/{model.member.data_seed}.npz",
               POLICY: f"policies/{model.member.name}.pt"}
    contents = {name: (run.path / source).read_bytes() for name, source in sources.items()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    manifest = run.read_json(MANIFEST) if (run.path / MANIFEST).is_file() else {}
    if manifest and any(digests[name] != manifest["files"].get(source) for name, source in sources.items()):
        raise RunError(f"{run.path} changed while it was read.")
    if not isinstance(manifest.get("versions", {}), dict):
        raise RunError(f"{run.path / MANIFEST} holds versions in no known form.")
    audit, no_audit = _audit_of(model)
    return contents, {"id": id_of(digests), "member": model.member.name, "registered": None, "files": digests,
                      "data_digest": digests[DATA], "config": json.loads(contents[CONFIG]),
                      "evaluation": _evaluation_of(run, model), "audit": audit, "no_audit": no_audit,
                      "versions": {"run": manifest.get("versions"), "registry": versions()},
                      "commit": {"run": manifest.get("commit"), "registry": commit()}}


def _evaluation_of(run: RunFolder, model: Model) -> dict:
    """The member's entry of the run's evaluation, with what that holds for all."""
    try:
        evaluation = run.read_json("evaluation.json")
        wanted = vars(model.member).items()
        [entry] = [found for found in evaluation["members"] if all(found.get(k) == v for k, v in wanted)]
        alone = {name: entry[name] for name in ("exact_unsupported_action_rate", "final_alpha")}
        for numbers in (entry["exact"], entry["rollout"], alone):
            if not all(map(_number_or_none, (numbers or {}).values())):
                raise TypeError("a number is none")
        common = ("environment", "references", "rollout_episodes", "rollout_seed")
        return {**entry, **{name: evaluation[name] for name in common}}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"has no sound entry of {model.member.name}"
        if isinstance(error, RunError):
            reason = f"cannot be read ({error})"
        if not (run.path / "evaluation.json").exists():
            reason = "is missing"
        raise RunError(f"{run.path / 'evaluation.json'} {reason}: evaluate the run first.") from None


def _number_or_none(value) -> bool:
    return value is None or type(value) in (int, float) and abs(value) < 1e300


def _audit_of(model: Model) -> tuple[dict | None, str | None]:
    """The member's audit without its per-state arrays, or why there is none."""
    try:
        tables = ExactTables(model.dataset, model.world, model.config.objective,
                             [] if model.final_alpha is None else [model.final_alpha])
    except (RunError, DatasetError, ConfigError) as error:
        return None, str(error)
    cloned = cloned_episodes(model.config, model.dataset, model.world)
    return audit_policy(tables, model.policy, model.final_alpha, cloned)[0], None


def listed(cards: list[dict], promoted: str | None) -> str:
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


def shown(card: dict, records: list[dict]) -> str:
    """The card as text, and what the log says of its entry."""
    evaluation, audit = card["evaluation"], card["audit"]
    exact, rollout = evaluation.get("exact") or {}, evaluation.get("rollout") or {}
    rows = [("id", card["id"]), ("member", card["member"]), ("registered", card["registered"]),
            *((f"sha256 {name}", digest) for name, digest in card["files"].items()),
            *((f"commit of {who}", str(card["commit"][who] or "–")) for who in ("run", "registry")),
            *((f"versions of {who}", ", ".join(f"{k} {v}" for k, v in (card["versions"][who] or {}).items()) or "–")
              for who in ("run", "registry")),
            ("environment", _environment(evaluation["environment"])),
            *((f"exact {name.replace('_', ' ')}", number(value, ".6g")) for name, value in exact.items()),
            *((f"rollout {name.replace('_', ' ')}", number(value, ".6g")) for name, value in rollout.items())]
    if audit is None:
        rows.append(("audit", card["no_audit"]))
    elif card["member"].startswith("cql"):
        rows += [("audit: |Q - oracle|",
                  f"mean {audit['distance']['mean']:.3g}, largest {audit['distance']['max']:.3g}"),
                 ("audit: value at the start", ", ".join(f"{word} {audit['start'][name]:.4g}" for word, name in (
                     ("learned", "value_estimate"), ("true", "true_value"), ("oracle's", "oracle_value")))),
                 ("audit: hazard chosen",
                  f"in {audit['hazard']['states_by_network']} of the "
                  f"{audit['hazard']['states_with_logged_hazard_action']} states whose data hold one")]
    else:
        rows.append(("audit: KL from the data", f"mean {audit['kl_mean']:.3g}, largest {audit['kl_max']:.3g}"))
    rows += [(f"{record['action']} {record['time']}",
              f"by {record['by']}" + (f": {record['why']}" if record["why"] else ""))
             for record in records if record["id"] == card["id"]]
    printable = [tuple("".join(c if c.isprintable() else "?" for c in cell) for cell in row) for row in rows]
    return "\n".join(aligned(printable, left=range(2)))


def _environment(spec) -> str:
    """What the data name, without the rows of a map."""
    if not isinstance(spec, dict) or not isinstance(spec.get("arguments"), dict):
        return "none"
    steps = spec.get("max_episode_steps")  # None: the environment's own limit
    return ", ".join([f"{spec.get('id')}",
                      *(f"{name} {value}" for name, value in spec["arguments"].items() if name != "desc"),
                      *[f"{steps} steps"] * (steps is not None)])
