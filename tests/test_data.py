"""``python -m cql data``: a table becomes the data set that its rows say, a card says what a data set holds, and what
is broken is refused in one sentence, with nothing written."""

import datetime
import re

import numpy as np
import pytest

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

import train  # noqa: E402
from cql.analysis.data_card import logged_return, recommended  # noqa: E402
from cql.collect import findings, summary  # noqa: E402
from cql.commands import data  # noqa: E402
from cql.config import Config  # noqa: E402
from cql.data_table import dataset_of_table  # noqa: E402
from cql.dataset import OfflineDataset  # noqa: E402
from cql.errors import DatasetError  # noqa: E402
from tests.test_dataset import arrays, collected  # noqa: E402

pytestmark = pytest.mark.slow
FLAGS = {"episode": "patient", "step": "t", "action": "dose", "reward": "r", "features": ("age", "hr")}
TABLE = dict(patient=["b", "a", "a", "b", "b"], t=[1, 0, 1, 0, 2], dose=["low", "high", "low", "none", "low"],
             r=[0.5, 0, 1, -1, 2.5], age=[60, 50, 51, 60, 60], hr=[80.5, 70, 71, 79, 81], ended=[0, 0, 1, 0, 0])


def written(folder, kind="csv", **changes):
    """The path of a table with these columns changed, left out (None) or added."""
    table = {name: column for name, column in {**TABLE, **changes}.items() if column is not None}
    path = folder / f"table.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.table(table), path)
    else:
        lines = [",".join(table), *(",".join(map(str, row)) for row in zip(*table.values()))]
        path.write_text("\n".join(lines) + "\n")
    return path


def imported(path, *further, **changes):
    """The exit status of ``data import`` with the usual columns, those of ``changes`` exchanged."""
    words = ["import", str(path), "--to", str(path.parent / "out.npz"), *further]
    for name, value in {**FLAGS, **changes}.items():
        words += [] if value is None else [f"--{name}", *([value] if isinstance(value, str) else value)]
    return data.main(words)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_in_any_order_become_transitions(kind, tmp_path, capsys):
    path = written(tmp_path, kind)
    assert imported(path) == 0
    assert "5 transitions, 2 episodes, 0 of them cut off" in capsys.readouterr().out
    found = OfflineDataset.load(tmp_path / "out.npz")
    assert found.episode_ids.tolist() == [0, 0, 1, 1, 1]  # a before b
    assert found.observations.tolist() == [[50, 70], [51, 71], [60, 79], [60, 80.5], [60, 81]]
    assert found.next_observations.tolist() == [[51, 71], [51, 71], [60, 80.5], [60, 81], [60, 81]]
    assert found.actions.tolist() == [0, 1, 2, 1, 1] and found.rewards.tolist() == [0, 1, -1, 0.5, 2.5]
    assert found.terminations.tolist() == [False, True, False, False, True] and not found.truncations.any()
    assert found.metadata == {"action_names": ["high", "low", "none"], "feature_names": ["age", "hr"],
                              "num_actions": 3, "source": path.name}
    assert found.episode_returns().tolist() == [1, 2] and not found.breaks.size


def test_the_last_row_of_an_episode_that_was_cut_off_gives_the_observation_that_follows(tmp_path, capsys):
    path = written(tmp_path, dose=["low", "high", "low", "none", ""], r=[0.5, 0, 1, -1, ""])
    assert imported(path, "--horizon", "9", terminal="ended") == 0
    assert "4 transitions, 2 episodes, 1 of them cut off" in capsys.readouterr().out
    found = OfflineDataset.load(tmp_path / "out.npz")
    assert found.next_observations.tolist() == [[51, 71], [51, 71], [60, 80.5], [60, 81]]
    assert found.terminations.tolist() == [False, True, False, False]
    assert found.truncations.tolist() == [False, False, False, True] and found.metadata["horizon"] == 9
    assert imported(path, terminal=None) == 2
    assert "dose is missing in row 5, the first of 1" in capsys.readouterr().err


def test_an_episode_of_one_row_that_was_cut_off_holds_no_transition(tmp_path):
    path = written(tmp_path, patient=["b", "a", "a", "b", "c"], t=[1, 0, 1, 0, 0], ended=[1, 0, 0, 0, 0])
    found = dataset_of_table(path, **FLAGS, terminal="ended")
    assert found.episode_ids.tolist() == [0, 1, 1] and found.truncations.tolist() == [True, False, False]
    assert found.terminations.tolist() == [False, False, True] and found.rewards.tolist() == [0, -1, 0.5]


def test_labels_of_states_and_numbers_as_actions_are_numbered_in_order(tmp_path):
    path = written(tmp_path, dose=[2.5, 10, 2.5, 0, 2.5], ward=["icu", "er", "icu", "er", "home"])
    found = dataset_of_table(path, **{**FLAGS, "features": (), "state": "ward"})
    assert found.metadata["state_names"] == ["er", "home", "icu"] and found.num_states == 3
    assert found.observations.tolist() == [0, 2, 0, 2, 1] and found.next_observations.tolist() == [2, 2, 2, 1, 1]
    assert found.metadata["action_names"] == ["0", "2.5", "10"] and found.actions.tolist() == [2, 1, 0, 1, 1]


def test_steps_may_be_times(tmp_path):
    times = [datetime.datetime(2024, 1, 1, 4 * hour) for hour in (1, 0, 1, 0, 2)]
    assert imported(written(tmp_path, "parquet", t=times)) == 0
    assert imported(written(tmp_path, t=times)) == 0
    assert OfflineDataset.load(tmp_path / "out.npz").rewards.tolist() == [0, 1, -1, 0.5, 2.5]


@pytest.mark.parametrize("changes, sentence", [
    (dict(hr=None), "has no column hr: its columns are patient, t, dose, r, age, ended."),
    (dict(patient=None), "has no column patient"),
    (dict(age=[60, "", 51, 60, 60]), "age is missing in row 2, the first of 1: leave such rows out or fill them in"),
    (dict(hr=[80, 70, "NaN", 79, "NA"]), "hr is missing in row 3, the first of 2"),
    (dict(hr=[80, 70, "high", 79, 81]), "hr is no number in row 3: 'high'."),
    (dict(hr=[80, 70, "inf", 79, 81]), "hr is not finite in row 3."),
    (dict(r=[1, 2, "3 points", 4, 5]), "r is no number in row 3: '3 points'."),
    (dict(r=[1, "", 3, 4, 5]), "r is missing in row 2"),
    (dict(r=[1, 1e31, 3, 4, 5]), "rewards must lie between"),
    (dict(hr=[80, 70, 1e39, 79, 81]), "hr is larger than float32 can hold in row 3."),
    (dict(patient=[10**20, 1, 1, 10**20, 10**20 + 1]), "patient holds numbers too large to be told apart"),
    (dict(r=[0, 0, 0, 0, 0]), "every r is 0: no policy is better than another."),
    (dict(dose=["low"] * 5), "dose is low in every row: there is no choice to learn."),
    (dict(patient=["b", "a", "", "b", "b"]), "patient is missing in row 3"),
    (dict(t=[1, 0, 1, 0, 1]), "rows 1 and 5 have the same episode and the same t."),
    (dict(t=[1, 0, 1, 0, 7]), "rows 1 and 5 of an episode are farther apart in t than others: a decision is missing"),
    (dict(t=[1, 0, "later", 0, 2]), "t is no number in row 3: 'later'."),
    (dict(t=[1, "", 1, 0, 2]), "t is missing in row 2"),
    (dict(age=["2024-01-01"] * 5), r"age holds date32\[day\], not numbers."),
])
def test_a_broken_table_is_one_sentence_and_writes_nothing(changes, sentence, tmp_path, capsys):
    assert imported(written(tmp_path, **changes)) == 2
    refused(capsys, sentence, tmp_path, {"table.csv"})


def refused(capsys, sentence, folder, files):
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(DatasetError, match=sentence):
        raise DatasetError(error)
    assert {path.name for path in folder.iterdir()} == files


@pytest.mark.parametrize("changes, sentence", [
    (dict(features=None), "give --features, the columns of numbers that a policy sees, or --state, one of labels."),
    (dict(state="dose"), "give --features, the columns"),
    (dict(features=("age", "age")), "--features names a column twice."),
    (dict(features=("age", "patient")), "patient names the episode: that is no feature or state, since every new one"),
    (dict(features=None, state="patient"), "patient names the episode: that is no feature or state"),
    (dict(features=("age", "dose")), "dose is known only once the action is chosen: a policy cannot see it."),
    (dict(terminal="t"), "t must be true or false .0 or 1., not 2 as in row 5."),
    (dict(terminal="early"), "row 4 is not its episode's last, but early says so."),
    (dict(to="nowhere/out.npz"), "--to nowhere/out.npz: there is no folder nowhere."),
    (dict(horizon="2"), "an episode has 3 steps, the horizon in the metadata is 2."),
])
def test_wrong_columns_are_one_sentence_and_write_nothing(changes, sentence, tmp_path, capsys):
    assert imported(written(tmp_path, early=[0, 0, 1, 1, 1]), **changes) == 2
    refused(capsys, sentence, tmp_path, {"table.csv"})


@pytest.mark.parametrize("name, contents, sentence", [
    ("table.csv", b"", "cannot be read as a table"),
    ("table.csv", b"patient,t,dose,r,age,hr\n", "has no rows."),
    ("table.csv", b"patient,t,dose,r,age,hr\nb,1,low\n", "cannot be read as a table .*Expected 6 columns, got 3"),
    ("table.csv", b"patient,t,dose,r,age,hr,hr\nb,1,low,1,2,3,4\n", "has more than one column hr"),
    ("table.csv", b"patient;t;dose;r;age;hr\nb;1;low;1;2;3\n", "has no column patient: its columns are patient;t;dose"),
    ("table.parquet", b"PAR1 and nothing else", "cannot be read as a table"),
    ("table.csv", b"patient,t,dose,r,age,hr\nb,1,\xfcber,1,2,3\nb,2,b,1,2,3\n", "dose holds text that is not UTF-8"),
    ("table.xlsx", b"", "is neither .csv nor .parquet."),
])
def test_a_file_that_is_no_table_is_one_sentence(name, contents, sentence, tmp_path, capsys):
    (tmp_path / name).write_bytes(contents)
    assert imported(tmp_path / name) == 2
    refused(capsys, sentence, tmp_path, {name})


def test_a_data_set_that_stood_there_survives_a_broken_table(tmp_path, capsys):
    assert imported(written(tmp_path)) == 0
    before = (tmp_path / "out.npz").read_bytes()
    assert imported(written(tmp_path, r=[0] * 5)) == 2 and (tmp_path / "out.npz").read_bytes() == before
    assert imported(tmp_path / "none.csv") == 2 and "there is no table at" in capsys.readouterr().err
    assert data.main("import a.csv --to a.csv --episode e --step t --action a --reward r --state s".split()) == 2
    assert "--to a.csv must end in .npz" in capsys.readouterr().err


def test_uneven_steps_are_taken_where_they_are_said_to_be(tmp_path):
    assert imported(written(tmp_path, t=[1, 0, 1, 0, 7]), "--irregular") == 0
    assert OfflineDataset.load(tmp_path / "out.npz").rewards.tolist() == [0, 1, -1, 0.5, 2.5]
    assert imported(written(tmp_path, t=[240, 0, 240, 0, 480])) == 0  # every four hours, in minutes
    assert imported(written(tmp_path, t=[0.1, 0, 0.1, 0, 0.2])) == 0  # 0.2 - 0.1 rounds


def test_the_metadata_keep_names_and_a_horizon_that_fit():
    names = {"action_names": ["a", "b", "c"], "state_names": ["p", "q", "r", "s"], "horizon": 3}
    assert OfflineDataset.from_arrays(**arrays(), metadata=names).metadata.items() >= names.items()
    for wrong, sentence in (({"action_names": ["a", "b"]}, "action_names in the metadata must be 3 different texts"),
                            ({"state_names": ["a", "b", "a", "c"]}, "state_names in the metadata must be 4 different"),
                            ({"action_names": [1, 2, 3]}, "must be 3 different texts"),
                            ({"horizon": 2}, "an episode has 3 steps, the horizon in the metadata is 2"),
                            ({"horizon": 0}, "horizon in the metadata must be an integer from 1")):
        with pytest.raises(DatasetError, match=sentence):
            OfflineDataset.from_arrays(**arrays(), metadata=wrong)
    vectors = np.array([[1.0, 2], [3, np.nan], [5, 6], [7, np.inf]])
    for metadata, name in (({}, "1"), ({"feature_names": ["age", "hr"]}, "hr")):
        with pytest.raises(DatasetError, match=rf"first in transition 1, feature {name} \(2 in all\)"):
            OfflineDataset.from_arrays(**arrays(observations=vectors, next_observations=vectors), metadata=metadata)


# ------------------------------------------------------------------------------------------------------------- the card


def test_the_card_of_a_table(tmp_path, capsys):
    imported(written(tmp_path, hr=[2**24, 2**24 + 1, 2**24, 2**24 + 3, 2**24], age=[1] * 5))
    capsys.readouterr()
    assert data.main(["check", str(tmp_path / "out.npz")]) == 0
    text = capsys.readouterr().out
    assert "transitions 5   episodes 2   return 1.5 ± 0.7" in text
    assert "logged return 1.5 (2 episodes, too few for an interval)" in text
    assert [line.split() for line in text.splitlines() if line.startswith(("high", "low", "none"))] == [
        ["high", "1", "0.2000"], ["low", "3", "0.6000"], ["none", "1", "0.2000"]]
    assert "age" in text and "constant" in text and "nothing was found to be wrong" in text
    assert (f"python train.py --dataset {tmp_path / 'out.npz'} --alpha 0.1 0.3 1 3 --bc-steps 20000 "
            "--steps 20000 --lr 0.0003\n") in text


def test_the_card_counts_what_float32_would_lose_in_each_feature(tmp_path, capsys):
    seconds = 1.7e9 + np.arange(4)[:, None]
    np.savez(tmp_path / "plain.npz", **arrays(observations=np.hstack([seconds, [[0.0], [1], [1], [0]]]),
                                              next_observations=np.hstack([seconds, [[0.0], [1], [1], [0]]]),
                                              terminations=[True] * 4, truncations=None, episode_ids=None) | {
             "truncations": np.zeros(4), "episode_ids": np.arange(4)})
    assert data.main(["check", str(tmp_path / "plain.npz")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0", "1.7e+09", "1.7e+09", "1.7e+09", "4", "kept", "in", "float64", "for", "3", "values"] in lines
    assert ["1", "0", "0.5", "1", "2", "binary"] in lines


@pytest.mark.parametrize("changes, status, sentence", [
    (dict(actions=[1, 2, 1, 3]), 1, "found: action 0 is never logged and all others are: if actions are numbered"),
    (dict(actions=[1, 1, 1, 1]), 1, "found: one action alone is logged"),
    (dict(rewards=[0, 0, 0, 0]), 1, "found: every reward is 0"),
    (dict(next_observations=[0, 1, 2, 0]), 1, "found: episodes are broken in 2 places, first after transition 0"),
    (dict(dose=[1, 2, 3, 4]), 2, "has dose: the arrays of a data set are observations, actions"),
    (dict(rewards=[0, 1, np.nan, 0]), 2, "rewards holds NaN or infinite numbers, first in transition 2 (1 in all)"),
    (dict(actions=None), 2, "lacks the array actions"),
])
def test_what_may_be_wrong_is_found(changes, status, sentence, tmp_path, capsys):
    given = {name: array for name, array in {**arrays(**changes)}.items() if array is not None}
    np.savez(tmp_path / "plain.npz", **given)
    assert data.main(["check", str(tmp_path / "plain.npz")]) == status
    out, error = capsys.readouterr()
    assert sentence in (out if status == 1 else error) and (status == 1 or error.count("\n") == 1)
    assert [path.name for path in tmp_path.iterdir()] == ["plain.npz"]


def test_train_says_what_the_check_finds(tmp_path, capsys):
    np.savez(tmp_path / "plain.npz", **arrays(actions=[1, 2, 1, 3]))
    assert train.main(["--dataset", str(tmp_path / "plain.npz"), "--steps", "1", "--bc-steps", "1", "--hidden", "4",
                       "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    assert "note: action 0 is never logged and all others are" in capsys.readouterr().out


def test_what_cannot_happen_in_the_environment_is_found(tmp_path, capsys):
    jump = dict(observations=[0], actions=[2], rewards=[0.0], next_observations=[15], terminations=[True])
    np.savez(tmp_path / "jump.npz", **jump)
    assert data.main(["check", str(tmp_path / "jump.npz"), "--env", "FrozenLake-v1", "--max-episode-steps", "100"]) == 1
    text = capsys.readouterr().out
    assert "action 2 in state 0 cannot lead to state 15" in text
    assert "--env FrozenLake-v1 --max-episode-steps 100" in text


def test_what_is_recommended_follows_the_data():
    table = collected(20)
    assert recommended(table, Config()) == Config()  # the GridWorld's defaults are for it
    plain = OfflineDataset.from_arrays(**arrays())
    assert recommended(plain, Config()).hidden == (64, 64) and recommended(plain, Config()).full_batch
    random = np.random.default_rng(0).normal(size=(5000, 2))
    many = OfflineDataset.from_arrays(random, np.arange(5000) % 2, np.ones(5000), random, np.ones(5000))
    chosen = recommended(many, Config())
    assert (chosen.lr, chosen.batch_size, chosen.alpha) == (3e-4, 256, (0.1, 0.3, 1, 3))
    assert chosen.steps / chosen.target_interval >= 1 / (1 - chosen.gamma)
    assert not findings(many)
    assert summary(many).splitlines()[2] == ("visited states 5,000   visited state-action pairs 5,000 of 10,000   "
                                             "distinct transitions 5,000")


def test_the_logged_return_has_students_interval():
    states = np.zeros(16, int)
    logged = OfflineDataset.from_arrays(states, np.arange(16) % 2, np.arange(16.0), states, np.ones(16))
    assert logged_return(logged) == "7.5 [4.963, 10.04] (mean of 16 episodes, 95% interval)"  # ± 2.131 · 4.761 / 4


def test_the_check_lists_the_settings_that_it_takes(tmp_path, capsys):
    """Those that say how data are generated are none of them."""
    np.savez(tmp_path / "plain.npz", **arrays())
    with pytest.raises(SystemExit):
        data.main(["check", "--help"])
    listed = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    assert listed == {"--env", "--env-args", "--map", "--slip", "--observation", "--max-episode-steps", "--model",
                      "--split-episodes"}
    for generated in ("--episodes", "--epsilon", "--data-seed", "--num-datasets", "--dataset"):
        with pytest.raises(SystemExit):
            data.main(["check", str(tmp_path / "plain.npz"), generated, "1"])
        assert f"unrecognized arguments: {generated} 1" in capsys.readouterr().err


def test_the_step_may_be_a_feature(tmp_path):
    assert imported(written(tmp_path), features=("age", "t")) == 0
    assert OfflineDataset.load(tmp_path / "out.npz").metadata["feature_names"] == ["age", "t"]


def test_the_card_says_what_masks_leave(tmp_path, capsys):
    seen, masks = np.eye(3)[[0, 1, 2, 0]], np.array([[1, 1], [1, 0], [1, 1], [1, 1]])
    np.savez(tmp_path / "masks.npz", **arrays(observations=seen, next_observations=seen, actions=[0, 0, 1, 1],
                                              terminations=[True] * 4, truncations=[False] * 4), action_masks=masks)
    assert data.main(["check", str(tmp_path / "masks.npz")]) == 0
    assert "masks: 1.7 of 2 actions exist at a distinct observation, on average" in capsys.readouterr().out
