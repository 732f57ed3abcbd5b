"""Experiment trackers: clients of Weights & Biases, MLflow and trackio behind one interface."""
