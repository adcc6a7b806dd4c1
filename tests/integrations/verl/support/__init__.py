"""Lets verl run on a CPU in tests; imported inside its processes."""
