"""What the service counts, as Prometheus reads it."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cql.deploy.api import Decision
from cql.deploy.decision_log import DecisionLog
from cql.deploy.promoted import Promoted

SUPPORTED = {True: "true", False: "false", None: "unknown"}
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class ServiceMetrics:
    """The metrics of one application. What it has in service, and its decision log, are asked when they are read."""

    def __init__(self, service: Promoted, log: DecisionLog | None):
        self.service, self.log, self._registry = service, log, CollectorRegistry()
        self._requests = Counter("glassbox_requests", "Requests answered.", ["route", "status"],
                                 registry=self._registry)
        self._seconds = Histogram("glassbox_request_seconds", "From a request's headers to its answer.", ["route"],
                                  registry=self._registry, buckets=SECONDS)
        decisions = Counter("glassbox_decisions", "Decisions answered, by whether the data ever took the action there.",
                            ["supported"], registry=self._registry)
        self._decisions = {supported: decisions.labels(label) for supported, label in SUPPORTED.items()}
        self._registry.register(self)

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def decided(self, decisions: list[Decision]) -> None:
        for supported in SUPPORTED:
            self._decisions[supported].inc(sum(decision.supported is supported for decision in decisions))

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """What is measured only when it is read (the client library asks for it)."""
        current = self.service.current
        model = GaugeMetricFamily("glassbox_model_in_service", "1 for the model that answers.",
                                  labels=["id", "member", "sha256"])
        if current is not None:
            model.add_metric([current.id, current.model.member.name, current.digest], 1)
        yield model
        yield CounterMetricFamily("glassbox_models_taken", "Models put into service.", self.service.taken)
        yield GaugeMetricFamily("glassbox_model_problem", "1 while the promoted model is not the one in service.",
                                self.service.problem is not None)
        yield GaugeMetricFamily("glassbox_decisions_unflushed", "1 while the decision log cannot be flushed to disk.",
                                self.log is not None and self.log.problem is not None)
