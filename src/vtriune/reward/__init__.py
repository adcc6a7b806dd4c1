"""Verifier-level reward computation: routing, weighing (eq. 8), worker processes, the HTTP service and its client."""
