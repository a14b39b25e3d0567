"""The episodic core: tasks, data, learners, one episode, training and evaluation.

Nothing in this package depends on rewards, environments or run folders.
"""
