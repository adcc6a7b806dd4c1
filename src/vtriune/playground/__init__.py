"""A synthetic world of eight visual tasks and the tiny base VLM that the demo starts from."""
