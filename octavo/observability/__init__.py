"""Metrics and logs. Knows no HTTP and no engine, only the values that they report."""
