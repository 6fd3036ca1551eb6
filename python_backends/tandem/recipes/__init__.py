"""Recipes: what TensorRT-LLM is to load for a model's two stages, how much memory that takes, and how it is made."""
