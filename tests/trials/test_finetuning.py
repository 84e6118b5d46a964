"""How long a candidate is tuned."""

import pytest

from bottleneck.trials.finetuning import epochs_for


@pytest.mark.parametrize(("n", "epochs"), [(100, 10), (5000, 10), (10_000, 5), (1_000_000, 2)])
def test_many_samples_are_trained_on_for_fewer_epochs(n, epochs):
    assert epochs_for(n) == epochs
