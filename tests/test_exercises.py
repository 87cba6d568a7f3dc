"""The exercises: their files are the project's own source, solutions pass, and every mistake gets its own sentence."""

from pathlib import Path

import numpy as np
import pytest

from cql import __main__ as commands
from cql.commands import exercise as command
from cql.exercises import marking
from cql.exercises.catalogue import EXERCISES, sources
from cql.world import exact_solution

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parent.parent / "docs/exercises"
MISTAKES = [(exercise, mistake) for exercise in EXERCISES for mistake in exercise.mistakes]


def named(exercise):
    return getattr(exercise, "name", None) or exercise.sentence[:40]


@pytest.fixture
def sooner(monkeypatch):
    """Marks after 900 updates, when a solution is exact too: two tests wait for all 1,500."""
    monkeypatch.setattr(marking, "UPDATES", 900)


def functions(exercise, mistake) -> dict:
    return {name: exercise.wrong(mistake)[name] for name in exercise.functions}


def test_the_files_are_those_that_the_command_writes(tmp_path):
    """``python -m cql exercise --write DIR`` makes them again."""
    assert command.main(["--write", str(tmp_path / "new")]) == 0
    written = {path.relative_to(tmp_path / "new"): path.read_text() for path in (tmp_path / "new").rglob("*.py")}
    assert len(written) == 16
    notebook = (tmp_path / "new/exercises.ipynb").read_bytes()
    assert notebook == (FOLDER.parent / "notebooks/exercises.ipynb").read_bytes()
    assert written == {path.relative_to(FOLDER): path.read_text() for path in FOLDER.rglob("*.py")}


def test_solutions_are_the_projects_own_source():
    for exercise in EXERCISES:
        text = (FOLDER / "solutions" / f"{exercise.name}.py").read_text()
        changed = "terminations: Tensor, next_values" if exercise.name == "3_truncation" else None
        for source in sources(exercise.functions):
            assert source in text or changed in source


@pytest.mark.parametrize("exercise", EXERCISES, ids=named)
def test_solutions_pass_and_templates_do_not(exercise, capsys, monkeypatch, sooner):
    assert command.main([str(FOLDER / "solutions" / f"{exercise.name}.py")]) == 0
    passed = capsys.readouterr().out
    assert passed.endswith("Passed.\n") and passed.startswith(("Your Q is ", "Your α went ", "Your softmax is "))
    monkeypatch.setattr(marking, "UPDATES", 50)  # a mistake is known by the first 25
    assert command.main([str(FOLDER / f"{exercise.name}.py")]) != 0
    words = capsys.readouterr()
    if exercise.removed is None and exercise.name != "6_learned_alpha":
        assert words.err == (f"error: {exercise.functions[0]} returns nothing: its lines are still to be written.\n")
    else:  # it trains, with something missing
        assert exercise.mistakes[1 if exercise.name == "6_learned_alpha" else 0].sentence.format(
            **marking.case().facts) in words.out


@pytest.mark.parametrize("exercise, mistake", MISTAKES, ids=named)
def test_every_mistake_gets_its_own_sentence(exercise, mistake):
    assert marking.known_mistake(functions(exercise, mistake)) == mistake.sentence


def test_there_are_more_than_twelve_and_no_two_sentences_are_equal():
    assert len({mistake.sentence for _, mistake in MISTAKES}) == len(MISTAKES) >= 12


@pytest.mark.parametrize("name, number, alpha", [("5_gradient", 0, 12.0), ("8_planted_bug", 2, 1.0)])
def test_where_a_sentence_names_another_alpha_q_is_the_solution_there(name, number, alpha, sooner):
    exercise = next(exercise for exercise in EXERCISES if exercise.name == name)
    mistake = exercise.mistakes[number]
    assert f"α = {alpha:g}" in mistake.sentence
    small = marking.case()
    q = marking.trained(functions(exercise, mistake), "cql", marking.UPDATES).parameters[0][0].detach().numpy()
    exact = exact_solution(marking.OBJECTIVE, *small.world.empirical(small.dataset), [alpha]).q[0]
    assert np.abs(q - exact)[small.logged].max() < 1e-3 < np.abs(q - small.q)[small.logged].max()


def test_the_mark_of_a_wrong_file_as_its_author_sees_it(tmp_path, capsys):
    """Through the command line; the numbers are those of the data: 20 terminations, 40 truncations."""
    path = tmp_path / "mine.py"
    path.write_text("def td_target(rewards, terminations, truncations, next_values, gamma):\n"
                    "    done = terminations | truncations\n"
                    "    return rewards + gamma * next_values * (1 - done.float())\n")
    assert commands.main(["exercise", str(path)]) == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == ""
    assert lines[0] == ("Your Q is 38 from the exact solution at α = 6: the largest difference over 35 logged pairs.")
    assert lines[1].startswith("Your target takes 40 truncated steps for terminations")
    assert lines[2].split() == ["state", "action", "logged", "your", "Q", "exact", "Q"]
    assert lines[3].split() == ["(1,3)", "←", "2", "2.00", "39.56"] and len(lines) == 6


def test_a_mistake_nobody_foresaw_is_shown_where_it_is_largest(tmp_path, capsys, sooner):
    path = tmp_path / "mine.py"
    path.write_text("def td_target(rewards, terminations, next_values, gamma):\n    return 0 * rewards + 3\n")
    assert command.main([str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("state") and lines[-1] == "This is none of the mistakes that are known here."


@pytest.mark.parametrize("text, said", [
    (None, "mine.py cannot be read (No such file or directory)."),
    ("def td_target(:", "mine.py is no Python file that runs (SyntaxError: "),
    ("import numpy\nsomething()", "mine.py is no Python file that runs (line 2: NameError: "),
    ("from cql.losses import td_target", "mine.py defines none of the functions that can be marked: td_target, "),
    ("def td_target(*arguments):\n    return arguments[0][0]",
     "td_target must return a tensor [1, 82], not [82]."),
    ("def td_target(*arguments):\n    raise ValueError('no')",
     "the functions cannot be trained with: line 2: ValueError: no."),
    ("def updates(*arguments):\n    pass", "the functions cannot be trained with: TypeError: "),
    ("import sys\nsys.exit(0)", "mine.py is no Python file that runs (line 2: SystemExit: 0)."),
    ("def td_target(*arguments):\n    raise SystemExit",
     "the functions cannot be trained with: line 2: SystemExit: no message."),
    ("class Mute(Exception):\n    def __str__(self):\n        raise self\ndef td_target(*arguments):\n    raise Mute",
     "the functions cannot be trained with: line 5: Mute: no message."),
    ("def td_target(rewards, terminations, next_values, gamma):\n    rewards += 1\n    return rewards",
     "td_target changes its argument rewards in place: make a new tensor."),
    ("async def td_target(*arguments):\n    pass", "td_target is an async function: write def without async."),
])
@pytest.mark.filterwarnings("error")
def test_what_cannot_be_marked_gets_one_sentence(text, said, tmp_path, capsys):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    assert command.main([str(path)]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_file_without_a_name_is_named_in_quotes(capsys):
    assert command.main([""]) == 2
    assert capsys.readouterr().err == "error: '' cannot be read (Is a directory).\n"


def test_what_a_file_prints_is_not_shown(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("print('begun')\n" + (FOLDER / "solutions/2_target.py").read_text().replace(
        "    return ", "    print('called')\n    return "))
    assert command.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("Your Q is ") and lines[1] == "Passed."


def test_the_projects_functions_are_back_afterwards():
    from cql import algorithm, losses

    before = losses.td_target
    with pytest.raises(marking.ExerciseError):
        marking.mark({"td_target": lambda *arguments: None})
    assert losses.td_target is before is algorithm.td_target
