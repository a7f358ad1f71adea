"""What scripts/bench runs: contestants side by side, in rounds, and a report of ratios."""
