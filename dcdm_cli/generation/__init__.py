"""Plan, seeds, sampler and the bulk loop."""
