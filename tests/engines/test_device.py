import pytest
import torch

from bottleneck.engines import device
from bottleneck.engines.device import resolve_device
from bottleneck.errors import EngineError


def test_the_cpu_is_always_there():
    assert resolve_device("cpu") == "cpu"


def test_auto_takes_what_torch_finds(monkeypatch):
    monkeypatch.setattr(device, "accelerator_possible", lambda: True)
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert resolve_device("auto") == expected


def test_auto_does_not_ask_torch_where_there_is_no_driver(monkeypatch):
    monkeypatch.setattr(device, "accelerator_possible", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked"))
    assert resolve_device("auto") == "cpu"


def test_a_device_that_is_absent_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("cuda:1") == "cuda:1"
    for name in ("cuda:2", "mps"):
        with pytest.raises(EngineError, match=f"Device {name} is not present"):
            resolve_device(name)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cpu:0x"])
def test_what_is_no_device_is_refused(name):
    with pytest.raises(EngineError, match="Device must be auto, cpu"):
        resolve_device(name)
