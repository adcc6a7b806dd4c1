"""Data: what is asked, read from files, mixed, and with its boxes in a known space."""
