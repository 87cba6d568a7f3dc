"""What the service counts, as Prometheus reads it."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cql.deploy.decision_log import AuditLog
from cql.deploy.promoted import InService
from cql.deploy.served_model import Decision

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Measures:
    """Counters of one application; of the model in service and of the audit log they ask when they are read."""

    def __init__(self, service: InService, audit: AuditLog | None):
        self.service, self.audit, self._registry = service, audit, CollectorRegistry()
        self._requests = Counter("glassbox_requests", "Requests answered.", ["route", "status"],
                                 registry=self._registry)
        self._seconds = Histogram("glassbox_request_seconds", "From a request's headers to its answer.", ["route"],
                                  registry=self._registry, buckets=SECONDS)
        decisions = Counter("glassbox_decisions", "Decisions answered, by whether the data ever took the action there.",
                            ["supported"], registry=self._registry)
        self._decisions = {supported: decisions.labels(str(supported).lower()) for supported in (True, False)}
        self._registry.register(self)

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def decided(self, decisions: list[Decision]) -> None:
        supported = sum(decision.supported for decision in decisions)
        self._decisions[True].inc(supported)
        self._decisions[False].inc(len(decisions) - supported)

    def text(self) -> tuple[bytes, str]:
        """The metrics and their media type."""
        return exposition.generate_latest(self._registry), exposition.CONTENT_TYPE_PLAIN_0_0_4

    def collect(self) -> Iterable[Metric]:
        """As a collector of its own registry: the model in service, and the audit log."""
        current = self.service.current
        model = GaugeMetricFamily("glassbox_model_in_service", "1 for the model that answers.",
                                  labels=["id", "member", "sha256"])
        if current is not None:
            model.add_metric([current.id, current.model.member.name, current.digest], 1)
        yield model
        yield CounterMetricFamily("glassbox_models_taken", "Models put into service.", self.service.taken)
        yield GaugeMetricFamily("glassbox_model_problem", "1 while the promoted model is not the one in service.",
                                self.service.problem is not None)
        yield GaugeMetricFamily("glassbox_audit_unflushed", "1 while the audit log cannot be flushed to the disk.",
                                self.audit is not None and self.audit.problem is not None)
