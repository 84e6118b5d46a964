"""The simulation of many actors: nothing is lost, little is repeated, a slow actor delays itself alone."""

import pytest

from tests.benchmarks.stragglers import Cluster, simulate

BATCHES = 300
SEEDS = range(20)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_batch_is_committed_once_whatever_dies(seed):
    cluster = Cluster([1.0, 1.5, 2.0, 8.0], in_flight=3, commit=7, life=30.0, restart=5.0)
    run = simulate(BATCHES, cluster, seed)
    assert sorted(run.committed) == list(range(BATCHES))
    assert 0 < run.repeated <= sum(run.deaths.values())  # at most one batch for each death
    assert run.most_in_flight == 3


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_driver_goes_on_from_its_commits(seed):
    cluster = Cluster([1.0, 1.5, 2.0], commit=16, life=60.0, restart=5.0)
    done, kills, started = [], 0, 0
    while len(done) < BATCHES:
        run = simulate(BATCHES, cluster, seed + kills, done, until=25.0 + kills)
        assert not set(done) & set(run.committed)
        lost = len(run.started) - len(run.committed)
        assert lost <= cluster.commit - 1 + len(cluster.seconds)  # not committed yet, and under way
        done, kills, started = done + run.committed, kills + 1, started + len(run.started)
    assert sorted(done) == list(range(BATCHES))
    assert kills > 3
    assert started > BATCHES


@pytest.mark.parametrize("in_flight", [1, 2, 8])
@pytest.mark.parametrize("factor", [1, 3, 50])
def test_a_slow_actor_delays_its_own_batches_alone(in_flight, factor):
    seconds = [1.0 * factor, 1.0, 1.0, 1.0]
    best = BATCHES / sum(1 / each for each in seconds)
    run = simulate(BATCHES, Cluster(seconds, in_flight))
    assert best - 1e-6 <= run.seconds <= best + in_flight * factor + 1e-6  # its last ones in flight


def test_actors_that_die_before_they_finish_anything_stop_no_other():
    cluster = Cluster([1000.0, 1.0], life=50.0, restart=1.0)
    run = simulate(BATCHES, cluster, seed=3)
    assert len(run.committed) == BATCHES
    assert run.deaths[0] > 1
