"""The outer loop, evaluation, ensembles, checkpoints and distribution."""
