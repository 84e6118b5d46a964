"""A network on a head says what the head says, and folds back into one."""

import numpy as np
import pytest
import torch
from torch import nn

from bottleneck.errors import FitError
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.training.loss import Objective, calibrated_loss, predicted, two_logits
from bottleneck.training.network import TransferNetwork, folded, network_of


def head(classes=3, D=7, hidden=0, seed=0, **options):
    """A head with badly scaled inputs, as real features are."""
    random = np.random.default_rng(seed)
    arrays = {
        "coef": random.normal(size=(hidden or classes, D)) / 10.0 ** random.uniform(-2, 1, D),
        "intercept": random.normal(size=hidden or classes),
        "mean": random.normal(size=D),
        "scale": 10.0 ** random.uniform(-2, 1, D),
    }
    if hidden:
        arrays |= {"coef2": random.normal(size=(classes, hidden)), "intercept2": random.normal(size=classes)}
    return HeadArtifact(
        kind="mlp" if hidden else "logistic",
        form="mlp" if hidden else "linear",
        arrays={name: array.astype(np.float32) for name, array in arrays.items()},
        class_names=tuple(map(str, range(classes))),
        **options,
    )


def network_on(head):
    """The head's network on features that are rows already."""
    return network_of(nn.Identity(), head)


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("classes", [2, 4])
def test_a_network_on_a_head_gives_its_logits(classes, hidden):
    artifact = head(classes, hidden=hidden)
    rows = np.random.default_rng(1).normal(size=(9, 1, 7)).astype(np.float32)
    logits = network_on(artifact)(torch.from_numpy(rows), torch.zeros(9, 0))
    np.testing.assert_allclose(logits.detach(), artifact.decision(rows[:, 0]), atol=1e-4)


def test_several_images_and_covariates_stand_in_the_heads_order():
    artifact = head(3, D=8, images_per_sample=2, covariate_names=("age", "weight"))
    random = np.random.default_rng(1)
    rows, covariates = random.normal(size=(9, 2, 3)), random.normal(size=(9, 2))
    network = network_on(artifact)
    logits = network(torch.tensor(rows, dtype=torch.float32), torch.tensor(covariates, dtype=torch.float32))
    expected = artifact.decision(np.concatenate([rows[:, 0], rows[:, 1], covariates], axis=1))
    np.testing.assert_allclose(logits.detach(), expected, atol=1e-4)


@pytest.mark.parametrize("hidden", [0, 5])
def test_folding_is_the_inverse_of_unfolding(hidden):
    artifact = head(3, hidden=hidden)
    for name, array in folded(network_on(artifact), artifact.scale).items():
        np.testing.assert_allclose(array, artifact.arrays[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_single_logit_folds_into_two_halves():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 1))
    layers[1].running_mean.normal_()
    layers[1].running_var.uniform_(0.5, 2)
    network = TransferNetwork(
        nn.Identity(), layers, np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 0.5, 3])
    ).eval()
    rows = torch.randn(8, 1, 4)
    z = network(rows, torch.zeros(8, 0)).detach()
    artifact = HeadArtifact(
        kind="mlp", form="mlp", arrays=folded(network, np.ones(4)), class_names=("no", "yes")
    )
    np.testing.assert_allclose(
        artifact.decision(rows[:, 0].numpy()), torch.cat([-z / 2, z / 2], 1), atol=1e-5
    )


def test_heads_without_layers_are_refused():
    random = np.random.default_rng(0)
    arrays = {"features": random.normal(size=(5, 7)), "answers": np.eye(2)[[0, 1, 0, 1, 0]]}
    arrays |= {"mean": np.zeros(7), "scale": np.ones(7)}
    knn = HeadArtifact("knn", "knn", arrays, class_names=("a", "b"), settings={"k": 1})
    with pytest.raises(FitError, match="knn head has no weights"):
        network_on(knn)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_logit_and_its_two_halves_have_the_same_loss_and_classes(smoothing):
    z, labels = torch.randn(20, 1), torch.randint(0, 2, (20,))
    objective = Objective(2, smoothing)
    torch.testing.assert_close(objective.loss(z, labels), objective.loss(two_logits(z), labels))
    assert torch.equal(predicted(z), predicted(two_logits(z)))


def test_the_calibrated_loss_does_not_depend_on_the_scale_of_logits():
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 3), torch.randint(0, 3, (200,))
    logits[torch.arange(200), labels] += 2
    temperature, loss = calibrated_loss(logits, labels)
    warmer, same = calibrated_loss(5 * logits, labels)
    assert loss == pytest.approx(same, rel=1e-5)
    assert calibrated_loss(25 * logits, labels)[0] / warmer == pytest.approx(5, rel=1e-2)
    assert warmer > 1 >= temperature
    assert calibrated_loss(logits * float("nan"), labels)[1] == float("inf")
