"""The example `digits.py`: its data, its models, its measure."""

import pytest
import torch
from examples.digits import accuracy, cnn, data, mlp
from torch import nn


def test_the_digits_are_split_once_and_for_all():
    train, test = data()
    (x_train, y_train), (x_test, y_test) = train.tensors, test.tensors
    assert x_train.shape == (1437, 1, 8, 8)
    assert x_test.shape == (360, 1, 8, 8)
    assert x_train.dtype == torch.float32
    assert 0 <= x_train.min() < x_train.max() <= 1
    assert min(y_test.bincount()) >= 34 and len(y_test.bincount()) == 10  # stratified
    again, _ = data()
    assert torch.equal(again.tensors[0], x_train) and torch.equal(again.tensors[1], y_train)


def test_no_image_is_in_both_sets():
    train, test = ({tuple(x.flatten().tolist()) for x in part.tensors[0]} for part in data())
    assert not train & test


@pytest.mark.parametrize("make", [cnn, mlp])
def test_a_model_scores_ten_digits(make):
    images = data()[1].tensors[0]
    assert make()(images).shape == (360, 10)


class Always(nn.Module):
    def forward(self, images):
        return nn.functional.one_hot(torch.full((len(images),), 3), 10).float()


def test_accuracy_is_the_share_that_is_right():
    test = data()[1]
    share = (test.tensors[1] == 3).float().mean().item()
    assert accuracy(Always(), test) == pytest.approx(share)
