"""Saved policies: act, values, probabilities; alone or in batches; nothing believed of a file."""

import numpy as np
import pytest
import torch

from cql.errors import RunError
from cql.files import contents_digest, load_archive
from cql.network import PopulationMLP
from cql.policy import Policy


def table_policy(algorithm="cql"):
    # Q = [[1, 2, 2], [5, 0, 0]]: in state 0 a tie between actions 1 and 2
    network = PopulationMLP(2, 3, (), discrete=True)
    table = torch.tensor([[[1.0, 2.0, 2.0], [5.0, 0.0, 0.0]]])
    return Policy(network, [table], algorithm, 6.0 if algorithm == "cql" else None, 42, 43)


def vector_policy():
    network = PopulationMLP(2, 3, (8,), discrete=False)
    return Policy(network, network.initial([0]), "bc", None, 1, 2)


def test_acts_alone_and_in_batches_ties_to_the_lowest():
    policy = table_policy()
    assert policy.act(0) == 1 and isinstance(policy.act(np.int64(0)), int)
    assert policy.act([0, 1, 0]).tolist() == [1, 0, 1]
    assert policy.q_values(1).tolist() == [5, 0, 0] and policy.q_values([1]).tolist() == [[5, 0, 0]]
    e = np.exp([1.0, 2.0, 2.0])
    np.testing.assert_allclose(policy.probabilities(0), e / e.sum(), rtol=1e-6)
    assert policy.probabilities([0, 1]).shape == (2, 3)


def test_vectors_alone_and_in_batches():
    policy = vector_policy()
    batch = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(policy.probabilities(batch)[3], policy.probabilities(batch[3]), rtol=1e-5)
    assert policy.act(batch)[3] == policy.act(batch[3])


@pytest.mark.parametrize("discrete", [True, False])
def test_no_action_depends_on_what_else_is_asked(discrete):
    """Two actions whose outputs are equal but for the order of their sums: rounding alone would decide between them."""
    network = PopulationMLP(300 if discrete else 2, 2, (64, 64), discrete)
    parameters = network.initial([0])
    *_, below, below_bias, last, last_bias = (tensor[0] for tensor in parameters)
    half = last[:, :32]  # [A, 32], a view; hidden units 32 to 63 repeat units 0 to 31
    for tensor in (below, below_bias[0]):
        tensor[32:] = tensor[:32]
    last[0, 32:], last[1, :32], last[1, 32:] = half[1].clone(), half[1].clone(), half[0]
    last_bias.zero_()
    policy = Policy(network, parameters, "bc", None, 1, 2)
    observations = np.arange(300) if discrete else np.random.default_rng(0).normal(size=(300, 2))
    together = policy.act(observations)
    assert [policy.act(observation) for observation in observations] == together.tolist()
    for size in (2, 7, 64, 299):
        np.testing.assert_array_equal(policy.act(observations[:size]), together[:size])
        np.testing.assert_array_equal(policy.outputs(observations[-size:]), policy.outputs(observations)[-size:])


def test_bc_has_no_q_values():
    with pytest.raises(ValueError, match="no Q-values"):
        table_policy("bc").q_values(0)


@pytest.mark.parametrize("policy, observation", [
    (table_policy(), 2), (table_policy(), -1), (table_policy(), 0.5), (table_policy(), [[0]]), (table_policy(), "up"),
    (vector_policy(), [1.0]), (vector_policy(), 1.0), (vector_policy(), [[1.0, np.nan]]),
    (vector_policy(), np.zeros((1, 1, 2))), (vector_policy(), ["a", "b"]),
])
def test_observations_of_another_kind_are_refused(policy, observation):
    with pytest.raises(ValueError):
        policy.act(observation)


@pytest.mark.parametrize("make", [table_policy, vector_policy])
def test_saved_and_loaded_is_the_same(tmp_path, make):
    make().save(tmp_path / "p.pt")
    again = Policy.load(tmp_path / "p.pt")
    again.save(tmp_path / "q.pt")
    assert (tmp_path / "p.pt").read_bytes() == (tmp_path / "q.pt").read_bytes()
    observations = [0, 1] if make is table_policy else [[0.1, 0.2], [0.3, -0.4]]
    np.testing.assert_array_equal(again.probabilities(observations), make().probabilities(observations))
    assert (again.algorithm, again.alpha, again.seed, again.data_seed) == (
        make().algorithm, make().alpha, make().seed, make().data_seed)
    assert torch.load(tmp_path / "p.pt", weights_only=True)["contents"]["format"] == 3


def change(name, value):
    return lambda contents: contents | {name: value}


@pytest.mark.parametrize("edit, sentence", [
    (change("format", 9), "format 9"), (change("algorithm", "ppo"), "algorithm 'ppo'"),
    (change("num_actions", 4), "do not fit"), (change("hidden", [3]), "do not fit"),
    (change("observation_space", {"type": "Discrete", "n": -1}), "do not fit"),
    (change("observation_space", 3), "is no policy"), (change("parameters", {}), "do not fit"),
    (change("parameters", {"table": torch.zeros(2, 4)}), "do not fit"),
    (change("parameters", {"table": torch.full((2, 3), torch.nan)}), "finite"),
    (change("parameters", {"table": torch.zeros(2, 3).double()}), "finite float32"),
    (change("parameters", {"table": "weights"}), "is no policy"), (lambda contents: {}, "is no policy"),
    (lambda contents: [1], "is no archive of this project"), (change("alpha", b"bytes"), "of another kind"),
    (change("format", torch.zeros(2)), "is no policy"),
    (change("observation_space", {"type": "Box", "shape": []}), "is no policy"),
])
def test_files_that_are_no_policy(tmp_path, edit, sentence):
    table_policy().save(tmp_path / "p.pt")
    edited = edit(load_archive(tmp_path / "p.pt"))
    try:
        digest = contents_digest(edited)
    except TypeError:
        digest = ""
    torch.save({"contents": edited, "sha256": digest}, tmp_path / "p.pt")
    with pytest.raises(RunError, match=sentence):
        Policy.load(tmp_path / "p.pt")


class Payload:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_pickle_is_not_opened(tmp_path, capsys):
    torch.save({"contents": {"format": Payload()}, "sha256": ""}, tmp_path / "p.pt")
    with pytest.raises(RunError, match="cannot be read"):
        Policy.load(tmp_path / "p.pt")
    assert "never" not in capsys.readouterr().out


def test_damaged_and_missing_files(tmp_path):
    table_policy().save(tmp_path / "p.pt")
    raw = (tmp_path / "p.pt").read_bytes()
    (tmp_path / "p.pt").write_bytes(raw[:200])
    for name, sentence in (("p.pt", "cannot be read"), ("nothing.pt", "there is no file")):
        with pytest.raises(RunError, match=sentence):
            Policy.load(tmp_path / name)
