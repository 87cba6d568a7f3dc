"""The page that is read: its distance from the command line, that it minimises what is logged, a new objective."""

import contextlib
import io
import sys
from pathlib import Path

import pytest
import torch
from markupsafe import escape

import evaluate
import train
from cql import algorithm, losses
from cql.commands import explain
from cql.commands import phase as phase_command
from cql.config import Config
from cql.metrics import read_metrics

ROOT = Path(__file__).parent.parent
TINY = ["--map", "random:6:1", "--episodes", "30", "--hidden", "8", "--bc-steps", "20", "--steps", "40", "--log-every",
        "10", "--target-interval", "10", "--device", "cpu"]


def test_from_the_command_line_to_the_penalty(tmp_path):
    """Six frames in four files, which have 603 lines."""
    stacks = []

    def profile(frame, event, argument):
        if (event == "call" and frame.f_code.co_name == "conservative_penalty"
                and frame.f_back.f_code.co_name == "cql_loss"):
            stack = []
            while frame is not None and frame.f_code.co_name != "test_from_the_command_line_to_the_penalty":
                stack.append(Path(frame.f_code.co_filename))
                frame = frame.f_back
            stacks.append([path for path in stack if path.is_relative_to(ROOT)])

    torch.optim.Adam([torch.zeros(1, requires_grad=True)]).step()  # its first step imports much
    sys.setprofile(profile)
    try:
        assert train.main([*TINY, "--trainer", "plain", "--out", str(tmp_path / "run")]) == 0
    finally:
        sys.setprofile(None)
    assert len(stacks) == 40
    for stack in stacks:
        assert len(stack) <= 6 and len(set(stack)) <= 4
    assert sum(len(path.read_text().splitlines()) for path in set(stacks[0])) <= 603


def test_what_is_minimised_is_what_is_logged(tmp_path, monkeypatch):
    """The very tensors whose gradient is taken, in the log after every update."""
    minimised = []

    def recorded(*arguments, original=losses.cql_loss, **named):
        terms = original(*arguments, **named)
        values = [term.item() for term in terms]
        terms.total.register_hook(lambda gradient: minimised.append((gradient.item(), *values)))
        return terms

    monkeypatch.setattr(algorithm, "cql_loss", recorded)
    assert train.main([*TINY, "--trainer", "plain", "--log-every", "1", "--out", str(tmp_path / "run")]) == 0
    gradients, *columns = zip(*minimised)
    logged = read_metrics(tmp_path / "run/metrics.csv")
    assert set(gradients) == {1.0} and len(gradients) == 40
    for name, column in zip(("losses/td", "losses/penalty", "losses/total"), columns):
        assert logged["cql-a6-s42-d42", name][1] == pytest.approx(column, rel=1e-6)


def test_the_trainer_is_recorded_and_changes_nothing_but_rounding(tmp_path):
    curves = []
    for trainer in ("plain", "fast"):
        assert train.main([*TINY, "--trainer", trainer, "--out", str(tmp_path / trainer)]) == 0
        assert Config.from_json((tmp_path / trainer / "config.json").read_text()).trainer == trainer
        curves.append(read_metrics(tmp_path / trainer / "metrics.csv"))
    assert curves[0].keys() == curves[1].keys()
    for key, (steps, values) in curves[0].items():
        assert curves[1][key][0] == steps and curves[1][key][1] == pytest.approx(values, rel=1e-4, abs=1e-5), key


def test_what_the_engine_does_not_know_is_trained_by_the_page(tmp_path, capsys, monkeypatch):
    updates = []
    monkeypatch.setattr(algorithm, "cql_loss", lambda *arguments, original=losses.cql_loss, **named: (
        updates.append(1) or original(*arguments, **named)))
    assert train.main([*TINY, "--td-loss", "huber", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("the fast trainer does not know Objective(td_loss='huber'") == 1
    assert len(updates) == 40
    assert train.main([*TINY, "--td-loss", "huber", "--trainer", "plain", "--out", str(tmp_path / "other")]) == 0
    assert "does not know" not in capsys.readouterr().out
    name = "policies/cql-a6-s42-d42.pt"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


# ----------------------------------------------------------------------------------- an objective of the paper's family

EQUATION_1 = ["--penalty", "push-down", "--target-policy", "behavior"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eq1") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert train.main([*TINY, *EQUATION_1, "--out", str(folder)]) == 0
    assert "the fast trainer does not know Objective(td_loss='mse', penalty='push-down'" in printed.getvalue()
    return folder


DECLINES = "there is no exact solution to compare with a max for penalty 'push-down'"
ONLY = "this is known of CQL(H) alone, not of an objective with penalty 'push-down'"


def test_it_trains_and_is_logged(run):
    logged = read_metrics(run / "metrics.csv")
    td, penalty, total = (logged["cql-a6-s42-d42", name][1] for name in ("losses/td", "losses/penalty", "losses/total"))
    assert abs(penalty[0]) < 1  # E_mu[Q] of a network that starts near 0, where logsumexp would be log 4
    assert total == pytest.approx([a + 6 * b for a, b in zip(td, penalty)], rel=1e-5)
    assert (run / "policies/cql-a6-s42-d42.pt").exists() and (run / "evaluation.json").exists()
    assert not any(logged["cql-a6-s42-d42", "health/diverged"][1])


def test_the_audit_declines(run, capsys):
    assert evaluate.main([str(run), "--audit"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {DECLINES}") and printed.count("\n") == 1 and not (run / "audit.json").exists()


@pytest.mark.slow
def test_the_report_declines(run):
    assert evaluate.main([str(run), "--report"]) == 0
    page = (run / "report.html").read_text()
    assert page.count(f"There is no exact solution to compare the run with: {escape(ONLY)}") == 1
    assert "|Q − exact Q|" not in page


def test_explain_declines(run, capsys):
    assert explain.main([str(run), "--state", "31"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {ONLY}") and printed.count("\n") == 1


def test_phase_declines(run, tmp_path, capsys):
    assert phase_command.main(["--run", str(run), "--out", str(tmp_path / "phase")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {ONLY}") and printed.count("\n") == 1 and not (tmp_path / "phase").exists()


def test_a_threshold_declines(tmp_path, capsys):
    assert train.main([*TINY, *EQUATION_1, "--penalty-threshold", "1.2", "--out", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: --penalty-threshold: the least penalty is not known for Objective")
    assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()
