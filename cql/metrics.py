"""What is logged, under which names, and the two files it goes to: ``metrics.csv`` and TensorBoard events.

Both grow as the run goes and are cut back to the checkpoint on resume. Events are written directly, without a writer
thread per member, so that a population of hundreds costs hundreds of small appends and the file ends where it says.
"""

import csv
import io
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import (
    DATA_CLASS_SCALAR,
    Summary,
    SummaryMetadata,
)
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.scalar.metadata import PLUGIN_NAME as SCALARS
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from cql.config import Config
from cql.errors import RunError
from cql.files import atomic_file
from cql.members import Member

METRICS = {  # name -> (algorithms, meaning); means over the interval for losses, the moment's value for the rest
    "losses/td": ("cql", "mean over updates and batch of the TD loss, (Q(s,a) - y)^2 by default"),
    "losses/penalty": ("cql", "mean over updates and batch of the conservative penalty, logsumexp_a' Q(s,a') - Q(s,a)"),
    "losses/total": ("cql", "losses/td + alpha * losses/penalty: what is minimised"),
    "losses/cross_entropy": ("bc", "mean over updates and batch of -log softmax(logits)[a]: what BC minimises"),
    "q/data_mean": ("cql", "mean over the data of Q(s,a)"),
    "q/max_mean": ("cql", "mean over the data of max_a Q(s,a)"),
    "q/max": ("cql", "largest max_a Q(s,a) at a logged state"),
    "q/start": ("cql", "mean over first observations of episodes of max_a Q(s,a): the value estimate"),
    "policy/ood_mass": ("cql bc", "mean over the data of the softmax mass on OOD actions: never logged in that state"),
    "policy/action_mismatch_rate": ("cql bc", "share of transitions whose logged action is not the greedy one"),
    "exact/return": ("cql bc", "exact undiscounted return of the greedy policy over the episode"),
    "exact/hazard_probability": ("cql bc", "exact probability that the greedy policy's episode ends in a hazard"),
    "exact/goal_probability": ("cql bc", "exact probability that the greedy policy's episode ends in the goal"),
    "exact/discounted_value": ("cql bc", "exact discounted value of the greedy policy at the start: what q/start "
                               "estimates"),
    "health/diverged": ("cql bc", "1: values outside the range of exact solutions; 2: outputs not finite; 0: neither"),
    "optimiser/alpha": ("cql", "weight of the penalty after this update: --alpha, or learned from it"),
    "optimiser/learning_rate": ("cql bc", "Adam's learning rate at this update"),
}
LOSS_TERMS = {  # in the order in which trainers yield them
    "cql": ("losses/td", "losses/penalty", "losses/total"), "bc": ("losses/cross_entropy",)}
TRIAL_METRICS = ("exact/return", "exact/hazard_probability")  # shown beside each trial of the hyperparameters tab
TOGETHER = ("q/start", "exact/discounted_value")  # in one chart of TensorBoard's custom scalars tab
HEADER = "step,member,metric,value\n"
MEAN = "{group}, mean of {members} members"  # a run of TensorBoard beside those of the members
EVENT_FILE = "events.out.tfevents.0.glassbox-cql"  # one file a member, its name fixed, so that a resume finds it


class LossSums:
    """The loss terms of the updates since the last log entry."""

    def __init__(self, algorithm: str, members: int, device: torch.device):
        self.names = LOSS_TERMS[algorithm]
        self.sums = [torch.zeros(members, device=device) for _ in self.names]
        self.updates = 0

    def add(self, terms: tuple[Tensor, ...], updates: int) -> None:
        """``terms``: sums over so many updates, each ``[M]``."""
        torch._foreach_add_(self.sums, terms)
        self.updates += updates

    def take_means(self) -> dict[str, list[float]]:
        """The mean of every term over the updates, ``name -> [M]``; afterwards there are none."""
        means = {name: (total.double() / max(self.updates, 1)).tolist() for name, total in zip(self.names, self.sums)}
        torch._foreach_zero_(self.sums)
        self.updates = 0
        return means

    def contents(self) -> list:
        """For a checkpoint."""
        return [*(total.cpu() for total in self.sums), self.updates]

    def restore(self, contents: list) -> None:
        """Takes over ``contents``."""
        *sums, self.updates = contents
        torch._foreach_copy_(self.sums, sums)


class MetricsLog:
    """The log of one run folder, or of some members of it.

    Args:
        folder: of the run.
        lines: the file to write instead of the run's ``metrics.csv``.
        names: the members whose event files are this log's; by default all that are there, pictures too.
        beside: whether entries are written in a thread of their own, where that takes no core from the trainer.
    """

    def __init__(self, folder: Path, lines: Path | None = None, names: list[str] | None = None, beside: bool = False):
        self.folder, self.names = folder, names
        self.csv = lines or folder / "metrics.csv"
        self.tensorboard = folder / "tensorboard"
        self.pool = ThreadPoolExecutor(1) if beside else None
        self.pending: Future[None] | None = None
        self.create()

    def create(self) -> None:
        if not self.csv.exists():
            self.csv.write_text(HEADER)

    def event_path(self, member: str) -> Path:
        return self.tensorboard / member / EVENT_FILE

    def write(self, step: int, members: list[Member], values: dict[str, list[float]], first: bool) -> None:
        """Appends ``values[name][m]`` for every member at this update; the ``first`` entry describes the metrics."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        for m, member in enumerate(members):
            for name, column in values.items():
                rows.writerow((step, member.name, name, repr(column[m])))
            event = _scalars(step, {name: column[m] for name, column in values.items()}, described=first)
            if first and m == 0 and all(name in values for name in TOGETHER):
                event.summary.value.append(_layout())
            self._append(self.event_path(member.name), [event])
        with open(self.csv, "a") as file:
            file.write(text.getvalue())

    def later(self, write: Callable[[], None]) -> None:
        """Has an entry written, after those before it: at once, or while a CUDA device goes on training."""
        self.wait()
        if self.pool is None:
            write()
        else:
            self.pending = self.pool.submit(write)

    def wait(self) -> None:
        """Until all entries are written; raises what the writing raised."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def start(self, members: list[Member], config: Config) -> None:
        """The first records of each member: file version, and its settings as one trial of the hyperparameters tab.

        TensorBoard takes the columns of that tab from one run, whichever it reads first, so every run declares all
        columns, alpha included, even BC's.
        """
        names = ("lr", "gamma", "target_interval", "td_loss", "double_q", "penalty_threshold", "slip", "epsilon",
                 "episodes", "bc_top", "bc_safe")
        settings = {name: getattr(config, name) for name in names} | {
            "batch_size": str(config.batch_size), "hidden": " ".join(map(str, config.hidden)) or "0"}
        for member in members:
            trial = {**settings, "algorithm": member.algorithm, "alpha": member.alpha, "seed": member.seed,
                     "data_seed": member.data_seed}
            columns = {name: 0.0 if value is None else value for name, value in trial.items()}
            experiment, *_ = hparams(columns, dict.fromkeys(TRIAL_METRICS, 0.0))
            _, *session = hparams(trial, {})  # its start and its end, without what is None
            self._append(self.event_path(member.name), [_first_event(), *(
                Event(wall_time=time.time(), summary=record) for record in (experiment, *session))])

    def write_means(self, runs: dict[str, dict[int, dict[str, float]]]) -> None:
        """Runs of TensorBoard beside those of the members, in place of earlier ones.

        Args:
            runs: ``name -> step -> metric -> mean``, the names made with ``MEAN``.
        """
        for path in self.tensorboard.glob(f"{MEAN.format(group='*', members='*')}/{EVENT_FILE}"):
            path.unlink()
        for name, entries in runs.items():
            self._append(self.event_path(name), [_first_event(), *(
                _scalars(step, values, described=n == 0) for n, (step, values) in enumerate(entries.items()))])

    def image(self, folder: str, name: str, png: bytes, width: int, height: int) -> None:
        """One picture under TensorBoard's images, in a run of its own."""
        value = Summary.Value(tag=name, image=Summary.Image(height=height, width=width, colorspace=4,
                                                            encoded_image_string=png))
        path = self.event_path(folder)
        event = Event(wall_time=time.time(), summary=Summary(value=[value]))
        self._append(path, [event] if path.exists() else [_first_event(), event])

    def sizes(self) -> dict[str, int]:
        """Length in bytes of every file of the log, by its path relative to the run, once all entries are written."""
        self.wait()
        if self.names is None:
            events = sorted(self.tensorboard.rglob(EVENT_FILE))
        else:
            events = [path for path in map(self.event_path, self.names) if path.exists()]
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in [self.csv, *events]}

    def cut_back(self, sizes: dict[str, int]) -> None:
        """Makes the log what it was when ``sizes`` was taken: later lines, events and files go.
        Raises RunError if a file is missing or shorter than it was then."""
        present = self.sizes()
        for name, length in sizes.items():
            if present.get(name, -1) < length:
                raise RunError(f"{self.folder / name} is missing or shorter than the checkpoint says: the run cannot "
                               "go on.")
        for name, length in present.items():
            if name not in sizes:
                (self.folder / name).unlink()
            elif length > sizes[name]:
                with open(self.folder / name, "r+b") as file:
                    file.truncate(sizes[name])

    def _append(self, path: Path, events: list[Event]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())


def _first_event() -> Event:
    return Event(wall_time=time.time(), file_version="brain.Event:2")


def _scalars(step: int, values: dict[str, float], described: bool) -> Event:
    """The event of one log entry, with the descriptions of its metrics: TensorBoard reads those of the first entry."""
    event = Event(step=step, wall_time=time.time())
    for name, value in values.items():
        scalar = event.summary.value.add(tag=name, simple_value=value)
        if described:
            scalar.metadata.CopyFrom(SummaryMetadata(
                summary_description=METRICS[name][1], data_class=DATA_CLASS_SCALAR,  # TensorBoard needs both to read it
                plugin_data=SummaryMetadata.PluginData(plugin_name=SCALARS)))
    return event


def _layout() -> Summary.Value:
    """The custom scalars tab: the value estimate and the true value in one chart."""
    chart = layout_pb2.Chart(title="value estimate and true value",
                             multiline=layout_pb2.MultilineChartContent(tag=[f"{name}$" for name in TOGETHER]))
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="value at the start", chart=[chart])])
    return Summary.Value(tag=custom_scalars.CONFIG_SUMMARY_TAG, tensor=make_tensor_proto(layout.SerializeToString()),
                         metadata=custom_scalars.create_summary_metadata())


def join_csv(target: Path, parts: list[Path]) -> None:
    """Writes the lines of several logs into one, in order. Raises OSError if one is missing."""
    with atomic_file(target) as file:
        file.write(HEADER.encode())
        for path in parts:
            with open(path, "rb") as part:
                part.readline()
                shutil.copyfileobj(part, file)


def read_metrics(path: Path) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    """``metrics.csv`` as ``{(member, metric): (steps, values)}``. Raises RunError for a line that is none of its."""
    series: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    try:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                steps, values = series.setdefault((row["member"], row["metric"]), ([], []))
                steps.append(int(row["step"]))
                values.append(float(row["value"]))
    except (KeyError, TypeError, ValueError, OSError, csv.Error) as error:
        raise RunError(f"{path} cannot be read as a log ({type(error).__name__}: {error}).") from None
    return series
