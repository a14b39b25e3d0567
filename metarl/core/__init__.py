"""The episodic core: tasks, data, learners, one episode, training and evaluation.

This room knows nothing about rewards, environments or run folders.
"""
