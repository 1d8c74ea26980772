"""The virtual container: samples in Redis between the producer and the trainer."""
