"""Hypothesis strategy for JSON values, as recipes hold them."""

import hypothesis.strategies as st

TEXTS = st.text() | st.text(st.characters())  # the latter with surrogates
SCALARS = st.none() | st.booleans() | st.integers() | TEXTS | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=9,
)
