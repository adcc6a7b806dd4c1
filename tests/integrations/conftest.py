"""A reward server, as tests/reward has it."""

from tests.reward.conftest import own_verifiers, serve, server

__all__ = ["own_verifiers", "serve", "server"]
