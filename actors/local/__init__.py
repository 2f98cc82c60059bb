"""Models that run here: vLLM, transformers, and the embedded default."""
