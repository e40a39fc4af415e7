"""One function per verb: they join what the rooms below keep apart."""
