"""Judging a run's stored rollouts again: as the run did, or by changed settings."""
