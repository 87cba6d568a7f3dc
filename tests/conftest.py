"""A finished run that the tests of cql/deploy share, in which nobody writes; and how often faults are tried."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported, for tests/test_kernels.py

import train  # noqa: E402

MAP = ["S...", ".H..", "...G"]


def pytest_addoption(parser):
    parser.addoption("--times", type=int, help="kills, damages or malformed bodies, instead of the few of a short test")


@pytest.fixture
def times(request) -> int | None:
    return request.config.getoption("--times")


@pytest.fixture(scope="session")
def deployable(tmp_path_factory):
    """The folder of a run on a map of 12 cells: bc-s42-d42, cql-a1-s42-d42 and cql-a6-s42-d42."""
    folder = tmp_path_factory.mktemp("deployable")
    (folder / "map.txt").write_text("\n".join(MAP))
    assert train.main(["--map", str(folder / "map.txt"), "--slip", "0.1", "--episodes", "80", "--alpha", "1", "6",
                       "--hidden", "0", "--lr", "0.05", "--steps", "3000", "--bc-steps", "300", "--log-every", "1500",
                       "--target-interval", "20", "--device", "cpu", "--out", str(folder / "run")]) == 0
    return folder / "run"


def pytest_ignore_collect(collection_path, config):
    """With ``-m "not slow"`` the files that are marked as a whole are not imported."""
    if config.option.markexpr == "not slow" and collection_path.suffix == ".py":
        return "\npytestmark = pytest.mark.slow\n" in collection_path.read_text() or None
