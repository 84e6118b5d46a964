"""The engine of trials, which `train` and `advise` share: candidates, their evidence, and the choice."""
