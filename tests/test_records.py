"""Configs from arguments; records from a stranger's file: the expected fields, each of its type."""

from dataclasses import dataclass, field

import pytest

from bottleneck.errors import ArtifactError
from bottleneck.records import (
    are_numbers,
    config_from,
    is_flag,
    is_integer,
    is_number,
    is_text,
    require_fields,
)

CHECKS = {"size": is_integer, "name": is_text}


def test_a_record_with_its_fields_is_accepted():
    require_fields({"size": 3, "name": "x"}, CHECKS, "It")
    require_fields({"size": 3, "name": "x", "more": 1}, CHECKS, "It", others=True)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "It is list; expected a JSON object"),
        ({}, "It has the fields none; expected name, size"),
        ({"size": 3, "name": "x", "more": 1}, "It has the fields more, name, size; expected name, size"),
        ({"size": "3", "name": "x"}, "It has size '3', which is not of its type"),
    ],
)
def test_other_records_are_refused_by_name(record, message):
    with pytest.raises(ArtifactError, match=message):
        require_fields(record, CHECKS, "It")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (is_integer, [0, -3], [True, 1.0, "1", None]),
        (is_number, [0, 1.5, -(2**1000)], [True, "1", None, 10**400]),
        (is_flag, [True, False], [0, None]),
        (are_numbers, [[], [1, 2.5], (0,)], [1, ["a"], [True], None, "12"]),
    ],
)
def test_checks_tell_flags_from_numbers(check, good, bad):
    assert all(map(check, good))
    assert not any(map(check, bad))


@dataclass(frozen=True)
class Engine:
    device: str = "cpu"


@dataclass(frozen=True)
class Job:
    epochs: int = 3
    seed: int = 0
    engine: Engine = field(default_factory=Engine)


def test_a_config_takes_the_arguments_of_its_names():
    assert config_from(Job, {"epochs": 5, "device": "cuda", "other": 1}) == Job(5, 0, Engine("cuda"))
    assert config_from(Job, {"epochs": 5}, epochs=7, engine=Engine("mps")) == Job(7, 0, Engine("mps"))
    assert config_from(Job, {}) == Job()


def test_what_no_config_has_is_refused():
    with pytest.raises(TypeError, match="unknown"):
        config_from(Job, {}, unknown=1)
