"""The tree of errors: codes, words, and a status for every leaf."""

import pickle
import re

import pytest

from hubring_common import errors, rpc

DOCUMENTED = {
    "Unreachable": 10, "TimedOut": 10, "NotYet": 10, "Busy": 10, "LeaseLost": 11,
    "ScriptFailed": 1, "UsageError": 2, "SettingsMismatch": 2, "VersionMismatch": 20,
    "ModelMismatch": 21, "Unauthorized": 22, "Diverged": 23, "WeightsLost": 24,
    "RunEnded": 25, "InvalidMessage": 26,
}  # fmt: skip


def test_every_kind_has_its_documented_exit_code():
    assert {kind.__name__: kind.exit_code for kind in errors.leaves()} == DOCUMENTED
    assert {10, 11} == errors.RETRY_EXIT_CODES
    told = dict(re.findall(r"── (\w+) +(\d+) ", errors.__doc__))
    assert {name: int(code) for name, code in told.items()} == DOCUMENTED


def test_every_kind_has_a_status():
    assert rpc.STATUS.keys() == set(errors.leaves())


def test_an_error_says_what_who_and_what_to_do():
    error = errors.ModelMismatch("a is [1] here", who="worker-3", todo="use one model")
    assert str(error) == "HUB-21 [worker-3]: a is [1] here. Use one model"
    assert str(errors.Busy("full")) == "HUB-10: full"


@pytest.mark.parametrize("kind", errors.leaves())
def test_retryable_and_fatal_are_the_two_branches(kind):
    assert issubclass(kind, errors.Retryable) != issubclass(kind, errors.Fatal)


def test_an_error_can_be_copied_and_sent_between_processes():
    error = pickle.loads(pickle.dumps(errors.Busy("full", who="server-1", todo="wait")))
    assert (error.fact, error.who, error.todo) == ("full", "server-1", "wait")
    assert str(error) == "HUB-10 [server-1]: full. Wait"
