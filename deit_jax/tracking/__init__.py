"""What a run reports: metrics, progress, profile, start-up times, versions.

A new destination for metrics is one class in `writers.py` and one line in its `TRACKERS`.
"""
