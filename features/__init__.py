"""What the model sees: feature settings, log-mel, labels, and a sample's form in memory, in Redis and in a batch."""
