"""Paired experiments: arms, generators, generated sets, and the runs over seeds."""
