"""The run folder: settings with their roles and origins, records, timing, progress and stopping."""
