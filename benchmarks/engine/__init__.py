"""The embedded engine beside TRL's GRPOTrainer: seconds, memory, scaling."""
