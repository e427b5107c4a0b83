"""The OpenAI HTTP application over an engine. Knows tokens, never tensors."""
