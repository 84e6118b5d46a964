"""Classifiers on features: the batched solver, the estimators, their selection, the head artifact."""
