"""Rows in memory on their leading coordinates alone."""

import numpy as np
import pytest

from bottleneck.heads.artifact import HeadDescription
from bottleneck.heads.config import SweepConfig
from bottleneck.heads.cross_validation import assign_folds
from bottleneck.heads.fit import fit_kind
from bottleneck.heads.row_blocks import standardisation
from bottleneck.heads.solver.arrays import to_numpy
from bottleneck.heads.solver.design import ResidentDesign, build_design
from bottleneck.heads.solver.problem import TargetProblem
from bottleneck.samples import ArrayRows, Target
from bottleneck.threads import WorkerPool


@pytest.fixture
def rows():
    """(200, 24) in a space of 6 dimensions, and class codes that depend on it."""
    draw = np.random.default_rng(0)
    inner = draw.normal(size=(200, 6))
    x = inner @ draw.normal(size=(6, 24)) + 5
    return x.astype(np.float32), (inner[:, :3] + draw.normal(size=(200, 3)) * 0.5).argmax(axis=1)


def test_coordinates_are_kept_up_to_the_number_asked_for(rows, place):
    x, parts = rows
    reader, pool = ArrayRows(x), WorkerPool()
    standard = standardisation(reader, pool)
    design, order = build_design(reader, standard, pool, 1 << 20, parts=parts, components=6, columns=3)
    assert isinstance(design, ResidentDesign)
    assert design.x.shape == (200, 6)
    assert design.place == place
    z = standard.apply(x)[order]
    np.testing.assert_allclose(to_numpy(design.x) @ design.basis.T, z, atol=1e-3)
    assert (np.diff(parts[order]) >= 0).all()


def test_a_head_on_the_coordinates_that_have_variance_is_the_head_on_all(rows):
    x, codes = rows
    target = Target("y", "class", codes, ("a", "b", "c"))
    problem = TargetProblem(target, assign_folds(target, 4))
    whole, part = (
        fit_kind("logistic", ArrayRows(x), [problem], 0.1, config=SweepConfig(components=components))[0]
        for components in (None, 8)
    )
    np.testing.assert_allclose(part.out_of_fold, whole.out_of_fold, atol=5e-3)
    of_all = [fit.artifact(HeadDescription(class_names=target.class_names)) for fit in (part, whole)]
    np.testing.assert_allclose(*(head.decision(x) for head in of_all), atol=5e-2)
