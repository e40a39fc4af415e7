"""Work spread over processes and machines: a coordinator that hands out tasks, and workers that may die."""
