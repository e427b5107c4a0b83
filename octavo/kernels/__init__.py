"""Kernels: raw tensors in, raw tensors out. They know nothing of models, requests or layouts."""
