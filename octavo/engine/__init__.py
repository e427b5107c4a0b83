"""The host side of the engine: requests, scheduling, the KV cache's books."""
