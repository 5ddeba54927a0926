"""Grafana dashboards and Prometheus rules as code: pure builders, and `__main__`, which writes them into the chart."""
