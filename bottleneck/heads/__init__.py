"""Fit heads on features: kinds of head, cross-validation, metrics, the head file, and the batched solver."""
