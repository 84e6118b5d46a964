"""Values of flags that several commands share."""

import click
import pytest

from bottleneck.cli.options import Memory


@pytest.mark.parametrize(
    ("said", "bytes_"),
    [("512MiB", 512 << 20), ("4GB", 4 * 10**9), ("1.5 gib", 3 << 29), ("1000000", 10**6), ("64k", 64_000)],
)
def test_a_size(said, bytes_):
    assert Memory().convert(said, None, None) == bytes_


@pytest.mark.parametrize("said", ["", "much", "-1", "3TB", "1e3", "9" * 400])
def test_what_is_no_size(said):
    with pytest.raises(click.BadParameter, match="is not a size such as 512MiB"):
        Memory().convert(said, None, None)


def test_memory_reads_alike_in_all_commands():
    from bottleneck.cli.compare import command as compare
    from bottleneck.cli.fit_head import command as fit_head
    from bottleneck.cli.scratch import command as scratch

    flags = [next(p for p in c.params if p.name == "memory") for c in (compare, fit_head, scratch)]
    assert {flag.make_metavar(click.Context(fit_head)) for flag in flags} == {"SIZE"}
