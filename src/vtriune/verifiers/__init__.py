"""Verifiers: what an answer is worth, one file per verifier. No total weights (eq. 8), no processes."""
