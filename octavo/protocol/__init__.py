"""Wire types of the HTTP APIs: requests, answers, events, error bodies. Pure values."""
