"""Gates: what is measured of data before anything trains on them, and of models when they have been evaluated, against
thresholds that can stop the pipeline (docs/gates.md)."""
