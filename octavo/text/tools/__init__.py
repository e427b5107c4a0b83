"""Tool calls in the texts of models: one file per format, and a registry. Pure values."""
