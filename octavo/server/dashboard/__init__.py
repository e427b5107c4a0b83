"""The live page: `/dashboard`, one file without a build step, and the numbers that it draws."""
