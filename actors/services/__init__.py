"""Models behind an API: OpenAI's and all that speak like it, Anthropic's, and their batches and fine-tuning."""
