"""Pretrained networks, opened up: registry, blocks and nodes, trunk and top, freezing."""
