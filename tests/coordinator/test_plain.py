from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from hubring_common import plain
from hubring_common.layout import ModelSpec, ParamSpec
from hubring_common.messages import RunState
from hubring_coordinator.machine.state import ModelBinding, RunFacts

SIZES = st.lists(st.integers(0, 1 << 40), max_size=3).map(tuple)
PARAMS = st.builds(
    ParamSpec, st.text(max_size=9), SIZES, SIZES, st.sampled_from(["float32"]), st.integers(0, 9)
)
SPECS = st.builds(ModelSpec, st.lists(PARAMS, max_size=3).map(tuple), st.text(max_size=5))


@given(SPECS, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_a_binding_comes_back_equal(spec, settings):
    binding = ModelBinding(spec, settings, "worker-0", 3)
    again = plain.load(ModelBinding, plain.dump(binding))
    assert again == binding
    assert again.spec.digest == spec.digest


def test_enums_travel_by_name_and_missing_fields_take_defaults():
    facts = RunFacts("r", 2, "async", 0, state=RunState.QUIET, metrics={"loss": 1.5}, lsns=(1, 2))
    dumped = plain.dump(facts)
    assert dumped["state"] == "QUIET"
    assert plain.load(RunFacts, dumped) == facts
    del dumped["model"]
    assert plain.load(RunFacts, dumped).model == ""


@dataclass(frozen=True)
class Nested:
    inner: RunFacts | None


def test_optional_messages():
    for value in (Nested(None), Nested(RunFacts("r", 1, "async", 0))):
        assert plain.load(Nested, plain.dump(value)) == value
