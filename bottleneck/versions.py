"""Versions of installed packages, read without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version(name: str) -> str | None:
    """Return the version of a distribution, by its name in a package index; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
