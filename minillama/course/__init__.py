"""What serves the notebooks but is no algorithm: stored stages, filled cells, checks, figures."""
