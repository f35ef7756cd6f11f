"""A CUDA device that is not there, for the GPU paths of the project; `cuda.py` says what it does."""
