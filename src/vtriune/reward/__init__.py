"""Verifier-level reward computation: routing, schedules, weighing (eq. 8) and the worker processes that judge."""
