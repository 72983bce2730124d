"""`run.stop_when`: from keywords to the rules that the coordinator watches."""

from collections.abc import Iterator

from hubring_common.errors import UsageError
from hubring_common.messages import StopRule


def rules_of(
    metric: str = "",
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    maximize: bool = False,
    steps: int | None = None,
    epochs: int | None = None,
    seconds: float | None = None,
) -> tuple[StopRule, ...]:
    """One rule for each condition that is given; any of them ends the run.

    Raises UsageError where a condition needs a metric that is not named, or none is given.
    """
    limits = {"steps": steps, "epochs": epochs, "seconds": seconds}
    found = [StopRule(kind, value=float(v)) for kind, v in limits.items() if v is not None]
    wanted = list(_of_metric(metric, at_least, at_most))
    if patience is not None:
        wanted.append(StopRule("stalls", metric, float(min_delta), int(patience), maximize))
    if wanted and not metric:
        fact = "at_least, at_most and patience are of a metric, and none is named"
        raise UsageError(fact, todo='Name one: stop_when("loss", patience=5)')
    if not (wanted or found):
        fact = f"stop_when({metric!r}) names no condition" if metric else "no condition is given"
        todo = "Give at_least, at_most or patience with a metric, or steps, epochs or seconds"
        raise UsageError(fact, todo=todo)
    return (*found, *wanted)


def _of_metric(metric: str, at_least: float | None, at_most: float | None) -> Iterator[StopRule]:
    if at_least is not None:
        yield StopRule("reaches", metric, float(at_least), maximize=True)
    if at_most is not None:
        yield StopRule("reaches", metric, float(at_most))
