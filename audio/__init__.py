"""Waveforms: decoding, and the signal processing behind the augmentations."""
