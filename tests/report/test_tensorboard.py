"""Epochs as TensorBoard events: nothing is written where no folder is named."""

import sys

import pytest

from bottleneck.errors import BottleneckError
from bottleneck.report.tensorboard import log_epochs
from bottleneck.training.loop import EpochRecord


def test_no_folder_no_events(tmp_path):
    with log_epochs(None) as write:
        write(EpochRecord(0, None, None, None, 0.7, 0.5, 0, 0.0))
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BottleneckError) as error, log_epochs(tmp_path):
        pass
    assert "pip install" in error.value.hint
