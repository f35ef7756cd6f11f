"""Measurement of threats on safe and unsafe changes, to test whether a threat agrees with human perception."""
