"""posttrain and TRL side by side: the same work, in turn, on the same machine. `make bench` runs it."""
