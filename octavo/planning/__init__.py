"""What is planned and accounted for, off the hot path: reports of cost, and prices to compare."""
