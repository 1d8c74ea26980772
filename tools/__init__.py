"""Programs for people, run as `python -m tools.NAME`. Nobody imports them."""
