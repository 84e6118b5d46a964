"""Families of networks. Each module implements `architecture.Family`; `registry` lists and builds from them.

To add a family, write a module with `names`, `listed` and `architecture`, and add it to `registry.FAMILIES`.
"""
