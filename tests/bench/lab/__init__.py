"""What the cluster benchmarks share: processes that can be killed and paused, trials on them, figures."""
