"""docs/scaling.md shows what the arithmetic and the simulation give, and their limits are the right ones."""

import pytest

from tests.benchmarks import costs, stragglers
from tests.benchmarks.process import ROOT


def test_the_page_shows_the_tables():
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8").splitlines()
    tables = [costs.markdown(costs.extraction()), costs.markdown(costs.volumes()), stragglers.tables()]
    missing = [line for table in tables for line in table if line not in page]
    assert missing == []


@pytest.mark.parametrize(
    ("machine", "per_request", "limit", "rate"),
    [
        (costs.Machine("a", 1, 2), None, "cores", 2 / 7.3e-3),
        (costs.Machine("a", 1, 16), 1, "requests", 640),
        (costs.Machine("a", 3, 16), 1, "requests", 1920),
        (costs.Machine("a", 1, 96), 1000, "link", 1.25e9 / 120e3),
        (costs.Machine("a", 1, 4, gpu=True), 1000, "decoding", 4 / 1.9e-3),
    ],
)
def test_the_slowest_part_limits(machine, per_request, limit, rate):
    limits = machine.limits(per_request)
    least = min(limits, key=limits.__getitem__)
    assert limit in least
    assert limits[least] == pytest.approx(rate)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(20, "< 1 min"), (60, "1 min"), (7199, "120 min"), (7200, "2 h"), (259199, "72 h"), (259200, "3 days")],
)
def test_times_have_a_unit_that_people_read(seconds, text):
    assert costs.duration(seconds) == text
