"""Changes of images: safe corruptions with severities, and unsafe moves towards another class.

The functions take and return tensors. To add a corruption, write a function in a file of this folder and add an entry
to `SAFE` in registry.py.
"""
