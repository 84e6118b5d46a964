"""The epoch loop: it learns, keeps the best, stops when it should, and survives being killed."""

import numpy as np
import pytest
import torch

from bottleneck import threads
from bottleneck.training import loop
from bottleneck.training.checkpoint import Checkpoint
from bottleneck.training.config import TrainingConfig
from bottleneck.training.loss import Measured, Objective, logits_of, measure
from tests.helpers.forked import exit_code
from tests.helpers.killed_training import run
from tests.helpers.tiny_training import training


def equal(first, second):
    """Whether two modules hold the same bits."""
    ours, theirs = first.state_dict(), second.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_network_learns_and_its_epochs_are_recorded():
    job = training(epochs=8)
    records = job.run()
    assert [record.epoch for record in records] == list(range(9))
    assert records[-1].train_loss < records[1].train_loss
    assert max(record.val_accuracy for record in records) > 0.7
    assert records[0].samples == 0
    assert all(record.samples == len(job.train) for record in records[1:])


def test_every_sample_pulls_even_where_the_head_is_sure_of_all():
    logits = (40 * torch.eye(3)).requires_grad_()  # right on all of train, as a head that was fitted first
    Objective(3, TrainingConfig().label_smoothing).loss(logits, torch.arange(3)).backward()
    assert (logits.grad.norm(dim=1) > 0.01).all()


def test_the_best_epoch_is_what_the_module_holds_at_the_end():
    job = training(epochs=6, lr=0.5)
    job.run()
    measured = measure(*logits_of(job.module, job.val, job.device), job.objective)
    assert measured == job.state.best
    assert measured.accuracy == max(record.val_accuracy for record in job.state.history)


def test_the_network_as_it_came_wins_where_training_only_harms():
    job = training(epochs=30, lr=0.1)
    job.run()
    again = training(epochs=3, lr=1e-9)
    again.module.load_state_dict(job.module.state_dict())
    again.module.head.weight.data *= 1.0
    for group in again.optimizer.param_groups:
        group["base_lr"] = -0.5  # uphill
    again.run()
    assert again.state.best_epoch == 0
    assert equal(again.module, job.module)


def test_equal_accuracy_is_decided_by_the_calibrated_loss():
    bold = Measured(accuracy=0.9, loss=0.5, calibrated=0.31, temperature=3.0)
    shy = Measured(accuracy=0.9, loss=0.4, calibrated=0.32, temperature=0.5)
    assert bold.beats(shy)
    assert not shy.beats(bold)
    assert not bold.beats(bold)


def test_training_stops_early_without_a_better_epoch():
    job = training(epochs=50, lr=1e-12, patience=3)
    records = job.run()
    assert job.state.stopped == "early"
    assert len(records) <= 10


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_diverging_loss_stops_the_run_and_leaves_the_best(tmp_path):
    job = training(epochs=5, lr=1000.0)
    start = {name: tensor.clone() for name, tensor in job.module.state_dict().items()}
    records = job.run()
    assert job.state.stopped == "diverged"
    assert all(np.isfinite(record.val_loss) for record in records)
    assert job.state.best_epoch == 0
    assert all(torch.equal(start[name], value) for name, value in job.module.state_dict().items())


def test_a_learning_rate_that_works_is_not_called_divergence():
    job = training(epochs=5, lr=0.3)
    job.run()
    assert job.state.stopped == "done"


@pytest.mark.parametrize(("kill_at", "precision"), [((1, 0), "fp32"), ((3, 2), "fp32"), ((3, 2), "bf16")])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, kill_at, precision):
    whole, records = run(tmp_path / "whole", precision=precision)
    assert exit_code(run, tmp_path / "cut", kill_at, precision) == -9
    resumed, resumed_records = run(tmp_path / "cut", precision=precision)
    assert resumed.resumed
    assert not whole.resumed
    assert equal(whole.module, resumed.module)
    assert [(r.epoch, r.train_loss, r.val_loss) for r in records] == [
        (r.epoch, r.train_loss, r.val_loss) for r in resumed_records
    ]


@pytest.mark.parametrize("cores", [1, 3])
def test_threads_take_parts_of_a_batch_in_bfloat16_where_samples_are_independent(cores, monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    sizes, jobs = [], [training(precision="bf16", by_sample=by_sample) for by_sample in (False, True, True)]
    for job in jobs:
        job.module.dropout.p = 0.0
        job.module.unused = torch.nn.Linear(2, 2)  # a group may have parameters without a gradient
        job.optimizer.add_param_group({**job.optimizer.param_groups[0], "params": [job.module.unused.weight]})
    jobs[1].module.hidden.register_forward_hook(
        lambda layer, inputs, _: sizes.append(len(inputs[0])) if layer.training else None
    )
    before = torch.get_num_threads()
    whole, parts, again = (job.run() for job in jobs)
    assert torch.get_num_threads() == before
    assert [record.train_loss for record in parts] == [record.train_loss for record in again]
    assert equal(jobs[1].module.hidden, jobs[2].module.hidden)
    batches = [len(batch) for batch in jobs[1].train.epoch(1)]
    assert len(sizes) == 4 * cores * len(batches)
    assert sum(sizes) == 4 * sum(batches)
    losses = [[record.train_loss for record in records[1:]] for records in (whole, parts)]
    np.testing.assert_allclose(*losses, rtol=0.02)


def test_parameters_that_share_a_gradient_get_the_one_of_the_whole_batch(monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: 3)
    gradients = []
    for pool in (None, threads.WorkerPool()):
        job = training()
        job.module.dropout.p = 0.0
        added = [torch.nn.Parameter(torch.zeros(job.objective.classes)) for _ in range(3)]
        job.module.head.register_forward_hook(
            lambda layer, inputs, out, p=added: out + (p[0] + p[1]) + p[2].sum()
        )
        job.optimizer.add_param_group({**job.optimizer.param_groups[0], "params": added})
        job._pool = pool
        job.update(next(iter(job.train.epoch(1))))
        gradients.append([parameter.grad.numpy() for parameter in added])
    for whole, parts in zip(*gradients, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-7)


def test_the_checkpoint_of_another_run_is_not_used(tmp_path):
    run(tmp_path)
    job = training(checkpoint=Checkpoint(tmp_path / "run.safetensors", "another"))
    job.run()
    assert not job.resumed


def test_a_damaged_checkpoint_starts_the_run_anew(tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all")
    assert Checkpoint(path, "fingerprint").load() is None


def test_the_mode_of_the_module_survives_a_measurement():
    job = training(epochs=1)
    job.module.train()
    logits_of(job.module, job.val, job.device)
    assert job.module.training


class SlowCheckpoint(Checkpoint):
    """A checkpoint whose writing takes an hour by the clock of the loop."""

    def save(self, tensors, state):
        Clock.now += 3600.0


class Clock:
    """A clock that only the checkpoint moves."""

    now = 0.0

    @staticmethod
    def perf_counter():
        return Clock.now

    @staticmethod
    def monotonic():
        return Clock.now


def test_the_writing_of_checkpoints_does_not_count_as_training(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "time", Clock)
    job = training(epochs=2, checkpoint=SlowCheckpoint(tmp_path / "c", "fingerprint"), checkpoint_seconds=0.0)
    assert [record.seconds for record in job.run()] == [0.0, 0.0, 0.0]
    assert Clock.now > 0


def test_the_last_epoch_is_what_the_module_holds_where_none_is_to_be_chosen():
    job = training(epochs=6, lr=0.5, choose_best=False)
    epochs = job.run()
    measured = measure(*logits_of(job.module, job.val, job.device), job.objective)
    assert (measured.accuracy, measured.loss) == (epochs[-1].val_accuracy, epochs[-1].val_loss)
    assert measured != job.state.best, "the problem is made so that an earlier epoch is better"


def test_each_epoch_records_the_rate_of_every_group_and_0_before_its_first_epoch():
    job = training(epochs=4)
    for group in job.optimizer.param_groups:
        group["start_epoch"] = 3 if group["name"] == "hidden" else 1
    records = job.run()
    assert records[0].learning_rates == {}
    assert [record.learning_rates["hidden"] > 0 for record in records[1:]] == [False, False, True, True]
    assert all(record.learning_rates["head"] == record.lr for record in records[1:])
