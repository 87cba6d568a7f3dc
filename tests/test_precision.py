"""The setting --precision: what is rounded and how far, where, and for how long; which combinations are refused."""

import argparse

import pytest
import torch

import train as command
from cql import learner, products, training, workers
from cql.analysis import audit
from cql.collect import datasets_for
from cql.config import Config, ConfigError, add_arguments, command_line, from_arguments
from cql.files import write_whole
from cql.networks import PopulationMLP
from cql.population import slices
from cql.products import Matrices
from cql.runs import RunError, RunFolder
from cql.sampling import Transitions
from cql.slice import Slice
from cql.training import refuse_precision

SMALL = Config(episodes=20, hidden=(24, 16), batch_size=16, steps=40, bc_steps=0, num_seeds=2, target_interval=20, device="cpu")
ROUNDING = 2**-8  # of one number to bfloat16, relative: 8 significant bits, to the nearest
MATMUL = torch.backends.cuda.matmul  # its settings are there without a device


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def one_thread_as_in_training():
    with training._torch_settings(torch.device("cpu")):
        torch.set_num_threads(1)
        yield


def part_of(config=SMALL, threads=1):
    datasets = datasets_for(config, {})
    return Slice(slices(config)[-1], config, Transitions(datasets, torch.device("cpu"), compress=config.full_batch), datasets, threads)


def with_precision(precision, **changes):
    return Config(**{**vars(SMALL), "precision": precision, **changes})


# ------------------------------------------------------------------------------------------------- the products


@pytest.mark.parametrize("members, rows, inputs, outputs", [(1, 64, 128, 160), (3, 20, 24, 16), (2, 3, 5, 4)])
def test_bfloat16_products_are_those_of_rounded_operands_and_sum_in_more(members, rows, inputs, outputs):
    x, w, b = random(members, rows, inputs), random(members, outputs, inputs, seed=1), random(members, 1, outputs, seed=2)
    out = Matrices(torch.full((members, rows, outputs), torch.nan))
    assert products.linear(Matrices(x), Matrices(w, bfloat16=True), Matrices(b), False, out) is out
    exact = x.double() @ w.double().mT  # of operands as they are, and as they are rounded
    rounded = x.bfloat16().double() @ w.bfloat16().double().mT
    sizes = x.double().abs() @ w.double().abs().mT
    sums = out.whole.double() - b
    float32s = 1e-6 * (sizes + b.abs())  # of its sums and of adding the bias
    assert ((sums - rounded).abs() <= 1.01 * ROUNDING * rounded.abs() + float32s).all()
    assert ((sums - exact).abs() <= ROUNDING * (2.01 * sizes + 1.01 * rounded.abs()) + float32s).all()
    assert ((sums - exact).abs() > 2**-14 * sizes).float().mean() > 0.5  # float32's are below 2^-20
    positive = Matrices(torch.empty_like(out.whole))
    products.linear(Matrices(x), Matrices(w, bfloat16=True), Matrices(b), True, positive)
    assert torch.equal(positive.whole, out.whole.relu())


def test_either_side_of_a_product_asks_for_bfloat16():
    left, right = random(2, 40, 48), random(2, 48, 32, seed=1)
    expected = (left.bfloat16() @ right.bfloat16()).float()
    for rounded in ((True, False), (False, True)):
        out = Matrices(torch.empty(2, 40, 32), rounded[1])
        products.product(Matrices(left), Matrices(right, rounded[0]), out)
        assert torch.equal(out.whole, expected)
    out = Matrices(torch.empty(2, 40, 32))
    products.product(Matrices(left), Matrices(right), out)
    assert not torch.equal(out.whole, expected)


def test_only_layers_between_hidden_ones_are_rounded():
    network = PopulationMLP(2, 4, (24, 16, 8), discrete=False)
    state = learner.initial_state(network, [1, 2], [6.0, 6.0], torch.device("cpu"))
    for on in (True, False):
        made = learner.Workspaces(network, state, 12, on)
        for layers in (made.layers, made.gradient_layers):
            assert [layer.weight.bfloat16 for layer in layers] == [False, on, on, False]


@pytest.mark.parametrize("discrete", [False, True])
def test_the_gradient_is_off_by_bfloat16s_rounding_and_no_more(discrete):
    network = PopulationMLP(9 if discrete else 2, 4, (64, 48), discrete)
    state = learner.initial_state(network, [1], [6.0], torch.device("cpu"))
    inputs = torch.arange(9)[None] if discrete else random(1, 9, 2)
    direction = random(1, 9, 4, seed=3)
    gradients = []
    for on in (False, True):
        work = learner.Workspaces(network, state, 9, on).of(9)
        outputs = network.forward(work.layers, inputs, [*work.outputs, Matrices(torch.empty(1, 4, 9).mT)])
        network.backward(work.layers, inputs, outputs, direction, work.gradient_layers, work.room)
        gradients.append([t.clone() for layer in network.layers(work.gradient) for t in layer if t is not None])
    for exact, rounded in zip(*gradients):
        off = ((rounded - exact).norm() / exact.norm()).item()
        assert off < 4 * ROUNDING  # so many roundings at most lie on the way to one of them
        assert off > 0 or exact.shape[1] == 1  # the bias of the last two layers does not see the product between them


# ------------------------------------------------------------------------------------------------- in training


def trained(part):
    for start in range(0, 40, 20):
        part.block_of_updates(start, start + 20)
    return part.state.parameters


def test_training_in_bfloat16_differs_by_little():
    exact, rounded = trained(part_of()), trained(part_of(with_precision("bfloat16")))
    start = part_of().state.parameters
    assert 0 < (rounded - exact).norm() < 0.05 * (exact - start).norm()
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, rounded.bfloat16().float())


@pytest.mark.skipif(not workers.FORKS, reason="worker processes are forked on Linux only")
def test_workers_have_it_too():
    alone, forked = (part_of(with_precision("bfloat16"), threads) for threads in (1, 2))
    assert torch.equal(trained(alone), trained(forked)) and isinstance(forked._workers, workers.Processes)


def test_bootstrap_values_and_measurements_stay_float32():
    """They see the same parameters: equal to the last bit, whatever the precision of the updates."""
    parts = [part_of(), part_of(with_precision("bfloat16"))]
    for part in parts:
        part.tiles[0]._refresh()
    assert torch.equal(parts[0].tiles[0].next_values, parts[1].tiles[0].next_values)
    parameters, states = parts[0].state.parameters, torch.arange(225).expand(2, 225)
    assert torch.equal(*(part.network.q_values(part.network.layers(parameters), states) for part in parts))


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
@pytest.mark.parametrize("precision, inside", [("float32", "ieee"), ("tf32", "tf32")])
def test_tf32_is_in_force_in_a_block_and_put_back_after(precision, inside, before, monkeypatch):
    part, seen = part_of(with_precision(precision)), []
    original = type(part.tiles[0]).block_of_updates

    def observed(self, start, end):
        seen.append(MATMUL.fp32_precision)
        if end > 20:
            raise ZeroDivisionError
        original(self, start, end)
    monkeypatch.setattr(type(part.tiles[0]), "block_of_updates", observed)
    found = MATMUL.fp32_precision
    try:
        MATMUL.fp32_precision = before
        part.block_of_updates(0, 20)
        assert MATMUL.fp32_precision == before
        with pytest.raises(ZeroDivisionError):
            part.block_of_updates(20, 40)
        assert MATMUL.fp32_precision == before
    finally:
        MATMUL.fp32_precision = found
    assert set(seen) == {inside} and len(seen) >= 2


# ------------------------------------------------------------------------------------------------- the setting


def test_it_is_a_setting_that_reads_back():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    config = with_precision("bfloat16")
    assert Config().precision == "float32" and "--precision" not in command_line(Config())
    assert from_arguments(parser.parse_args(command_line(config))) == config == Config.from_json(config.to_json())
    assert config.to_json() != SMALL.to_json()


@pytest.mark.parametrize("settings, sentence", [
    (dict(precision="float16"), "--precision must be one of float32, tf32, bfloat16"),
    (dict(precision="bfloat16", hidden=(64,)), "give --hidden at least two widths"),
    (dict(precision="bfloat16", hidden=(0,)), "give --hidden at least two widths")])
def test_settings_that_cannot_be_used(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Config(**settings)


def test_devices_without_it(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda:0")
    with pytest.raises(RunError, match="tf32 needs a CUDA device"):
        refuse_precision("tf32", cpu)
    with pytest.raises(RunError, match="bfloat16 is for a CPU"):
        refuse_precision("bfloat16", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(RunError, match="Tesla T4 does not have it"):
        refuse_precision("tf32", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    for precision, device in (("float32", cpu), ("bfloat16", cpu), ("float32", cuda), ("tf32", cuda)):
        refuse_precision(precision, device)


def test_the_command_refuses_before_anything_is_written(tmp_path, capsys):
    assert command.main(["--precision", "tf32", "--device", "cpu", "--out", str(tmp_path / "r")]) == 2
    assert capsys.readouterr().err == "error: --precision tf32 needs a CUDA device: on a CPU there are float32 and bfloat16.\n"
    assert not (tmp_path / "r").exists()


def test_a_run_keeps_it_and_its_audit_says_so(tmp_path):
    config = with_precision("bfloat16", num_seeds=1, checkpoint_every=20)
    data = datasets_for(config, {})
    run = RunFolder.create(str(tmp_path / "r"), config, data)
    training.train(run, config, data, None)
    assert RunFolder.open(tmp_path / "r").config() == config
    found = audit.audit(run)
    assert found["precision"] == "bfloat16" and "24x16 network in bfloat16, 40 updates" in audit.text(found)
    with pytest.raises(RunError, match="config.json: one of the two was changed"):
        write_whole(run.path / "config.json", with_precision("float32", num_seeds=1, checkpoint_every=20).to_json().encode())
        training.train(run, run.config(), data, None, resume=True)


def test_training_refuses_a_precision_that_the_device_lacks(tmp_path):
    config = with_precision("tf32")
    data = datasets_for(config, {})
    with pytest.raises(RunError, match="tf32 needs a CUDA device"):
        training.train(RunFolder.create(str(tmp_path / "r"), config, data), config, data, None)
