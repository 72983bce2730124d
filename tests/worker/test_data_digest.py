"""What the data is, in a word: equal for equal data, other for other data, never by chance."""

import dataclasses
import logging
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset
from worker.loaders import FORKED, SPAWNED, make
from worker.local_tasks import TaskPool
from worker.noisy import Noisy
from worker.test_loader import generators

from hubring_common.errors import SettingsMismatch
from hubring_worker.canonical import hexdigest
from hubring_worker.sampling import HANDFUL, VARIES, content_digest

# --- of a value ------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN, PLAIN)
def test_equal_values_and_only_they_have_equal_digests(a, b):
    assert hexdigest(a) == hexdigest(a)
    assert (hexdigest(a) == hexdigest(b)) == (repr(_sorted(a)) == repr(_sorted(b)))


def _sorted(value):
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


@dataclasses.dataclass
class Pair:
    left: int
    right: torch.Tensor


DIFFERENT = [
    torch.zeros(2, 3),
    torch.zeros(3, 2),
    torch.zeros(6),
    torch.zeros(2, 3, dtype=torch.int32),
    torch.zeros(2, 3, dtype=torch.bfloat16),
    torch.tensor(0.0),
    torch.zeros(0),
    torch.ones(2, 3),
    torch.eye(2, dtype=torch.complex64),
    np.zeros((2, 3)),
    np.zeros((2, 3), np.float32),
    np.array(["a", "b"]),
    np.array(["a", None], dtype=object),
    np.float32(0),
    0,
    0.0,
    False,
    None,
    "",
    b"",
    "ab",
    b"ab",
    ["ab"],
    ["a", "b"],
    [["a"], "b"],
    {"a": 1},
    {"a": 1.0},
    {"a", "b"},
    Path("ab"),
    Pair(1, torch.zeros(1)),
    Pair(2, torch.zeros(1)),
    range(3),
    1j,
]


def test_types_shapes_and_contents_all_count():
    assert len({hexdigest(value) for value in DIFFERENT}) == len(DIFFERENT)


def test_what_is_laid_out_otherwise_is_the_same():
    square = torch.arange(6.0).reshape(2, 3)
    assert hexdigest(square) == hexdigest(square.t().contiguous().t())
    assert hexdigest(square) == hexdigest(square.clone().requires_grad_())
    assert hexdigest({"a": 1, "b": 2}) == hexdigest({"b": 2, "a": 1})
    assert hexdigest((1, 2)) == hexdigest([1, 2])
    assert hexdigest(np.asfortranarray(square.numpy())) == hexdigest(square.numpy())


def test_the_digest_is_written_out():
    """Workers of another release or machine must come to the same."""
    value = {"image": torch.arange(6, dtype=torch.uint8).reshape(2, 3), "label": 3, "name": "ä"}
    assert hexdigest(value) == "9163515901582d47"


def test_an_object_that_has_none_is_passed_over_and_said_once(caplog):
    class Picture:
        pass

    with caplog.at_level(logging.DEBUG, "hubring_worker.canonical"):
        assert hexdigest([Picture(), 1]) == hexdigest([Picture(), 1]) != hexdigest([Picture(), 2])
    assert [r.message for r in caplog.records if "Picture" in r.message] == [
        f"{Picture.__qualname__} has no canonical digest: its content is passed over"
    ]


# --- of a data set ---------------------------------------------------------------------------


def digest_of(dataset, **options):
    pool = TaskPool()
    make(pool, dataset=dataset, batch_size=4, **options)
    return pool.settings["content"]


def test_another_data_set_of_the_same_length_is_refused():
    pool = TaskPool()
    make(pool, dataset=list(range(22)))
    make(pool, "w1", dataset=list(range(22)))
    with pytest.raises(SettingsMismatch, match="content is"):
        make(pool, "w2", dataset=list(range(1, 23)))
    make(pool, "w3", dataset=list(range(22)))
    with pytest.raises(SettingsMismatch, match="samples is 21 here"):
        make(pool, "w4", dataset=list(range(21)))


def test_the_refusal_says_what_can_be_done():
    class Clustered(TaskPool):
        def bind(self, settings, batches):
            raise SettingsMismatch("content is a here but b on the cluster", todo="the usual")

    with pytest.raises(SettingsMismatch, match="digest=False"):
        make(Clustered())


def test_random_augmentation_is_no_difference():
    """From all three global generators, here and in processes; the process's own are kept."""
    expected = digest_of(Noisy(22))
    random.seed(99)
    torch.manual_seed(99)
    assert digest_of(Noisy(22)) == expected != VARIES
    assert digest_of(Noisy(22), **FORKED) == expected
    assert digest_of(Noisy(22), **SPAWNED) == expected
    torch.manual_seed(0)
    state = generators()
    digest_of(Noisy(22))
    assert generators() == state


class OwnGenerator(Dataset):
    """Flips a coin that nobody can seed."""

    def __init__(self):
        self.coin = random.SystemRandom()

    def __len__(self):
        return 100

    def __getitem__(self, index):
        return index, self.coin.random() < 0.5


def test_samples_that_vary_by_themselves_are_not_compared():
    assert digest_of(OwnGenerator()) == VARIES


class Broken(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 5

    def __getitem__(self, index):
        raise self.error


def test_a_sample_that_cannot_be_read_is_a_difference_but_no_error_yet():
    lost, other = digest_of(Broken(FileNotFoundError("x"))), digest_of(Broken(ValueError("x")))
    assert len({lost, other, digest_of(list(range(5)))}) == 3


class Counting(Dataset):
    """Counts its readings, in this process."""

    def __init__(self, samples):
        self.samples, self.read = samples, []

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        self.read.append(index)
        return index


def test_a_handful_is_read_twice_wherever_it_lies():
    counting = Counting(10**6)
    digest_of(counting)
    assert len(counting.read) == 2 * HANDFUL
    assert len(set(counting.read)) == HANDFUL
    assert max(counting.read) > 10**5
    assert all(isinstance(index, int) for index in counting.read)


def test_nothing_is_opened_before_the_loaders_processes_are_forked():
    counting = Counting(100)
    assert digest_of(counting, **FORKED) == digest_of(Counting(100))
    assert counting.read == []


def test_a_data_set_that_reads_whole_batches_is_asked_for_them():
    class Whole(Counting):
        def __getitems__(self, indices):
            return [index * 2 for index in indices]

    assert digest_of(Whole(30)) == digest_of([2 * i for i in range(30)])


def test_a_digest_of_ones_own_or_none():
    counting = Counting(100)
    assert digest_of(counting, digest="v3") == "v3"
    assert digest_of(counting, digest=False) == "not looked at"
    assert counting.read == []
    assert digest_of(counting, digest=True) == digest_of(Counting(100))


def test_a_samplers_own_indices_are_looked_at():
    class Named(dict):
        pass

    named = Named({f"n{i}": i for i in range(8)})
    options = {"sampler": [f"n{i}" for i in range(8)], "batch_size": 4}
    pool = TaskPool()
    make(pool, dataset=named, **options)
    other = Named({f"n{i}": i + 1 for i in range(8)})
    with pytest.raises(SettingsMismatch, match="content is"):
        make(pool, "w1", dataset=other, **options)


def test_it_takes_little_time():
    """32 samples of 3 x 224 x 224 floats; generous, for a machine that does other things too."""
    images = torch.rand(40, 3, 224, 224)
    dataset = torch.utils.data.TensorDataset(images)
    started = time.perf_counter()
    content_digest(dataset, list(range(HANDFUL)), {})
    assert time.perf_counter() - started < 1
