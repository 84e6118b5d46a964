"""One self-contained page of caches, heads, models and studies.

paths ──► inputs ──► sections of blocks ──► templates ──► one HTML file
"""
