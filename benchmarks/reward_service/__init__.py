"""The reward service measured beside the released server's design: `python -m benchmarks.reward_service`."""
