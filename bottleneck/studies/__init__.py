"""Which transfer, and why: scores of cached features, similarity, advice, the Yosinski study, neighbours."""
