"""What outlives a request: responses, files and batches, in a folder that API servers share."""
