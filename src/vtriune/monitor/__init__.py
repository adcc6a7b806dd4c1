"""Source-Level Metric Monitoring: figures per data source, the run folder, trackers, terminal tables, plots."""
