"""What `launch` puts together: front ends in this process or in several, their folders and their
lives. Knows engines only by their clients and processes.
"""
