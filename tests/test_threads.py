import threading

import pytest
import torch

from bottleneck import threads


@pytest.mark.parametrize("count", range(1, 65))
def test_a_cpu_engine_spends_its_threads_and_no_more(count):
    passes, within = threads.passes_side_by_side(count)
    assert 1 <= passes <= 16
    assert count - within < passes * within <= count


@pytest.mark.parametrize("cores", [1, 2, 8, 64])
def test_both_sides_get_the_cores_of_a_cpu(cores, monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    assert threads.thread_budget() == threads.ThreadBudget(decode=min(cores, 32), network=cores)
    assert threads.thread_budget(workers=0).decode == 1
    assert threads.thread_budget(workers=5).decode == 5


def test_torch_stays_in_one_thread_only_inside_the_block_and_only_here():
    elsewhere = []
    torch.set_num_threads(2)
    with threads.one_torch_thread():
        assert torch.get_num_threads() == 1
        thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert torch.get_num_threads() == 2
    assert elsewhere == [2]
