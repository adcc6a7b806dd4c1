"""Source-Level Metric Monitoring: figures per data source, the run folder, TensorBoard, terminal tables."""
