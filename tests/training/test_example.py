"""The example that fine-tunes: it runs as it says, on a few images and one epoch."""

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune.py"


def test_the_example_prints_the_head_and_the_model(images, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("finetune_example", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "extract", lambda source, path, **kw: small(source, path))
    example.main(images, tmp_path, unfreeze=1, epochs=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("head alone: accuracy 0.")
    assert lines[1].startswith("trained: block4; kept: ")
    assert "95 % interval" in lines[2]


def small(source, path):
    """The small CNN in place of the embedded network: what is shown is the example, not the network."""
    from bottleneck.extraction.extract import extract

    return extract(source, path, backbone="small_cnn", engine="torch")
