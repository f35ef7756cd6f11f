"""Does the threat see what people see? Measuring it on safe and on unsafe changes."""
