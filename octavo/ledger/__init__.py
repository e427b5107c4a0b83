"""What every request cost, kept: usage records, outcomes, and what reports ask of them."""
