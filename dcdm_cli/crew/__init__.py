"""Work spread over processes and machines: a boss that hands out tasks, and workers that may die."""
