"""Safe moves: everyday changes of an image that an adversary may mix."""
