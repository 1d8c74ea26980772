"""Programs for people, run as `python -m tools.NAME`; nothing imports them."""
