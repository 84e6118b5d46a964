"""Versions of installed packages, read without importing them."""

from __future__ import annotations


def package_version(name: str) -> str | None:
    """Return the version of a distribution, by its name in a package index; None if it is not installed."""
    # It loads the parser of e-mails for the packages' metadata, a fortieth of the start of most commands.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None
