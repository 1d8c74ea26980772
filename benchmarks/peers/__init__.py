"""What a user would take instead, each as one class with the same face: `make(count)` makes that many samples."""
