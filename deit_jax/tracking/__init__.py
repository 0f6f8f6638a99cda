"""What a run reports while it trains: metrics, progress, curves, profile, start-up times, versions."""
