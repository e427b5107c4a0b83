"""Makes deploy/grafana/*.json, so that nobody edits a thousand lines of JSON by hand.

    python -m scripts.grafana

A dashboard is a list of rows, a row a list of panels, a panel its PromQL and a legend. The format
is that of Grafana 10 (schema version 38), which later ones read:
https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""
