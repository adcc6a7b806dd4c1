"""Verifiers: what an answer is worth, one file per verifier. No schedules, no weights, no processes."""
