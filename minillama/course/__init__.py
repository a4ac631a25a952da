"""What serves the notebooks and is no algorithm: filled cells, checks, figures."""
