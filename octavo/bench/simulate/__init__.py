"""The real scheduler and block manager in virtual time, under a model of what a step costs."""
