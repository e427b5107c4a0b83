"""The device side of the engine: model, batches, sampling."""
