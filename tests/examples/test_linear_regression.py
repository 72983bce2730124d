"""The example `linear_regression.py` beside numpy: its data, its cost, its path."""

import numpy as np
import pytest
import torch
from examples.linear_regression import cost, data, descend, linear, r2
from whole import cluster


def design(dataset) -> tuple[np.ndarray, np.ndarray]:
    """(X with a column of ones, y)."""
    x, y = (part.numpy() for part in dataset.tensors)
    return np.hstack([x, np.ones((len(x), 1))]), y


def theta_of(model) -> np.ndarray:
    return np.append(model.weight.detach().numpy(), model.bias.detach().numpy())


def path(x, y, eta, iterations):
    """Every theta of theta <- theta - eta/m X^T (X theta - y), from 0 on."""
    theta = np.zeros(x.shape[1])
    for _ in range(iterations):
        theta = theta - eta / len(y) * x.T @ (x @ theta - y)
        yield theta


@pytest.mark.parametrize(("servers", "eta"), [(1, 0.05), (2, 0.3)])
def test_one_worker_follows_the_closed_iteration_step_for_step(tmp_path, servers, eta):
    train, _ = data()
    model, ours = linear(features=10), []
    with cluster(tmp_path, servers=servers) as whole:
        run = whole.join()
        run.log = lambda loss: ours.append(theta_of(model))  # called once after every step
        descend(run, model, train, eta, iterations=80)
        run.finish()
        del run.log
        final = theta_of(model)
        run.close()
        assert whole.end() == 0
    expected = list(path(*design(train), eta, 80))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(final, ours[-1])


def test_the_cost_and_its_gradient():
    (x, y), theta = design(data()[0]), np.linspace(-20, 150, 11)
    model = linear(features=10)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(theta[:-1]))
        model.bias.fill_(theta[-1])
    found = cost(model, *data()[0].tensors)
    found.backward()
    assert found.item() == pytest.approx(np.square(x @ theta - y).sum() / (2 * len(y)))
    gradient = np.append(model.weight.grad.numpy(), model.bias.grad.numpy())
    np.testing.assert_allclose(gradient, x.T @ (x @ theta - y) / len(y))


def test_r2_is_that_of_scikit_learn():
    from sklearn.linear_model import LinearRegression

    train, test = data()
    (x, y), (x_test, y_test) = design(train), design(test)
    model = linear(features=10)
    *_, theta = path(x, y, 0.3, 20_000)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(theta[:-1]))
        model.bias.fill_(theta[-1])
    fitted = LinearRegression(fit_intercept=False).fit(x, y)
    assert r2(model, *test.tensors) == pytest.approx(fitted.score(x_test, y_test))


def test_features_are_standardised_by_the_training_set():
    train, test = data()
    (x, y), (x_test, _) = train.tensors, test.tensors
    assert x.shape == (353, 10)
    assert x_test.shape == (89, 10)
    assert y.dtype == x.dtype == torch.float64
    torch.testing.assert_close(x.mean(0), torch.zeros(10, dtype=torch.float64))
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(10, dtype=torch.float64))
    assert 0.01 < x_test.mean(0).abs().max() < 0.5
