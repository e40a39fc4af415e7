"""One thin file per verb: parse, resolve, one stage call, record, print."""
