"""Checkpoints: readers (safetensors folders, GGUF), the model store, and where models come from."""
