"""When two answers say the same: read into one notation, then compared part by part. Text is parsed, never evaluated."""
