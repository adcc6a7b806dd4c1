"""The embedded engine: one process, one device. It samples, updates and saves; it knows no rewards."""
