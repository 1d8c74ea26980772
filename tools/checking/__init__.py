"""What `tools.check` finds out about a corpus, and how it says so."""
