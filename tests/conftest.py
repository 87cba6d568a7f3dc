"""A run that tests of cql/deploy share; pictures only where they are looked at; how often faults are tried."""

import contextlib
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: the last digits of its sums depend on the threads

from tests import browser  # noqa: E402

MAP = ["S...", ".H..", "...G"]


def pytest_configure(config):
    """PyTorch is imported where tests run: the process that hands them out starts the others sooner without it."""
    if config.option.dist == "no":
        import torch
        if not torch.cuda.is_available():
            os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported, for tests/test_kernels.py


def pytest_addoption(parser):
    parser.addoption("--times", type=int, help="kills, damages or malformed bodies, instead of the few of a short test")


def pytest_xdist_auto_num_workers(config) -> int:
    """How many processes the whole suite uses; tests that are named run in this one, where ``-s`` works."""
    whole = config.args_source is config.ArgsSource.TESTPATHS and not config.option.keyword
    return min(os.cpu_count(), 4) if whole and config.option.capture != "no" else 0


def pytest_collection_modifyitems(items):
    """Files that take longest come first, so that no process is left with one of them at the end."""
    longest = ["test_ranks.py", "test_fixed_point.py", "test_export.py", "test_explore.py", "test_plots.py",
               "test_exercises.py", "test_faults.py", "test_training.py", "test_report.py"]
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


def pytest_sessionfinish():
    if browser.started.cache_info().currsize:
        browser.started().close()


@pytest.fixture
def times(request) -> int | None:
    return request.config.getoption("--times")


@contextlib.contextmanager
def without_pictures():
    """Within it there are none. It gives the functions that draw a run and save a picture."""
    from cql.analysis.figures import plots, style
    made = plots.draw_all, style.png
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw_all", lambda run: [])
        patch.setattr(style, "png", lambda figure: bytes(24))  # as long as a PNG's head
        yield made


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """Runs are not drawn, and the pictures of reports and audits are saved blank: they take most of a small run's time.

    It gives the functions that draw a run and save a picture. A module that needs all pictures has a fixture of this
    name that does nothing; a test asks for ``drawn``, where they are made and saved blank, or for ``rendered``.
    """
    with without_pictures() as made:
        yield made


@pytest.fixture
def drawn(monkeypatch, no_pictures):
    monkeypatch.setattr("cql.analysis.figures.plots.draw_all", no_pictures[0])


@pytest.fixture
def rendered(drawn, monkeypatch, no_pictures):
    monkeypatch.setattr("cql.analysis.figures.style.png", no_pictures[1])


@pytest.fixture
def coarse(monkeypatch):
    """Pictures of a tenth of the pixels, for tests that do not look at those."""
    monkeypatch.setattr("cql.analysis.figures.style.DPI", 50)


@pytest.fixture(scope="session")
def deployable(tmp_path_factory):
    """The folder of a run in which nobody writes, on a map of 12 cells: bc-s42-d42, cql-a1-s42-d42, cql-a6-s42-d42."""
    import train

    folder = tmp_path_factory.mktemp("deployable")
    (folder / "map.txt").write_text("\n".join(MAP))
    with without_pictures():
        assert train.main(["--map", str(folder / "map.txt"), "--slip", "0.1", "--episodes", "80", "--alpha", "1", "6",
                           "--hidden", "0", "--lr", "0.05", "--steps", "3000", "--bc-steps", "300", "--log-every",
                           "1500", "--target-interval", "20", "--device", "cpu", "--out", str(folder / "run")]) == 0
    return folder / "run"


def pytest_ignore_collect(collection_path, config):
    """With ``-m "not slow"`` the files that are marked as a whole are not imported."""
    if config.option.markexpr == "not slow" and collection_path.suffix == ".py":
        return "\npytestmark = pytest.mark.slow\n" in collection_path.read_text() or None
