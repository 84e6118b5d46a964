"""The HDF5 feature cache. Knows no torch; `cache/FORMAT.md` is its specification."""
