"""Writes the files."""

from scripts.grafana.build import main

main()
