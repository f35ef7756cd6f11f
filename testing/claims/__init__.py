"""Claims that anyone can check: a file of adversarial examples, its judgement by forward passes, and its merging.

docs/claims.md describes the file.
"""
