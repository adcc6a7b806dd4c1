"""The dashboard: a local server over the runs of a folder, and its page."""
