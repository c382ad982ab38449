"""Reinforcement-learning post-training of reasoning models on a Ray cluster, with a GPU-hour ledger."""
