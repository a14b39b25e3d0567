"""Supervised few-shot learners: one file each, holding its Config, its Learner and its loss."""
