"""Changes of images: safe corruptions with severities, unsafe moves towards another class. Tensors in, tensors out.

To add a corruption: a function in a file of this folder, and an entry of `SAFE` in registry.py.
"""
