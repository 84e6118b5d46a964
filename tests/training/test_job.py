"""A training job: BatchNorm in training never meets one value per channel, and no sample is lost for it."""

import threading
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bottleneck.errors import FitError
from bottleneck.samples import ArrayRows
from bottleneck.training.batches import READ_AHEAD, Batches, SampleSet, batch_count
from bottleneck.training.config import TrainingConfig
from bottleneck.training.finetune import find_rate
from bottleneck.training.job import Inputs, TrainingJob, fewest_samples, training_device
from bottleneck.training.optim import LayerGroup


class Normed(nn.Module):
    """Rows (B, M, 3, 2, 2) → logits, with BatchNorm on `positions` × `positions` maps."""

    def __init__(self, positions, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.convolution = nn.Conv2d(3, 4, 3 - positions)
            self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, rows, covariates):
        maps = self.norm(self.convolution(rows.flatten(0, 1).float())).mean((2, 3))
        return self.head(maps.unflatten(0, rows.shape[:2]).mean(1))


class FunctionalNorm(Normed):
    """The same through `functional.batch_norm`, as traced networks call it."""

    def forward(self, rows, covariates):
        x = self.convolution(rows.flatten(0, 1).float())
        norm = self.norm
        x = functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True)
        return self.head(x.mean((2, 3)))


def problem(n, M=1):
    """Rows and samples."""
    random = np.random.default_rng(0)
    rows = ArrayRows(random.normal(size=(n * M, 3, 2, 2)).astype(np.float32))
    labels = np.arange(n) % 2
    return rows, SampleSet(np.arange(n * M).reshape(n, M), np.zeros((n, 0)), labels)


def job_of(network, n, size, M=1, **options):
    """A job that trains and measures on the same samples."""
    rows, samples = problem(n, M)
    config = TrainingConfig(batch_size=size, epochs=2, optimizer="sgd", lr=0.1, warmup=0.0, **options)
    layers = [LayerGroup("network", 0, tuple(network.named_parameters()))]
    return TrainingJob(network, layers, Inputs(rows, rows), {"train": samples, "val": samples}, 2, config)


def sizes(job):
    """The lengths of the batches of an epoch."""
    return [len(batch) for batch in job.training.train.epoch(1)]


def test_bfloat16_is_for_steps_alone_and_repeats_to_the_bit():
    """It works on processors without the units too, so that the form of the loop is tested on each."""
    jobs = [job_of(Normed(positions=2), 8, 4, precision=precision) for precision in ("fp32", "bf16", "bf16")]
    for job in jobs:
        job.train()
    exact, *rounded = [job.training.state.history for job in jobs]
    assert rounded[0][0] == exact[0]  # the start is measured in float32
    assert 0 < abs(rounded[0][1].train_loss - exact[1].train_loss) < 1e-2
    assert [record.val_loss for record in rounded[0]] == [record.val_loss for record in rounded[1]]
    assert {parameter.dtype for parameter in jobs[1].network.parameters()} == {torch.float32}


def test_bfloat16_is_refused_where_there_are_no_units(monkeypatch):
    config = TrainingConfig(precision="bf16", device="cpu")
    monkeypatch.setattr("bottleneck.engines.device.vector_units", lambda: ["avx2", "avx512_bf16"])
    assert training_device(config).type == "cpu"
    for units in (["avx2", "fma"], None):
        monkeypatch.setattr("bottleneck.engines.device.vector_units", lambda units=units: units)
        with pytest.raises(FitError, match="cpu has no units for bfloat16"):
            training_device(config)


@pytest.mark.parametrize("kind", [Normed, FunctionalNorm])
@pytest.mark.parametrize(("n", "expected"), [(3, [3]), (5, [2, 3]), (7, [2, 2, 3]), (6, [2, 2, 2])])
def test_a_single_sample_joins_another_batch(kind, n, expected):
    job = job_of(kind(positions=1), n, 2)
    assert sorted(sizes(job)) == expected
    assert [note.code for note in job.notes] == (["last-batch-joined"] if n % 2 else [])
    assert all(note.changes_result for note in job.notes)
    job.train()
    assert [record.samples for record in job.training.state.history] == [0, n, n]


@pytest.mark.parametrize(("network", "M"), [(Normed(positions=2), 1), (Normed(positions=1), 2), (None, 1)])
def test_where_batchnorm_has_several_values_a_batch_of_one_stays(network, M):
    if network is None:
        network = Normed(positions=1)
        network.norm = nn.Identity()
    job = job_of(network, 5, 2, M=M)
    assert sorted(sizes(job)) == [1, 2, 2]
    assert job.notes == ()
    job.train()


def test_frozen_batchnorm_takes_batches_of_one():
    network = Normed(positions=1)
    network.norm.train = lambda mode=True: network.norm  # as a section keeps it
    network.norm.training = False
    assert sorted(sizes(job_of(network, 3, 1))) == [1, 1, 1]


def test_a_batch_size_of_one_is_refused_with_the_reason():
    with pytest.raises(FitError, match="batch_size is 1, but BatchNorm in training mode") as refused:
        job_of(Normed(positions=1), 6, 1)
    assert "--batch-size 2" in refused.value.hint
    with pytest.raises(FitError, match="one sample to train on"):
        job_of(Normed(positions=1), 1, 8)


def test_looking_at_the_network_changes_nothing():
    network = Normed(positions=2).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    assert fewest_samples(network, *problem(3), 1) == (1, ())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_joined_batches_learn_what_plain_torch_learns():
    n, job = 5, job_of(Normed(positions=1), 5, 2, label_smoothing=0.0, clip=0.0, patience=0)
    job.training.choose_best = False
    order = [job.training.train.order(epoch) for epoch in (1, 2)]
    rows, samples = problem(n)
    plain = Normed(positions=1).train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    steps, means = 4, []
    for epoch in range(2):
        total = 0.0
        for step, chosen in enumerate((order[epoch][:2], order[epoch][2:])):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * 0.5 * (1 + np.cos(np.pi * (2 * epoch + step) / steps))
            logits = plain(torch.from_numpy(rows.array[chosen])[:, None], None)
            losses = functional.cross_entropy(
                logits, torch.from_numpy(samples.labels[chosen]), reduction="none"
            )
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            total += losses.sum().item()
        means.append(total / n)
    job.train()
    assert [r.train_loss for r in job.training.state.history[1:]] == pytest.approx(means, rel=1e-5)
    for name, tensor in job.network.state_dict().items():
        assert torch.allclose(tensor, plain.state_dict()[name], rtol=1e-4, atol=1e-6), name


def test_a_learning_rate_is_found_with_joined_batches():
    found = find_rate(job_of(Normed(positions=1), 3, 2).training)
    assert len(found.rates) == len(found.losses) > 0


@pytest.mark.parametrize("memory", [60, 1 << 20])
def test_joined_batches_hold_every_sample_once_whatever_the_memory(memory):
    rows, samples = problem(7)
    batches = Batches(rows, samples, 2, least=2, memory=memory)
    assert sorted(np.concatenate([batch.labels for batch in batches.epoch(1)])) == sorted(samples.labels)
    assert sorted(len(batch) for batch in batches.epoch(3)) == [2, 2, 3]


def test_batches_are_as_few_as_their_size_allows_and_none_is_single_where_two_are_needed():
    for n, size in product(range(2, 40), range(1, 12)):
        even = [np.array_split(np.arange(n), steps) for steps in range(1, n + 1)]
        fewest = next(parts for parts in even if len(parts[0]) <= size)
        assert batch_count(n, size) == len(fewest)
        joined = even[batch_count(n, size, 2) - 1]
        assert len(joined[-1]) >= 2
        assert len(joined) == len(fewest) or len(fewest[-1]) == 1


class NewRows(ArrayRows):
    """Rows that each epoch makes anew; `reads` lists how many each call took."""

    def __init__(self, array):
        super().__init__(array)
        self.reads = []

    def start_epoch(self, epoch):
        pass

    def notes(self):
        return ()

    def take(self, indices):
        self.reads.append(len(indices))
        return super().take(indices)


def test_a_search_that_ends_early_leaves_no_thread_and_has_made_few_rows_ahead():
    rows, samples = problem(2000)
    made, network = NewRows(rows.array), Normed(positions=2)
    layers = [LayerGroup("network", 0, tuple(network.named_parameters()))]
    config = TrainingConfig(batch_size=8)
    job = TrainingJob(network, layers, Inputs(made, rows), {"train": samples, "val": samples}, 2, config)
    threads = set(threading.enumerate())
    found = find_rate(job.training)
    assert set(threading.enumerate()) == threads
    assert max(made.reads) <= READ_AHEAD
    assert sum(made.reads) <= 8 * 100 + 2 * READ_AHEAD
    assert len(found.rates) <= 100
