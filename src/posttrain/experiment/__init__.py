"""What stands around a run: parameters of the stages, their source files, and their metrics."""
