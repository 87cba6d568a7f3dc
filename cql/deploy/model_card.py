"""What an entry of a registry holds and its card says, taken from a run."""

import hashlib
import json
from pathlib import Path

from cql.analysis.audit import ExactTables, audit_policy
from cql.cloned import cloned_episodes
from cql.deploy.model import CONFIG, DATA, MODEL, POLICY, Model
from cql.errors import ConfigError, DatasetError, RunError
from cql.run_folder import MANIFEST, RunFolder, commit, versions

CARD_KEYS = {"id", "member", "registered", "files", "data_digest", "config", "evaluation", "audit", "no_audit",
             "versions", "commit"}
NAMES = {"actions", "features"}  # of the card too, but for those of earlier versions


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
               POLICY: f"policies/{model.member.name}.pt", **({} if model.config.model is None else {MODEL: MODEL})}
    contents = {name: (run.path / source).read_bytes() for name, source in sources.items()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    manifest = run.read_json(MANIFEST) if (run.path / MANIFEST).is_file() else {}
    if manifest and any(digests[name] != manifest["files"].get(source) for name, source in sources.items()):
        raise RunError(f"{run.path} changed while it was read.")
    audit, no_audit = _audit_of(model)
    return contents, {"id": id_of(digests), "member": model.member.name, "registered": None, "files": digests,
                      "data_digest": digests[DATA], "actions": model.actions, "features": model.features,
                      "config": json.loads(contents[CONFIG]),
                      "evaluation": _evaluation_of(run, model), "audit": audit, "no_audit": no_audit,
                      "versions": {"run": manifest.get("versions"), "registry": versions()},
                      "commit": {"run": manifest.get("commit"), "registry": commit()}}


def _evaluation_of(run: RunFolder, model: Model) -> dict:
    """The member's entry of the run's evaluation, with what that holds for all."""
    path = run.path / "evaluation.json"
    try:
        evaluation = run.read_json(path.name)
        wanted = vars(model.member).items()
        [entry] = [found for found in evaluation["members"] if all(found.get(k) == v for k, v in wanted)]
        common = ("environment", "references", "rollout_episodes", "rollout_seed")
        return {**entry, **{name: evaluation[name] for name in common}}
    except (KeyError, TypeError, AttributeError, ValueError):
        reason = f"has no sound entry of {model.member.name}" if path.exists() else "is missing"
        raise RunError(f"{path} {reason}: evaluate the run first.") from None


def _audit_of(model: Model) -> tuple[dict | None, str | None]:
    """The member's audit without its per-state arrays, or why there is none."""
    try:
        tables = ExactTables(model.dataset, model.world, model.config.objective,
                             [] if model.final_alpha is None else [model.final_alpha])
    except (RunError, DatasetError, ConfigError) as error:
        return None, str(error)
    cloned = cloned_episodes(model.config, model.dataset, model.world)
    return audit_policy(tables, model.policy, model.final_alpha, cloned)[0], None
