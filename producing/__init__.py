"""From a position of the plan to an encoded sample, on many cores."""
