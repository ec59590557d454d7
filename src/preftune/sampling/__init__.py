"""Sample responses from a model.

Here live the random draws, two ways of decoding, the engines (transformers, vLLM, a server) and the sampling
of a whole file. May import data, serving, storage, models and rewards. Imports no training code.
"""
